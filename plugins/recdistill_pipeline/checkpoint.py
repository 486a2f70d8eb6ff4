"""Weights on disk: safetensors, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from recdistill_core.errors import DataError, IntegrityError

PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".bin"}


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; tensors that share memory are written one by one."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    safetensors.torch.save_file(plain, path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        DataError: for a pickle, which could run code when loaded. IntegrityError: for an absent or damaged file.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise IntegrityError(
            f"the checkpoint cannot be read: {error.strerror}", where=str(path), fix="train again, or restore the file"
        ) from error
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
        raise IntegrityError(
            f"the checkpoint is damaged: {error}", where=str(path), fix="train again, or restore the file"
        ) from error


def restore(module: nn.Module, path: Path) -> None:
    """Load weights into a module; every name and shape must match.

    Raises:
        IntegrityError: where they do not.
    """
    try:
        module.load_state_dict(load_weights(path), strict=True)
    except RuntimeError as error:
        raise IntegrityError(
            f"the checkpoint does not fit the model: {' '.join(str(error).split())[:500]}",
            where=str(path),
            fix="use the configuration that the checkpoint was trained with",
        ) from error
