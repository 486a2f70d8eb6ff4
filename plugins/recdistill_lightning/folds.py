"""Folds of the training rows, for a teacher whose every label comes from a copy that has not seen the row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import SampleSource

FOLDS_BY = ("user", "time")


@dataclass(frozen=True)
class Fold:
    """One copy of the teacher.

    Attributes:
        train: ``[rows of the dataset]`` bool: what this copy is trained on.
        score: ``[R]`` int64 ascending row positions: what it labels, none of which can have reached it.
    """

    train: NDArray[np.bool_]
    score: NDArray[np.int64]


def make_folds(source: SampleSource, rows: tuple[int, int], count: int, by: str, seed: int) -> list[Fold]:
    """Cut the training rows into folds.

    Args:
        source: the dataset. rows: ``[first, last + 1)``, the training rows.
        count: of folds, >= 2 by user, >= 1 by time.
        by: ``user``: every user is in one of ``count`` folds; a copy is trained on all rows of the users of the other
            folds, later ones included, and labels every row of its own. ``time``: the rows are cut into ``count`` + 1
            blocks of about one size; a copy is trained on all blocks before its own (forward chaining), and the first
            block has no label.
        seed: of the users' folds.

    Raises:
        UsageError: for settings outside these. DataError: if there are too few users or moments for that many folds.
    """
    if by not in FOLDS_BY:
        raise UsageError(f"folds are made by {' or '.join(FOLDS_BY)}, not by {by!r}", where="make_folds")
    least = 2 if by == "user" else 1
    if count < least:
        raise UsageError(f"folds by {by} need a count of at least {least}, got {count}", where="make_folds")
    return _by_user(source, rows, count, seed) if by == "user" else _by_time(source, rows, count)


def _by_user(source: SampleSource, rows: tuple[int, int], count: int, seed: int) -> list[Fold]:
    present, place = np.unique(source.column("user_id")[rows[0] : rows[1]], return_inverse=True)
    if present.size < count:
        raise DataError(
            f"{present.size} users cannot be cut into {count} folds",
            where=f"training rows {rows[0]} to {rows[1]}",
            fix="ask for fewer folds, or make them by time",
        )
    turn = np.random.default_rng([seed, count]).permutation(present.size) % count
    fold = turn[place]
    return [_fold(source, rows, fold != number, fold == number) for number in range(count)]


def _by_time(source: SampleSource, rows: tuple[int, int], count: int) -> list[Fold]:
    first, last = rows
    times = source.column("event_time")[first:last]
    wanted = np.linspace(0, last - first, count + 2).astype(np.int64)[1:-1]
    # rows of one moment stay in one block
    cuts = np.unique(np.searchsorted(times, times[np.minimum(wanted, times.size - 1)], side="left"))
    if cuts.size < count or (cuts.size and cuts[0] == 0):
        raise DataError(
            f"the training rows lie at too few moments to be cut into {count + 1} blocks of time",
            where=f"training rows {first} to {last}",
            fix="ask for fewer folds, or make them by user",
        )
    ends = [*cuts[1:], last - first]
    place = np.arange(last - first)
    return [
        _fold(source, rows, place < start, (place >= start) & (place < end))
        for start, end in zip(cuts, ends, strict=True)
    ]


def _fold(source: SampleSource, rows: tuple[int, int], train: NDArray[np.bool_], score: NDArray[np.bool_]) -> Fold:
    """A fold from masks ``[last - first]`` over the training rows."""
    whole = np.zeros(source.num_rows, np.bool_)
    whole[rows[0] : rows[1]] = train
    return Fold(whole, rows[0] + np.flatnonzero(score))
