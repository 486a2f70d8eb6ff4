"""Weights on disk: safetensors, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from recdistill_core.errors import DataError, IntegrityError
from recdistill_core.files import usual_mode
from recdistill_core.ranks import whole

PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".bin"}


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole ones also of a sharded model; those that share memory one by one."""
    plain = {name: whole(tensor).cpu().contiguous().clone() for name, tensor in weights.items()}
    safetensors.torch.save_file(plain, path, {"format": "pt"})  # which readers of the ecosystem ask for
    usual_mode(path)


def load_weights(path: Path, fix: str = "train again, or restore the file") -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file. fix: what to do where it is absent or damaged.

    Raises:
        DataError: for a pickle, which could run code when loaded. IntegrityError: for an absent or damaged file.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise IntegrityError(f"the checkpoint cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    # a safetensors file is 8 bytes of length and a JSON object; the length may look like a pickle's first byte
    if path.suffix in PICKLES or head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:] != b"{"):
        raise DataError(
            "the checkpoint is a pickle, which can run code when it is loaded",
            where=str(path),
            fix="save the weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"the checkpoint is damaged: {error}", where=str(path), fix=fix) from error
