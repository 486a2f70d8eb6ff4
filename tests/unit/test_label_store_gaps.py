"""Where a dataset has no labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_store_cases import DAY, T, filled, open_writer, put

from recdistill_core.errors import DataError, UsageError


def test_gaps_by_time_and_day(tmp_path: Path) -> None:
    store = filled(tmp_path, [0, 1, 4, 5, 9])
    with open_writer(store, "v2") as writer:
        put(writer, [2])
        writer.commit()
    order = np.random.default_rng(0).permutation(10)
    ids, times = np.arange(10)[order], (T + np.arange(10) * DAY // 4)[order]
    gaps = store.gaps(["v1"], ids, times)
    assert (gaps.rows, gaps.missing, gaps.coverage) == (10, 5, 0.5)
    quarter = DAY // 4
    assert [(gap.first, gap.last, gap.rows) for gap in gaps.gaps] == [
        (T + 2 * quarter, T + 3 * quarter, 2),
        (T + 6 * quarter, T + 8 * quarter, 3),
    ]
    # the first event is on 2023-11-14 at 22:13
    assert [(day.day, day.rows, day.missing) for day in gaps.days] == [
        ("2023-11-15", 4, 2),
        ("2023-11-16", 4, 3),
    ]
    both = store.gaps(["v1", "v2"], ids, times, min_rows=2)
    assert (both.missing, [gap.rows for gap in both.gaps]) == (4, [3])
    store.revoke("v1", reason="x")
    assert store.gaps(["v1"], ids, times).missing == 10
    nothing = store.gaps(["v1"], ids[:0], times[:0])
    assert (nothing.coverage, nothing.gaps, nothing.days) == (1.0, (), ())


def test_gaps_need_a_version_that_is_there(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(UsageError, match="gaps need at least one teacher version"):
        store.gaps([], np.arange(3), np.arange(3))
    with pytest.raises(DataError, match="has no version 'v2'"):
        store.gaps(["v2"], np.arange(3), np.arange(3))
