"""A trained teacher as a folder in the form of the Hugging Face hub: ``config.json`` and safetensors.

``config.json`` names the component and holds its configuration, the dataset's schema and the tasks, so that the folder
alone is enough to score; weights are in ``model.safetensors``, or beyond a size in several files with an index. Nothing
in it is a pickle, and loading reads local files only.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import recdistill_core
from recdistill_core.component import BuildContext
from recdistill_core.config import fill_or_raise, make
from recdistill_core.errors import ConfigError, DataError, IntegrityError, UsageError
from recdistill_core.files import sync_tree, whole_or_absent, write_atomically
from recdistill_core.interfaces import TrainableTeacher
from recdistill_core.registry import installed
from recdistill_core.schema import Schema
from recdistill_core.weights import load_weights, save_weights

T = TypeVar("T", bound=TrainableTeacher)
C = TypeVar("C")

#: Version of what config.json says; a newer one is refused.
FORMAT = 1
#: ``model_type`` of config.json is this and the component's name.
PREFIX = "recdistill-"
CARD, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
#: Most bytes of one weights file; a larger teacher is written in several.
SHARD = "5GB"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_AGAIN = "save the teacher again from its run, or copy the file"


@dataclass(frozen=True)
class Card:
    """What ``config.json`` says.

    Attributes:
        component: name of the teacher component, such as ``hstu``.
        config: its settings. schema: of the dataset it was trained on. tasks: one logit each, in this order.
        fingerprint: the teacher's, checked when it is loaded.
        version: of recdistill that wrote it.
        dataset: snapshot id of the dataset that it was trained on, or empty where that is not known.
    """

    component: str
    config: Mapping[str, Any]
    schema: Schema
    tasks: tuple[str, ...]
    fingerprint: str
    version: str
    dataset: str = ""


def save_teacher(
    teacher: TrainableTeacher,
    folder: Path | str,
    *,
    component: str,
    config: Any,
    schema: Schema,
    tasks: Sequence[str],
    overwrite: bool = False,
    max_shard_size: int | str = SHARD,
) -> None:
    """Write ``teacher`` to ``folder``; it appears whole, or what was there stays.

    Args:
        teacher: left as it is.
        folder: absent, empty, or with ``overwrite`` an earlier artefact, which is replaced.
        component: the teacher component's name. config: its frozen dataclass. schema, tasks: what it was built with.
        overwrite: replace an earlier artefact.
        max_shard_size: bytes, or text such as ``"5GB"``, that one weights file holds at most.

    Raises:
        UsageError: if the folder holds something else, or an argument is not what it should be.
        PluginError: if no installed plugin has the component, so that nobody could load the teacher.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    home = Path(folder).absolute()
    _require_room(home, overwrite)
    _require_description(component, config, tasks)
    weights = teacher.state_dict()
    split = split_torch_state_dict_into_shards(weights, max_shard_size=_bytes(max_shard_size))
    card = {
        "model_type": PREFIX + component,
        "architectures": [type(teacher).__name__],
        "format_version": FORMAT,
        "recdistill_version": recdistill_core.__version__,
        "fingerprint": teacher.fingerprint(),
        "tasks": list(tasks),
        "config": asdict(config),
        "schema": schema.to_dict(),
        "view": schema.view_hash(),
    }
    before = home.with_name(f".{home.name}.old")
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_or_absent(home) as place:
            place.mkdir()
            for file, names in split.filename_to_tensors.items():
                save_weights({name: weights[name] for name in names}, place / file)
            if split.is_sharded:
                index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
                (place / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
            (place / CARD).write_text(json.dumps(card, indent=2))
            sync_tree(place)
            if home.exists():
                shutil.rmtree(before, ignore_errors=True)
                home.replace(before)
    except BaseException:
        if before.exists() and not home.exists():
            before.replace(home)
        raise
    shutil.rmtree(before, ignore_errors=True)


def note_dataset(folder: Path | str, snapshot: str) -> None:
    """Add to an artefact which dataset its teacher was trained on, for ``Card.dataset``.

    Args:
        folder: what :func:`save_teacher` wrote. snapshot: ``SampleSource.snapshot_id``.

    Raises:
        UsageError, IntegrityError: as :func:`read_card`.
    """
    read_card(folder)
    path = Path(folder) / CARD
    write_atomically(path, json.dumps({**json.loads(path.read_text()), "dataset": snapshot}, indent=2))


def read_card(folder: Path | str) -> Card:
    """What an artefact is, without its weights.

    Raises:
        UsageError: if there is no artefact, or a newer recdistill wrote it. IntegrityError: if config.json is damaged.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise UsageError(
            "there is no config.json",
            where=str(folder),
            fix="name the folder that save_pretrained wrote; to load from a hub, download the folder first",
        )
    try:
        plain = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"the teacher's config.json cannot be read: {error}", where=str(path), fix=_AGAIN
        ) from error
    kind = plain.get("model_type") if isinstance(plain, dict) else None
    if not isinstance(kind, str) or not kind.startswith(PREFIX):
        raise UsageError(
            f"the folder holds no teacher of recdistill: model_type is {kind!r}",
            where=str(path),
            fix="a decoder of transformers can initialise the hf teacher: set pretrained_decoder to its folder",
        )
    version = plain.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise IntegrityError(
            f"the teacher's config.json is not what was written: format_version is {version!r}, no version",
            where=str(path),
            fix=_AGAIN,
        )
    if version > FORMAT:
        raise UsageError(
            f"the teacher was saved in format {version} by recdistill {plain.get('recdistill_version')}, "
            f"and this is recdistill {recdistill_core.__version__}, which reads formats up to {FORMAT}",
            where=str(path),
            fix="install that version or a newer one",
        )
    try:
        return Card(
            component=kind.removeprefix(PREFIX),
            config=dict(plain["config"]),
            schema=Schema.from_dict(plain["schema"]),
            tasks=tuple(plain["tasks"]),
            fingerprint=str(plain["fingerprint"]),
            version=str(plain["recdistill_version"]),
            dataset=str(plain.get("dataset", "")),
        )
    except (DataError, KeyError, TypeError, ValueError) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise IntegrityError(
            f"the teacher's config.json is not what was written: {why}", where=str(path), fix=_AGAIN
        ) from error


def load_teacher(folder: Path | str) -> TrainableTeacher:
    """The teacher of an artefact, whichever installed component it is of; in eval mode, on the CPU.

    Raises:
        UsageError: if there is no artefact, or a newer recdistill wrote it.
        PluginError: if its component is not installed.
        IntegrityError: if files are damaged or do not belong together.
    """
    card = read_card(folder)

    def build() -> TrainableTeacher:
        made: TrainableTeacher = make(
            installed(), "teacher", {"name": card.component, **card.config}, BuildContext(card.schema, card.tasks)
        )
        return made

    return _restored(Path(folder), card, build)


def load_as(folder: Path | str, component: str, config: type[C], build: Callable[[C, Schema, tuple[str, ...]], T]) -> T:
    """The teacher of an artefact of one component; what a teacher's ``from_pretrained`` calls.

    Args:
        folder: what ``save_pretrained`` wrote. component: the name that it must have.
        config: the component's frozen dataclass. build: makes the teacher of config, schema and tasks.

    Raises:
        UsageError, IntegrityError: as :func:`load_teacher`; UsageError also for a teacher of another component.
    """
    card = read_card(folder)
    if card.component != component:
        raise UsageError(
            f"the folder holds a teacher {card.component!r}, not {component!r}",
            where=str(Path(folder) / CARD),
            fix="load it with recdistill_core.artefact.load_teacher, which takes any",
        )
    return _restored(
        Path(folder), card, lambda: build(fill_or_raise(config, dict(card.config), "config"), card.schema, card.tasks)
    )


def _restored(folder: Path, card: Card, build: Callable[[], T]) -> T:
    with torch.random.fork_rng(devices=[]):  # initial weights, which are replaced, leave the caller's draws alone
        try:
            teacher = build()
        except ConfigError as error:
            raise IntegrityError(
                f"config.json describes no {card.component} teacher that can be built here: "
                + "; ".join(error.problems),
                where=str(folder / CARD),
                fix=f"use recdistill {card.version}, which wrote it, where it can run, or save the teacher again",
            ) from error
    weights = _read_weights(folder)
    _require_match(teacher.state_dict(), weights, folder)
    kinds = {part.dtype for part in weights.values() if part.is_floating_point()}
    if len(kinds) == 1:  # buffers that are not saved, such as rotary frequencies, were of that dtype too
        teacher.to(kinds.pop())
    teacher.load_state_dict(weights, assign=True)  # keeps the dtype of each tensor
    found = teacher.fingerprint()
    if found != card.fingerprint:
        raise IntegrityError(
            f"weights and config.json do not belong together: config.json has fingerprint {card.fingerprint}, "
            f"and the loaded teacher {found}",
            where=str(folder),
            fix="save the teacher again, or copy all files of the artefact",
        )
    return teacher.eval()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the artefact, from one file or from those of its index."""
    if not (folder / INDEX).exists():
        if not (folder / WEIGHTS).exists() and any(folder.glob("model-*-of-*.safetensors")):
            raise IntegrityError(
                "the index of the weights is absent, and they lie in several files",
                where=str(folder / INDEX),
                fix=_AGAIN,
            )
        return load_weights(folder / WEIGHTS, _AGAIN)
    try:
        homes: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        files = sorted(set(homes.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError("it names a file outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the index of the weights cannot be read: {error}", where=str(folder / INDEX), fix=_AGAIN
        ) from error
    return {name: part for file in files for name, part in load_weights(folder / file, _AGAIN).items()}


def _require_match(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], folder: Path) -> None:
    misshapen = [
        f"{name} is {list(given[name].shape)} and must be {list(part.shape)}"
        for name, part in wanted.items()
        if name in given and given[name].shape != part.shape
    ]
    faults = {
        "lack": [name for name in wanted if name not in given],
        "hold unknown": [name for name in given if name not in wanted],
        "have other shapes:": misshapen,
    }
    found = [f"{verb} {_few(names)}" for verb, names in faults.items() if names]
    if found:
        raise IntegrityError(
            "the weights do not fit config.json: they " + "; they ".join(found),
            where=str(folder),
            fix="save the teacher again, or copy all files of the artefact",
        )


def _few(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _require_description(component: str, config: Any, tasks: Sequence[str]) -> None:
    """Refuse what ``config.json`` could not say, or what would be loaded as something else."""
    wanted = installed().get("teacher", component).component.config
    if not isinstance(config, wanted):
        raise UsageError(
            f"the configuration of a teacher {component!r} is a {wanted.__name__}, not {config!r}",
            where="save_teacher",
            fix="give config= the object that the teacher was built with",
        )
    if isinstance(tasks, str) or not tasks:
        raise UsageError(
            f"tasks must be one name or more, got {tasks!r}", where="save_teacher", fix='write tasks=("click",)'
        )


def _bytes(size: int | str) -> int:
    """``"5GB"`` or a number as bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|KB|MB|GB|TB)", str(size), flags=re.IGNORECASE)
    number = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if number < 1:
        raise UsageError(
            f"max_shard_size must be a number of bytes above 0, got {size!r}",
            where="save_teacher",
            fix="write for example '5GB' or '500MB'",
        )
    return number


def _require_room(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UsageError("this is a file, and a teacher is a folder", where=str(folder), fix="name another folder")
    if not overwrite:
        raise UsageError(
            "the folder is not empty",
            where=str(folder),
            fix="name another folder, or replace an earlier artefact with --overwrite (overwrite=True in Python)",
        )
    try:
        read_card(folder)
    except (UsageError, IntegrityError) as error:
        raise UsageError(
            "the folder holds no teacher of recdistill, and only such a folder is replaced",
            where=str(folder),
            fix="name another folder",
        ) from error
