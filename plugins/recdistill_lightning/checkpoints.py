"""Checkpoints that every process writes its part of, and that any number of processes reads again.

A checkpoint is a folder: the tensors of weights and optimisers as safetensors, a file per process, and ``meta.pt`` with
the rest (step, epoch, callbacks, what was trained on). Nothing in it can run code: ``meta.pt`` is read by
``torch.load(weights_only=True)``, and torch's own index of such a folder, which is a pickle, is not written.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from recdistill_core.errors import IntegrityError
from recdistill_core.files import sync, sync_tree, usual_mode
from recdistill_core.ranks import rank_and_world

META = "meta.pt"
#: Differences between a checkpoint and the model at hand that an error lists.
MOST_TOLD = 5
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_sharded(path: Path, module: nn.Module, optimizers: Sequence[Optimizer], rest: Mapping[str, Any]) -> None:
    """Write a checkpoint; the folder ``path`` is there whole or not at all. All processes must call it.

    An earlier one of that name stays as ``.NAME.old`` until the new one is in its place.

    Args:
        path: the same in every process, on a file system that all of them see; replaced where it exists.
        module: the model, sharded or not. optimizers: its optimisers.
        rest: tensors and plain values; those of the first process are kept.
    """
    first = rank_and_world()[0] == 0
    scratch = path.with_name(f".{path.name}.part")
    if first:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    _wait()
    tensors, values = _parts(module, optimizers)
    writer = HuggingFaceStorageWriter(str(scratch), save_distributed=True)
    with _quiet():
        save(tensors, storage_writer=writer)
    _wait()
    if first:
        for file in scratch.iterdir():
            usual_mode(file)
        sizes = {file.name: file.stat().st_size for file in scratch.iterdir()}
        torch.save({"rest": dict(rest), "values": values, "files": sizes}, scratch / META)
        sync_tree(scratch)
        earlier = path.with_name(f".{path.name}.old")
        if path.is_dir():
            shutil.rmtree(earlier, ignore_errors=True)
            path.replace(earlier)
        scratch.replace(path)
        sync(path.parent)
        shutil.rmtree(earlier, ignore_errors=True)
    _wait()


def load_sharded(path: Path, module: nn.Module, optimizers: Sequence[Optimizer] = ()) -> dict[str, Any]:
    """Read a checkpoint into a model and its optimisers, sharded or not; returns the ``rest`` of :func:`save_sharded`.

    All processes must call it; they need not be as many as have written it.

    Raises:
        IntegrityError: if it is damaged or incomplete, or of another model.
    """
    if not path.is_dir():
        raise _damaged(path, "there is no such folder")
    meta = _meta(path)
    for name, size in meta["files"].items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise _damaged(path, f"{name} is absent or was cut off")
    tensors, values = _parts(module, optimizers)
    try:
        reader = HuggingFaceStorageReader(str(path))
        found = reader.read_metadata().state_dict_metadata
        saved = {name: list(part.size) for name, part in found.items() if isinstance(part, TensorStorageMetadata)}
        _require_match(path, saved, {name: list(part.shape) for name, part in tensors.items()})
        with _quiet():
            load(tensors, storage_reader=reader)
    except (CheckpointException, safetensors.SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise _damaged(path, f"its tensors cannot be read: {' '.join(str(error).split())[:300]}") from error
    values = {**values, **meta["values"]}
    set_model_state_dict(module, _under("model.", tensors))
    for number, optimizer in enumerate(optimizers):
        state = _under(f"optimizer{number}.", {**tensors, **values})
        set_optimizer_state_dict(module, optimizer, state, options=FLAT)
    rest: dict[str, Any] = meta["rest"]
    return rest


def _parts(module: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of model and optimisers, by one flat name each."""
    found: dict[str, Any] = {f"model.{name}": value for name, value in get_model_state_dict(module).items()}
    for number, optimizer in enumerate(optimizers):
        state = get_optimizer_state_dict(module, optimizer, options=FLAT)
        found |= {f"optimizer{number}.{name}": value for name, value in state.items()}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in found.items() if name not in tensors}


def _require_match(path: Path, saved: Mapping[str, list[int]], here: Mapping[str, list[int]]) -> None:
    """Refuse another model: torch would read the tensors of equal names, and leave out what is saved beyond them."""
    beyond = [name for name in saved if name not in here and name.startswith("model.")]
    faults = [
        *(f"it has no {_plain(name)}" for name in here if name not in saved),
        *(f"the model here has no {_plain(name)}" for name in beyond),
        *(
            f"{_plain(name)} is {saved[name]} there and {size} here"
            for name, size in here.items()
            if name in saved and saved[name] != size
        ),
    ]
    if faults:
        more = f"; and {len(faults) - MOST_TOLD} more" if len(faults) > MOST_TOLD else ""
        raise _damaged(path, f"it is of another model: {'; '.join(faults[:MOST_TOLD])}{more}")


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _under(prefix: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose name starts with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def _meta(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(path / META, map_location="cpu", weights_only=True)
        if not {"rest", "values", "files"} <= found.keys():
            raise ValueError("it was written by something else")
        return found
    except pickle.UnpicklingError as error:  # torch's text says to read it without weights_only, which runs its code
        raise _damaged(
            path, f"{META} cannot be read: it holds more than tensors and plain values, or is cut off"
        ) from error
    except Exception as error:  # a damaged pickle raises what it likes
        raise _damaged(path, f"{META} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the sharded checkpoint cannot be used: {what}",
        where=str(path),
        fix="go on from an earlier checkpoint, or, if it is of another model, build the model that it was saved from",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that there is one process; it has no other way to be told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _wait() -> None:
    if rank_and_world()[1] > 1:
        distributed.barrier()
