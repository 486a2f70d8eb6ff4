"""Labels by id: the same answers whether ids lie close together or anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from recdistill_parquet.labels_index import KeyIndex, _Buckets, _Span

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def rows_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([ids, ids ^ 5], axis=1)


def made(ids: NDArray[np.int64]) -> KeyIndex:
    index = KeyIndex(2)
    assert index.add(rows_of(ids)).size == 0
    return index


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (np.arange(100)[::-1] - 50, _Span),
        (np.delete(np.arange(1000), [3, 500, 998]), _Span),  # with holes
        (np.arange(LOWEST, LOWEST + 40), _Span),
        (np.arange(HIGHEST - 40, HIGHEST), _Span),
        (np.array([7]), _Span),
        (np.arange(100) * 2, _Buckets),
        (np.array([LOWEST, HIGHEST]), _Buckets),
    ],
)
def test_ids_are_found_and_others_are_not(ids: NDArray[np.int64], kind: type) -> None:
    index = made(ids)
    assert [type(level) for level in index._levels] == [kind]
    near = np.concatenate([ids, ids + 1, ids - 1, [LOWEST, HIGHEST, 0]])  # those at the ends wrap around
    known, rows = index.find(near)
    assert known.tolist() == np.isin(near, ids).tolist()
    assert np.array_equal(rows[known], rows_of(near[known]))


@pytest.mark.parametrize("ids", [np.arange(50), np.arange(50) * 1000])
def test_doubles_are_named_in_one_call_and_between_calls(ids: NDArray[np.int64]) -> None:
    assert KeyIndex(2).add(rows_of(np.concatenate([ids, ids[[4, 9, 4]]]))).tolist() == ids[[4, 9]].tolist()
    assert made(ids).add(rows_of(ids[[9, 30]])).tolist() == ids[[9, 30]].tolist()


def test_levels_are_merged_and_may_change_their_kind() -> None:
    index = made(np.arange(0, 1000))
    index.add(rows_of(np.arange(10**6, 10**6 + 100)))
    assert [type(level) for level in index._levels] == [_Span, _Span]
    index.add(rows_of(np.arange(2 * 10**6, 2 * 10**6 + 900)))
    assert [(type(level), level.count) for level in index._levels] == [(_Buckets, 2000)]
    index.add(rows_of(np.arange(1000, 1100)))
    ids = np.concatenate([np.arange(1100), [10**6, 10**6 + 99, 2 * 10**6 + 899], [1100, 10**6 + 100, -1]])
    known, rows = index.find(ids)
    assert known.tolist() == [True] * 1103 + [False] * 3
    assert np.array_equal(rows[known], rows_of(ids[:1103]))
    assert len(index) == 2100
