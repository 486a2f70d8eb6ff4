"""Full ranking against cases worked out by hand and against a naive ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill_core.errors import DataError
from recdistill_gpsd.ranking import as_plain, full_ranking, per_user, ranks, summarise

SCORES = torch.tensor([[9.0, 0.5, 0.9, 0.1, 0.7], [0.0, 0.2, 0.2, 0.2, 0.1]])


def test_ranks_by_hand() -> None:
    # row 0: item 2 is the best, item 4 the second; column 0 is no candidate, however high it scores
    assert ranks(SCORES, torch.tensor([4, 4])).tolist() == [2.0, 4.0]
    assert ranks(SCORES, torch.tensor([2, 1])).tolist() == [1.0, 3.0]  # items 2 and 3 tie with item 1
    assert ranks(SCORES, torch.tensor([2, 1]), ties="average").tolist() == [1.0, 2.0]


def test_seen_items_are_no_candidates_but_the_target_always_is() -> None:
    seen = (torch.tensor([0, 0, 1]), torch.tensor([2, 4, 3]))
    assert ranks(SCORES, torch.tensor([1, 1]), seen).tolist() == [1.0, 2.0]
    assert ranks(SCORES, torch.tensor([4, 3]), seen).tolist() == [1.0, 3.0]


def test_a_model_that_scores_all_alike_is_the_worst() -> None:
    assert ranks(torch.zeros(1, 101), torch.tensor([7])).tolist() == [100.0]
    assert ranks(torch.zeros(1, 101), torch.tensor([7]), ties="average").tolist() == [50.5]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[set[int]], str]:
    users, items = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    levels = st.integers(-3, 3)  # few levels: many ties
    score = np.array(draw(st.lists(st.lists(levels, min_size=items, max_size=items), min_size=users, max_size=users)))
    target = np.array(draw(st.lists(st.integers(1, items - 1), min_size=users, max_size=users)))
    seen = draw(st.lists(st.sets(st.integers(0, items - 1)), min_size=users, max_size=users))
    return score.astype(np.float32), target, seen, draw(st.sampled_from(["pessimistic", "average"]))


def naive(score: np.ndarray, target: int, seen: set[int], ties: str) -> float:
    rank = 1.0
    for item in range(1, len(score)):
        if item == target or item in seen:
            continue
        if score[item] > score[target]:
            rank += 1.0
        elif score[item] == score[target]:
            rank += 1.0 if ties == "pessimistic" else 0.5
    return rank


@given(rankings())
def test_ranks_equal_those_of_a_naive_ranking(case: tuple[np.ndarray, np.ndarray, list[set[int]], str]) -> None:
    score, target, seen, ties = case
    pairs = [(row, item) for row, items in enumerate(seen) for item in items]
    rows, items = (torch.tensor([pair[at] for pair in pairs], dtype=torch.long) for at in (0, 1))
    found = ranks(torch.from_numpy(score), torch.from_numpy(target), (rows, items), ties)
    assert found.tolist() == [naive(*row, ties) for row in zip(score, target, seen, strict=True)]


def test_metrics_by_hand() -> None:
    found = per_user(np.array([1.0, 3.0, 11.0]), cuts=(10,))
    assert found["hr@10"].tolist() == [1.0, 1.0, 0.0]
    assert found["ndcg@10"].tolist() == [1.0, 0.5, 0.0]  # 1 / log2(1 + 1) and 1 / log2(3 + 1)
    assert found["mrr"] == pytest.approx([1.0, 1 / 3, 1 / 11])
    assert per_user(np.array([10.0, 10.5]))["hr@10"].tolist() == [1.0, 0.0]
    assert per_user(np.array([50.0]))["ndcg@50"][0] == pytest.approx(1 / math.log2(51))


def test_a_ranking_in_parts_equals_the_whole() -> None:
    torch.manual_seed(0)
    query, table, target = torch.randn(7, 4), torch.randn(20, 4), torch.arange(1, 8)
    whole = full_ranking([(query, target, None)], table)
    parts = [(query[at : at + 3], target[at : at + 3], None) for at in range(0, 7, 3)]
    assert whole.tolist() == full_ranking(parts, table).tolist() == ranks(query @ table.T, target).tolist()
    assert full_ranking([], table).shape == (0,)


def test_intervals_surround_the_mean_and_are_reproducible() -> None:
    rank = np.random.default_rng(0).integers(1, 100, 400).astype(float)
    found = summarise(rank, resamples=200)
    assert list(found) == ["hr@10", "ndcg@10", "hr@50", "ndcg@50", "hr@200", "ndcg@200", "mrr"]
    assert found["hr@10"].value == np.mean(rank <= 10)
    for name in ("hr@10", "ndcg@50", "mrr"):
        assert found[name].low < found[name].value < found[name].high, name
    # the width is that of the normal approximation
    p = found["hr@10"].value
    assert found["hr@10"].high - found["hr@10"].low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 400), rel=0.2)
    assert as_plain(found) == as_plain(summarise(rank, resamples=200))
    assert (found["hr@200"].low, found["hr@200"].high) == (1.0, 1.0)


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(DataError, match=r"a score is NaN or infinite\n  where: full ranking\n  to do: train with"):
        ranks(torch.tensor([[0.0, math.nan]]), torch.tensor([1]))
    with pytest.raises(DataError, match=r"targets reach from 0 to 1; items are 1 to 1\n(.|\n)*leave targets"):
        ranks(torch.zeros(2, 2), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"there is no user to rank for\n(.|\n)*hold out less"):
        summarise(np.zeros(0))
    with pytest.raises(ValueError, match="ties must be one of pessimistic, average, got 'best'"):
        ranks(SCORES, torch.tensor([1, 1]), ties="best")
