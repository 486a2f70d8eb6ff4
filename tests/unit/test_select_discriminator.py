"""The discriminator asks other, earlier examples; a row's own outcome and the future never decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_select import discriminator, neighbours
from recdistill_select.discriminator import HOUR_MS, DiscriminatorConfig, Verdict, unreliable
from recdistill_select.neighbours import ABSENT, nearest
from recdistill_select.points import deal

ROWS = 48


class Log:
    """Rows of which several happen at one moment, some outcomes unobserved, some labels absent, some rows equal."""

    def __init__(self, seed: int, rows: int = ROWS) -> None:
        draw = np.random.default_rng(seed)
        self.time = np.sort(draw.integers(0, rows * 2 // 3, rows)).astype(np.int64) * HOUR_MS
        self.embedding = draw.normal(size=(rows, 2)).astype(np.float32)
        self.embedding[::7] = self.embedding[0]
        self.outcome = (draw.random(rows) < 0.4).astype(np.float64)
        self.outcome[draw.random(rows) < 0.1] = np.nan
        self.logit = draw.normal(size=rows) * 2
        self.logit[draw.random(rows) < 0.1] = np.nan

    def judged(self, config: DiscriminatorConfig, outcome: Any = None) -> Verdict:
        given = self.outcome if outcome is None else outcome
        return unreliable(self.logit, given, self.time, self.embedding, config, seed=3)


def same(one: Verdict, other: Verdict, rows: Any) -> None:
    for name in ("probability", "local_rate", "neighbours", "z", "rejected"):
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name)[rows], err_msg=name)


CONFIGS = [
    DiscriminatorConfig(neighbours=4, z=0.5),
    DiscriminatorConfig(neighbours=4, z=0.5, partition_rows=20),
    DiscriminatorConfig(neighbours=4, share=0.25),
    DiscriminatorConfig(neighbours=4, z=0.5, delay_hours=5.0),
    DiscriminatorConfig(neighbours=4, z=0.5, earlier_only=False),
    DiscriminatorConfig(neighbours=4, z=0.5, earlier_only=False, partition_rows=20),
]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(CONFIGS), st.integers(0, 40), st.integers(0, ROWS - 1), st.sampled_from([0.0, 1.0, np.nan]))
def test_a_rows_own_outcome_never_changes_its_verdict(
    config: DiscriminatorConfig, seed: int, row: int, value: float
) -> None:
    log = Log(seed)
    changed = log.outcome.copy()
    changed[row] = value
    same(log.judged(config), log.judged(config, changed), row)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(CONFIGS[:4]), st.integers(0, 40), st.integers(0, ROWS - 1))
def test_no_later_outcome_decides_what_an_earlier_row_learns(config: DiscriminatorConfig, seed: int, row: int) -> None:
    log = Log(seed)
    unknown = log.time >= log.time[row] - round(config.delay_hours * HOUR_MS)
    changed = np.where(unknown, 1.0 - log.outcome, log.outcome)
    changed[unknown & (np.arange(ROWS) % 5 == 0)] = np.nan
    earlier = log.time <= log.time[row]
    same(log.judged(config), log.judged(config, changed), earlier)


def test_outcomes_do_decide() -> None:
    """So that the tests above do not hold for want of any effect."""
    log = Log(0)
    for config in CONFIGS:
        before, after = log.judged(config), log.judged(config, 1.0 - log.outcome)
        assert (before.rejected != after.rejected).any(), config
        assert before.rejected.any(), config


def brute(points: Any, time: Any, usable: Any, count: int, delay: int | None) -> list[set[float]]:
    """Distances of the nearest usable rows of each row, the row itself left out."""
    found = []
    for row in range(len(points)):
        others = [o for o in range(len(points)) if usable[o] and o != row]
        if delay is not None:
            others = [o for o in others if time[o] < time[row] - delay]
        distance = sorted(float(np.sum((points[o].astype(np.float64) - points[row]) ** 2)) for o in others)
        found.append(distance[:count])
    return found


@pytest.mark.parametrize("delay", [None, 0, 3 * HOUR_MS])
@pytest.mark.parametrize("most", [0, 17])
def test_neighbours_are_the_nearest_of_their_part(
    delay: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)  # several chunks in a part
    log, count = Log(5), 6
    usable = ~np.isnan(log.outcome)
    found = nearest(log.embedding, log.time, usable, count, delay=delay, partition_rows=most, seed=9)
    for part in deal(ROWS, most, np.random.default_rng(9)):
        wanted = brute(log.embedding[part], log.time[part], usable[part], count, delay)
        for place, row in enumerate(part):
            near = found[row][found[row] != ABSENT]
            distance = np.sum((log.embedding[near].astype(np.float64) - log.embedding[row]) ** 2, axis=1)
            np.testing.assert_allclose(distance, wanted[place], atol=1e-5)
            assert row not in near
            assert set(near.tolist()) <= set(part.tolist())
            assert usable[near].all()


def test_the_local_rate_and_z_are_what_the_formula_says() -> None:
    """The fifth row has three earlier neighbours at its place, two of them positive, and one far away."""
    embedding = np.array([[0.0], [0.0], [0.0], [50.0], [0.0]], np.float32)
    outcome = np.array([1.0, 0.0, 1.0, 0.0, np.nan])
    logit = np.array([0.0, 0.0, 0.0, 0.0, 3.0])
    config = DiscriminatorConfig(neighbours=3, prior_rows=2.0, z=1.0, standardise=False)
    verdict = unreliable(logit, outcome, np.arange(5, dtype=np.int64), embedding, config)
    base = (2 + 0.5) / (4 + 1)
    rate = (2 + 2 * base) / (3 + 2)
    assert verdict.local_rate[4] == pytest.approx(rate)
    assert verdict.neighbours.tolist() == [0, 1, 2, 3, 3]
    probability = 1 / (1 + np.exp(-3))
    assert verdict.z[4] == pytest.approx((probability - rate) / np.sqrt(rate * (1 - rate) / (3 + 2 + 1)))
    assert verdict.local_rate[0] == 0.5  # nothing is known before the first row
    assert verdict.rejected.tolist() == [False, False, False, False, True]


def planted(rows: int = 4000, wrong: float = 0.05) -> tuple[NDArray[np.bool_], Verdict, Verdict]:
    """Two kinds of examples with rates .1 and .9, and a teacher that takes a few of one kind for the other."""
    draw = np.random.default_rng(1)
    kind = draw.integers(0, 2, rows)
    embedding = (kind[:, None] * 6 + draw.normal(size=(rows, 3))).astype(np.float32)
    outcome = (draw.random(rows) < np.where(kind == 1, 0.9, 0.1)).astype(np.float64)
    swapped = draw.random(rows) < wrong
    logit = np.where((kind == 1) ^ swapped, 2.2, -2.2)
    time = np.arange(rows, dtype=np.int64)
    by_z = unreliable(logit, outcome, time, embedding, DiscriminatorConfig(z=6.0))
    return swapped, by_z, unreliable(logit, outcome, time, embedding, DiscriminatorConfig(share=wrong))


def test_labels_that_are_wrong_of_their_kind_are_found() -> None:
    swapped, by_z, by_share = planted()
    assert by_z.rejected[swapped].mean() > 0.95
    assert by_z.rejected[~swapped].mean() < 0.01
    assert by_share.rejected.mean() == pytest.approx(0.05, abs=0.015)
    assert swapped[by_share.rejected].mean() > 0.8


def test_a_label_with_few_neighbours_or_none_at_all_is_kept() -> None:
    log = Log(2)
    log.logit[:] = np.where(np.isnan(log.logit), np.nan, 30.0)
    verdict = log.judged(DiscriminatorConfig(neighbours=10, z=0.01))
    few = verdict.neighbours < 10
    assert few.any()
    assert not verdict.rejected[few | np.isnan(verdict.z)].any()
    assert verdict.rejected[~few & ~np.isnan(verdict.z)].all()
    assert (np.isnan(verdict.z) == np.isnan(log.logit)).all()


def test_the_threshold_of_a_share_needs_enough_earlier_rows() -> None:
    size, judged = np.arange(100.0), np.ones(100, np.bool_)
    limit = discriminator._running_threshold(size, judged, np.arange(100, dtype=np.int64), 0.1)
    assert np.isinf(limit[:10]).all()
    assert limit[10] == pytest.approx(np.quantile(size[:10], 0.9))
    assert limit[99] == pytest.approx(np.quantile(size[:99], 0.9))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"neighbours": 0}, "neighbours must be >= 1, got 0"),
        ({"prior_rows": 0.0}, "prior_rows and z must be > 0, got prior_rows 0.0, z 3.0"),
        ({"z": -1.0}, "prior_rows and z must be > 0, got prior_rows 10.0, z -1.0"),
        ({"share": 1.0}, "share must lie in [0, 1), got 1.0"),
        ({"delay_hours": -1.0}, "delay_hours must be >= 0, got -1.0"),
        ({"partition_rows": 1}, "partition_rows must be 0 or at least 2, got 1"),
        (
            {"earlier_only": False, "share": 0.1},
            "share and delay_hours go by time, so they need earlier_only: true",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        DiscriminatorConfig(**settings)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"outcome": np.zeros(3)}, ["logits have shape [4], outcomes [3], times [4]", "give one of each per example"]),
        ({"event_time": np.array([0, 2, 1, 3])}, ["times are out of order", "row 2", "sort the examples"]),
        ({"outcome": np.array([0, 1, 0.5, 1])}, ["outcome 0.5 is neither 0 nor 1", "row 2", "NaN is not observed"]),
        ({"teacher_logit": np.array([0, np.inf, 0, 0])}, ["the teacher's logit is inf", "row 1", "give NaN where"]),
        ({"embedding": np.zeros((3, 2), np.float32)}, ["the embedding has shape [3, 2] for 4 examples"]),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], texts: list[str]) -> None:
    good: dict[str, Any] = {
        "teacher_logit": np.zeros(4),
        "outcome": np.zeros(4),
        "event_time": np.arange(4),
        "embedding": np.zeros((4, 2), np.float32),
    }
    assert not unreliable(**good).rejected.any()
    with pytest.raises(DataError) as caught:
        unreliable(**{**good, **change})
    for text in texts:
        assert text in str(caught.value)
