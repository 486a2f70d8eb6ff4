"""Look into nested answers and batches: which tensors are there, and which of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """``{path: tensor or plain value}`` of nested mappings, sequences and dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    elif isinstance(value, list | tuple):
        value = {str(place): entry for place, entry in enumerate(value)}
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, entry in value.items():
            found |= leaves(entry, f"{path}.{key}" if path else str(key))
        return found
    return {path: value}


def snapshot(batch: Batch) -> dict[str, Any]:
    """A deep copy of a batch's leaves."""
    return {path: value.clone() if isinstance(value, Tensor) else value for path, value in leaves(batch).items()}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Paths at which two sets of leaves differ, bit for bit; NaN equals NaN."""
    return sorted(
        path
        for path in {*before, *after}
        if path not in before or path not in after or not _equal(before[path], after[path])
    )


def largest_gap(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference; infinite where shapes differ or a difference is NaN."""
    if one.shape != other.shape:
        return float("inf")
    gap = (one.double() - other.double()).abs()
    return float("inf") if bool(gap.isnan().any()) else float(gap.max()) if gap.numel() else 0.0


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            return False
        if one.device.type == "meta":  # tensors without data, which a component may have made to get away from the CPU
            return True
        if one.is_floating_point():
            return torch.equal(one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0)) and torch.equal(
                one.isnan(), other.isnan()
            )
        return torch.equal(one, other)
    if hasattr(one, "dtype") and hasattr(one, "tobytes"):  # numpy, which the core need not import to compare
        return bool(one.dtype == getattr(other, "dtype", None) and one.tobytes() == other.tobytes())
    return bool(one == other) or (one != one and other != other)
