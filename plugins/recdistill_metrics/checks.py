"""What a metric refuses. One set of checks for numpy arrays and torch tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError


def check_rows(logit: Any, label: Any, user: Any, where: str) -> None:
    """Refuse what would give a plausible wrong number.

    Args:
        logit: ``[N]`` array or tensor, before the sigmoid. label: ``[N]`` of 0 and 1. user: ``[N]`` or None.
        where: the metric, for the message.

    Raises:
        DataError: for shapes other than ``[N]``, non-finite logits and labels other than 0 and 1.
    """
    shapes = [tuple(entry.shape) for entry in (logit, label, user) if entry is not None]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise DataError(
            f"logit, label and user must have one shape [N], got {', '.join(str(list(shape)) for shape in shapes)}",
            where=where,
            fix="flatten the predictions and pass one label and one user per row",
        )
    _refuse(~(abs(logit) < math.inf), logit, "logit", "is NaN or infinite", where, "look for divergence in training")
    wrong = (label != 0) & (label != 1)
    _refuse(wrong, label, "label", "is neither 0 nor 1", where, "evaluate on logged labels, not on soft targets")


def check_arrays(logit: NDArray[Any], label: NDArray[Any], user: NDArray[Any], where: str) -> None:
    """:func:`check_rows`, and at least one row, and users in ``[0, U)``.

    Raises:
        DataError: as :func:`check_rows`; also for no rows and for negative users.
    """
    check_rows(logit, label, user, where)
    if logit.shape[0] == 0:
        raise DataError(
            "there are no rows to evaluate", where=where, fix="check the time range and the observed labels"
        )
    _refuse(user < 0, user, "user", "is negative", where, "number the users 0, 1, 2, ... (numpy.unique does)")


def per_user(weights: NDArray[np.float64], users: int, where: str) -> NDArray[np.float64]:
    """The first ``users`` of the user weights.

    Raises:
        DataError: if there are fewer weights than users.
    """
    if weights.ndim != 1 or weights.shape[0] < users:
        raise DataError(
            f"user weights have shape {list(weights.shape)} for {users} users",
            where=where,
            fix="pass one weight per user, ones for the plain value",
        )
    return weights[:users]


def _refuse(wrong: Any, column: Any, name: str, what: str, where: str, fix: str) -> None:
    if bool(wrong.any()):
        row = int((wrong * 1).argmax())
        count = int(wrong.sum())
        raise DataError(f"{name} {what}: {column[row]} in {count} rows", where=f"{where}, row {row}", fix=fix)
