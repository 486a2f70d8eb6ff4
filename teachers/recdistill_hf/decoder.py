"""A transformers decoder without its vocabulary: made of a teacher's configuration, weights random or from a folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recdistill_core.errors import ConfigError, Problem
from recdistill_hf.config import HFConfig
from recdistill_hf.options import ROPE, as_transformers, check_options
from recdistill_hf.pretrained import start_from
from recdistill_hstu.attention import Attend
from recdistill_hstu.bias import Bias

#: The name under which :func:`jagged_attention` is registered with transformers.
JAGGED = "recdistill_jagged"


def jagged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attend: Attend,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one row of tokens by a jagged backend, as transformers' ``AttentionInterface`` calls it.

    Args:
        module: the attention layer. attention_mask: None; ``attend`` knows who sees whom.
        query: ``[1, H, T, d]``. key, value: ``[1, G, T, d]``, where ``G`` divides ``H``.
        attend: see :func:`recdistill_hstu.attention.prepare`.
        scaling: factor of the scores; None: ``1 / sqrt(d)``.
        unused: what other implementations read; dropout of attention is 0 by configuration.

    Returns:
        ``[1, T, H, d]``, and no weights.
    """
    heads, width = query.shape[1], query.shape[-1]
    if scaling is not None:
        query = query * (scaling * math.sqrt(width))  # the backend divides by sqrt(d)
    shared = heads // key.shape[1]
    keys, values = (part[0].repeat_interleave(shared, 0).transpose(0, 1) for part in (key, value))
    # under autocast rotary embeddings leave queries and keys in float32
    out = attend(query[0].transpose(0, 1).to(value.dtype), keys.to(value.dtype), values, Bias())
    return out[None], None


def make_decoder(config: HFConfig) -> Any:
    """The decoder of ``config``: a transformers model that takes ``inputs_embeds``, ``position_ids`` and ``attend``.

    Its own embedding has one frozen row, which nothing reads.

    Raises:
        ConfigError: for an option that the architecture does not have or cannot use, or a folder whose decoder is
            another one.
        IntegrityError: for a folder whose weights cannot be read.
    """
    from transformers import AttentionInterface, AutoModel

    AttentionInterface.register(JAGGED, jagged_attention)
    kind = "sdpa" if config.backend == "padded" else JAGGED
    try:
        plain = decoder_config(config)
        decoder = AutoModel.from_config(plain, attn_implementation=kind)
    except ConfigError:
        raise
    except Exception as error:  # transformers raises many kinds for settings that it cannot use
        why = " ".join(str(error).split())[:300]
        raise ConfigError([Problem("teacher.options", f"transformers refuses the settings: {why}")]) from error
    if config.pretrained_decoder:
        start_from(decoder, plain, Path(config.pretrained_decoder))
    decoder.get_input_embeddings().weight.requires_grad_(False)
    if config.checkpointing:
        decoder.activation_checkpointing_enable()
    return decoder


def decoder_config(config: HFConfig) -> Any:
    """The transformers configuration of ``config``.

    Raises:
        ConfigError: for every option that the architecture does not have, that may not be changed, or out of its range.
    """
    from transformers import AutoConfig

    usual = AutoConfig.for_model(config.architecture)
    known = {entry.name for entry in dataclasses.fields(type(usual))}
    problems = check_options(config.architecture, config.options, known, getattr(usual, ROPE, None) or {})
    if config.kv_heads not in (0, config.heads) and "num_key_value_heads" not in known:
        said = f"{config.architecture} has keys for every head: leave it 0 or {config.heads}"
        problems.append(Problem("teacher.kv_heads", said))
    if problems:
        raise ConfigError(problems)
    sizes = {
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.width // config.heads,
        "intermediate_size": config.intermediate or 4 * config.width,
        "n_inner": config.intermediate or 4 * config.width,
    }
    # every token that a row may see is seen: windows are the teacher's own, and attention has no dropout
    fixed = {"sliding_window": None, "use_sliding_window": False, "attention_dropout": 0.0, "attn_pdrop": 0.0}
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "hidden_dropout"), 0.0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    chosen = {name: value for name, value in {**sizes, **fixed, **quiet}.items() if name in known}
    return AutoConfig.for_model(
        config.architecture,
        **{
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "max_position_embeddings": config.max_length + 1,  # a candidate after a full history
            "vocab_size": 1,
            "use_cache": False,
            **ids,
            **chosen,
            **as_transformers(config.options),
        },
    )
