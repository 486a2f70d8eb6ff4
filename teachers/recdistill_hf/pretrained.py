"""A decoder's weights from the folder of a local transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from recdistill_core.errors import ConfigError, IntegrityError, Problem

#: What a decoder in a folder may have otherwise: nothing of it acts on the tokens here.
IMMATERIAL = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "initializer_range",
        "max_position_embeddings",
        "max_window_layers",
        "n_positions",
        "pad_token_id",
        "pretraining_tp",
        "resid_pdrop",
        "tie_word_embeddings",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)


def start_from(decoder: Any, plain: Any, folder: Path) -> None:
    """Copy the weights of the transformers model in ``folder`` into ``decoder``, all but its vocabulary.

    Args:
        decoder: the model to fill. plain: its transformers configuration.
        folder: config.json and safetensors of the same architecture and sizes; nothing is downloaded.

    Raises:
        ConfigError: if there is no model, or another one. IntegrityError: if its weights are absent or damaged.
    """
    from transformers import AutoConfig

    path = "teacher.pretrained_decoder"
    if not (folder / "config.json").is_file():
        raise ConfigError([Problem(path, f"{folder} has no config.json; name the folder of a local model")])
    theirs = _read(AutoConfig, folder)
    _same_decoder(plain, theirs, folder)
    given = _weights(folder)
    vocabulary = decoder.get_input_embeddings().weight
    for name, part in decoder.named_parameters():
        if part is vocabulary:
            continue
        if given[name].shape[0] < part.shape[0]:
            raise ConfigError(
                [Problem(path, f"{folder} knows {len(given[name])} positions, and max_length + 1 = {len(part)} occur")]
            )
        part.data.copy_(given[name][: len(part)])  # a longer table of positions begins with those that are needed


def _weights(folder: Path) -> dict[str, Tensor]:
    from transformers import AutoModel

    loaded, info = _read(AutoModel, folder, use_safetensors=True, output_loading_info=True)
    embedding = loaded.get_input_embeddings().weight
    absent = {name for name, part in loaded.named_parameters() if part is not embedding} & set(info["missing_keys"])
    if absent:
        raise IntegrityError(
            f"the decoder lacks weights: {', '.join(sorted(absent)[:5])}",
            where=str(folder),
            fix="save the model again with save_pretrained, as safetensors",
        )
    weights: dict[str, Tensor] = loaded.state_dict()
    return weights


def _read(kind: Any, folder: Path, **settings: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError, SafetensorError) as error:  # what transformers raises for damaged files
        raise IntegrityError(
            f"the decoder cannot be read: {' '.join(str(error).split())[:300]}",
            where=str(folder),
            fix="save the model again with save_pretrained, as safetensors",
        ) from error


def _same_decoder(ours: Any, theirs: Any, folder: Path) -> None:
    path = "teacher.pretrained_decoder"
    if theirs.model_type != ours.model_type:
        said = f"{folder} holds a {theirs.model_type}, and teacher.architecture is {ours.model_type}"
        raise ConfigError([Problem(path, said)])
    before, after = ours.to_dict(), theirs.to_dict()
    if (after.get("sliding_window") or 0) > ours.max_position_embeddings:
        after["sliding_window"] = None  # no sequence here is as long as its window
    different = [
        f"{name} is {after.get(name)!r} there and {before.get(name)!r} here"
        for name in sorted({*before, *after} - IMMATERIAL)
        if before.get(name) != after.get(name)
    ]
    if different:
        raise ConfigError([Problem(path, f"{folder} holds another decoder: {'; '.join(different)}")])
