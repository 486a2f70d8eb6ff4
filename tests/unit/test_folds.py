"""Folds: every row is labelled by a copy that its label cannot have reached."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import DataError, UsageError
from recdistill_lightning.folds import make_folds
from recdistill_lightning.trained import TrainedExamples


def dataset(users: list[int], times: list[int]) -> Any:
    """What folds read of a source."""
    columns = {
        "example_id": 100 + np.arange(len(users)),
        "user_id": np.array(users, np.int64),
        "event_time": np.array(times, np.int64),
    }
    return SimpleNamespace(num_rows=len(users), column=columns.__getitem__)


feeds = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(0, 6), min_size=count, max_size=count),
        st.lists(st.integers(0, 25), min_size=count, max_size=count).map(sorted),
        st.integers(0, count - 1),
    )
)


@settings(deadline=None)
@given(feeds, st.integers(1, 5), st.sampled_from(["user", "time"]), st.integers(0, 3))
def test_no_label_can_have_reached_the_copy_that_scores_it(
    feed: tuple[list[int], list[int], int], count: int, by: str, seed: int
) -> None:
    users, times, first = feed
    source, rows = dataset(users, times), (first, len(users))
    try:
        folds = make_folds(source, rows, count, by, seed)
    except (DataError, UsageError):
        return
    assert len(folds) == count
    scored = np.concatenate([fold.score for fold in folds])
    assert np.unique(scored).size == scored.size  # a row has one label
    for fold in folds:
        assert fold.train.any()
        assert fold.score.size
        assert not fold.train[:first].any()
        trained = TrainedExamples(source.column("example_id")[fold.train])
        assert not trained.reached(source, fold.score).any()
        # said otherwise: neither the row nor a later row of its user was trained on
        for row in fold.score:
            later = [i for i in range(len(users)) if users[i] == users[row] and times[i] > times[row]]
            assert not fold.train[[int(row), *later]].any()
    if by == "user":
        assert sorted(scored) == list(range(*rows))
        for fold in folds:
            assert fold.train.sum() + fold.score.size == rows[1] - rows[0]
    else:
        moment = source.column("event_time")
        for fold in folds:
            assert moment[fold.train].max() < moment[fold.score].min()
        assert sorted(scored) == list(range(int(scored.min()), rows[1]))


def test_blocks_of_time_are_about_equal_and_chained() -> None:
    source = dataset([1] * 100, list(range(100)))
    folds = make_folds(source, (0, 100), 4, "time", 0)
    assert [(int(fold.train.sum()), fold.score.size) for fold in folds] == [(20, 20), (40, 20), (60, 20), (80, 20)]


def test_users_are_spread_evenly_and_by_the_seed() -> None:
    source = dataset(list(range(50)) * 2, list(range(100)))
    one, two, again = (make_folds(source, (0, 100), 5, "user", seed) for seed in (1, 2, 1))
    assert [fold.score.size for fold in one] == [20] * 5
    assert all(np.array_equal(a.score, b.score) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a.score, b.score) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("count", "by", "error", "text"),
    [
        (3, "week", UsageError, "folds are made by user or time, not by 'week'"),
        (1, "user", UsageError, "folds by user need a count of at least 2, got 1"),
        (0, "time", UsageError, "folds by time need a count of at least 1, got 0"),
        (3, "user", DataError, "2 users cannot be cut into 3 folds"),
        (3, "time", DataError, "too few moments to be cut into 4 blocks of time"),
    ],
)
def test_refusals(count: int, by: str, error: type[Exception], text: str) -> None:
    source = dataset([1, 2, 1, 2], [5, 5, 5, 6])
    with pytest.raises(error, match=text):
        make_folds(source, (0, 4), count, by, 0)


def test_what_has_reached_a_teacher() -> None:
    source = dataset([1, 1, 2, 1, 2, 1], [0, 1, 1, 1, 2, 3])
    trained = TrainedExamples(source.column("example_id")[[1, 4]])
    # row 0 is in the history of row 1; row 3 shares its moment, so that no history holds it; row 2 precedes row 4
    assert trained.reached(source, np.arange(6)).tolist() == [True, True, True, False, True, False]
    assert trained.until(source) == 2
    assert TrainedExamples().until(source) is None
    assert not TrainedExamples().reached(source, np.arange(6)).any()
