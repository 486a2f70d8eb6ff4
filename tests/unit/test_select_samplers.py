"""Samplers choose what they say, by the seed alone, and K-Center-Greedy is the greedy of the books."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recdistill_core.errors import DataError, UsageError
from recdistill_core.sampler import Candidates
from recdistill_select import KCenterConfig, UncertaintyConfig
from recdistill_select.k_center import KCenterSampler, farthest_first
from recdistill_select.points import deal, prepared
from recdistill_select.samplers import RandomSampler, UncertaintySampler


def candidates(embedding: Any, **logits: Any) -> Candidates:
    rows = np.asarray(embedding, np.float32)
    count = np.arange(len(rows), dtype=np.int64)
    return Candidates(100 + count, count, count % 3, rows, {k: np.asarray(v, np.float32) for k, v in logits.items()})


def cloud(rows: int, width: int = 3, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def with_logits(rows: int, seed: int = 0) -> Candidates:
    return candidates(cloud(rows), click=np.random.default_rng(seed).normal(size=rows))


def test_random_draws_others_under_another_seed_and_begins_alike_under_one() -> None:
    found, sampler = with_logits(50), RandomSampler()
    most = sampler.select(found, 40, 7)
    assert sorted(set(most.tolist())) == sorted(most.tolist())
    assert (sampler.select(found, 10, 7) == most[:10]).all()
    assert (sampler.select(found, 40, 8) != most).any()


def test_uncertainty_takes_the_probabilities_nearest_to_the_centre() -> None:
    probability = np.array([0.9, 0.5, 0.1, 0.3, 0.65, 0.2])
    found = candidates(cloud(6), click=np.log(probability / (1 - probability)))
    assert UncertaintySampler(UncertaintyConfig()).select(found, 3, 0).tolist() == [1, 4, 3]
    assert UncertaintySampler(UncertaintyConfig(centre=0.2)).select(found, 3, 0).tolist() == [5, 3, 2]


def test_uncertainty_looks_at_the_task_it_is_told() -> None:
    found = candidates(cloud(3), click=[0.0, 5.0, 5.0], like=[5.0, 5.0, 0.0])
    assert UncertaintySampler(UncertaintyConfig()).select(found, 1, 0).tolist() == [0]
    assert UncertaintySampler(UncertaintyConfig(task="like")).select(found, 1, 0).tolist() == [2]


def test_uncertainty_breaks_ties_by_the_seed() -> None:
    found = candidates(cloud(30), click=np.zeros(30))
    sampler = UncertaintySampler(UncertaintyConfig())
    choices = {tuple(sampler.select(found, 5, seed).tolist()) for seed in (1, 1, 2, 3)}
    assert len(choices) == 3


@given(st.integers(1, 60), st.floats(0, 0.95), st.integers(0, 5))
def test_uncertainty_mixes_in_random_ones_evenly(budget: int, share: float, seed: int) -> None:
    found = with_logits(60)
    plain = UncertaintySampler(UncertaintyConfig()).select(found, 60, seed)
    mixed = UncertaintySampler(UncertaintyConfig(random_share=share)).select(found, budget, seed)
    assert len(set(mixed.tolist())) == budget
    drawn = round(share * budget)
    first = set(plain[: budget - drawn].tolist())
    among = np.array([row in first for row in mixed.tolist()])
    assert among.sum() == budget - drawn
    expected = np.arange(1, budget + 1) * (budget - drawn) / budget
    assert np.abs(np.cumsum(among) - expected).max() <= 1.0


def greedy(points: NDArray[np.float64], count: int, first: int) -> list[int]:
    """The plain one: all distances again at every step."""
    chosen = [first]
    while len(chosen) < count:
        nearest = [min(np.sum((x - points[c]) ** 2) for c in chosen) for x in points]
        chosen.append(max((i for i in range(len(points)) if i not in chosen), key=lambda i: nearest[i]))
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_farthest_first_is_the_plain_greedy(seed: int) -> None:
    points = cloud(40, 4, seed)
    assert farthest_first(points, 25, seed).tolist() == greedy(points.astype(np.float64), 25, seed)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=8), st.integers(1, 4), st.data()
)
def test_one_part_is_at_most_twice_as_wide_as_the_best_choice(
    places: list[tuple[int, int]], budget: int, data: st.DataObject
) -> None:
    points, budget = np.array(places, np.float64), min(budget, len(places))
    sampler = KCenterSampler(KCenterConfig(standardise=False, partition_rows=0))
    chosen = sampler.select(candidates(points), budget, data.draw(st.integers(0, 99)))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)

    def radius(rows: Any) -> float:
        return float(distance[:, list(rows)].min(axis=1).max())

    best = min(radius(rows) for rows in combinations(range(len(points)), budget))
    assert radius(chosen) <= 2 * best + 1e-4


def test_k_center_covers_small_groups_that_random_misses() -> None:
    points = np.concatenate([np.zeros((190, 2)), np.full((5, 2), 8.0), np.full((5, 2), -8.0)]) + 0.1 * cloud(200, 2)
    group = np.repeat([0, 1, 2], [190, 5, 5])
    chosen = KCenterSampler(KCenterConfig()).select(candidates(points), 3, 0)
    assert set(group[chosen].tolist()) == {0, 1, 2}


def test_equal_examples_are_chosen_once_each_and_last() -> None:
    points = np.repeat(cloud(5, 3), 4, axis=0)
    chosen = KCenterSampler(KCenterConfig(standardise=False)).select(candidates(points), 20, 1)
    assert sorted(chosen.tolist()) == list(range(20))
    assert len({row // 4 for row in chosen[:5].tolist()}) == 5


def test_the_unit_of_a_column_counts_only_without_standardising() -> None:
    points = cloud(60, 3)
    scaled = points * np.array([1000.0, 1.0, 1.0], np.float32)

    def chosen(rows: Any, standardise: bool) -> list[int]:
        return KCenterSampler(KCenterConfig(standardise=standardise)).select(candidates(rows), 12, 3).tolist()

    assert chosen(points, True) == chosen(scaled, True)
    assert chosen(points, False) != chosen(scaled, False)


def test_a_constant_column_counts_nothing() -> None:
    points = cloud(60, 3)
    wider = np.concatenate([points, np.full((60, 1), 123.456, np.float32)], axis=1)
    ready = prepared(wider, 60, True, "here")
    assert (ready[:, 3] == 0).all()
    assert np.allclose(ready[:, :3].std(axis=0), 1, atol=1e-5)


@given(st.integers(1, 200), st.integers(2, 60), st.integers(0, 3))
def test_parts_are_all_rows_and_none_is_too_large(rows: int, most: int, seed: int) -> None:
    parts = deal(rows, most, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)


@settings(deadline=None)
@given(st.integers(10, 120), st.floats(0.05, 1.0), st.integers(0, 3))
def test_every_part_gets_its_share_from_the_first_to_the_last(rows: int, share: float, seed: int) -> None:
    budget = max(1, int(share * rows))
    chosen = KCenterSampler(KCenterConfig(partition_rows=25)).select(candidates(cloud(rows)), budget, seed)
    assert len(set(chosen.tolist())) == budget
    parts = deal(rows, 25, np.random.default_rng(seed))
    owner = np.empty(rows, np.int64)
    for place, part in enumerate(parts):
        owner[part] = place
    for place, part in enumerate(parts):
        expected = np.arange(1, budget + 1) * len(part) / rows
        assert np.abs(np.cumsum(owner[chosen] == place) - expected).max() <= 2.0


def test_k_center_tells_how_far_it_is_and_repeats_itself() -> None:
    told: list[tuple[int, int]] = []
    sampler = KCenterSampler(KCenterConfig(partition_rows=20), lambda done, total: told.append((done, total)))
    first = sampler.select(candidates(cloud(60)), 30, 5)
    assert told == [(10, 30), (20, 30), (30, 30)]
    assert (sampler.select(candidates(cloud(60)), 30, 5) == first).all()
    assert (sampler.select(candidates(cloud(60)), 30, 6) != first).any()


@pytest.mark.parametrize(
    ("config", "settings", "text"),
    [
        (UncertaintyConfig, {"centre": 0.0}, "centre must lie in (0, 1), got 0.0"),
        (UncertaintyConfig, {"random_share": 1.0}, "random_share must lie in [0, 1), got 1.0"),
        (KCenterConfig, {"partition_rows": 1}, "partition_rows must be 0 or at least 2, got 1"),
        (KCenterConfig, {"partition_rows": -4}, "partition_rows must be 0 or at least 2, got -4"),
    ],
)
def test_settings_out_of_range_are_refused(config: Any, settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        config(**settings)
    assert str(caught.value) == text


def test_uncertainty_needs_the_task_and_finite_logits() -> None:
    with pytest.raises(UsageError, match="no logits of task 'clik' \\(did you mean 'click'\\?\\)") as unknown:
        UncertaintySampler(UncertaintyConfig(task="clik")).select(with_logits(4), 2, 0)
    assert "tasks: click" in str(unknown.value)
    broken = candidates(cloud(3), click=[0.0, np.nan, np.inf])
    with pytest.raises(DataError, match="2 logits of the cheap model are not finite") as infinite:
        UncertaintySampler(UncertaintyConfig()).select(broken, 2, 0)
    assert "example 101" in str(infinite.value)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e16, -1e16])
@pytest.mark.parametrize("standardise", [True, False])
def test_k_center_needs_numbers_that_it_can_square(number: float, standardise: bool) -> None:
    points = cloud(5)
    points[3, 1] = number
    with pytest.raises(DataError, match=r"holds numbers that are not finite or not below 1e\+15") as caught:
        KCenterSampler(KCenterConfig(standardise=standardise)).select(candidates(points), 2, 0)
    assert "sampler 'k_center', row 3" in str(caught.value)
    points[3, 1] = 9e14
    assert 3 in KCenterSampler(KCenterConfig(standardise=False)).select(candidates(points), 2, 0)


def test_k_center_needs_an_embedding_of_every_example() -> None:
    with pytest.raises(DataError, match=r"the embedding has shape \[5, 0\] for 5 examples"):
        KCenterSampler(KCenterConfig()).select(candidates(np.zeros((5, 0))), 2, 0)
