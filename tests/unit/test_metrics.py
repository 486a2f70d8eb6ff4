"""Metrics against naive definitions and torchmetrics, as bootstraps and as streams."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

import recdistill_metrics
from recdistill_core import BuildContext
from recdistill_core.errors import DataError
from recdistill_metrics.ranking import coverage

NAMES = ("auc", "gauc", "ne", "calibration", "ece")


def build(name: str, **values: Any) -> Any:
    component = {entry.name: entry for entry in recdistill_metrics.recdistill_metrics()}[name]
    return component.build(component.config(**values), BuildContext())


def clicks(rows: int, users: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(-2, 1.5, rows)
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    return logit, label, np.r_[np.arange(users), rng.integers(users, size=rows - users)]


def plain(metric: Any, logit: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
    return metric.prepare(logit, label, user)(np.ones(int(user.max()) + 1))


def naive_auc(logit: np.ndarray, label: np.ndarray) -> float:
    difference = logit[label == 1][:, None] - logit[label == 0][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else math.nan


def stream(metric: Any, logit: np.ndarray, label: np.ndarray, user: np.ndarray, size: int = 37) -> float:
    for at in range(0, len(logit), size):
        metric.update(*(torch.tensor(column[at : at + size]) for column in (logit, label, user)))
    return float(metric.compute())


small = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=40)


@given(rows=small)
def test_auc_counts_ties_half(rows: list[tuple[int, int, int]]) -> None:
    logit, label, user = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    expected = naive_auc(logit, label)
    assert plain(build("auc"), logit, label, user.astype(np.int64)) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@given(rows=small)
def test_gauc_is_the_average_of_naive_aucs(rows: list[tuple[int, int, int]]) -> None:
    logit, label, user = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    user = user.astype(np.int64)
    parts = [(naive_auc(logit[user == one], label[user == one]), (user == one).sum()) for one in np.unique(user)]
    parts = [(value, count) for value, count in parts if not math.isnan(value)]
    expected = sum(value * count for value, count in parts) / sum(c for _, c in parts) if parts else math.nan
    assert plain(build("gauc"), logit, label, user) == pytest.approx(expected, nan_ok=True, abs=1e-12)
    assert coverage(label, user) == pytest.approx(sum(c for _, c in parts) / len(logit))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(rows=small, weights=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_a_weight_of_2_is_two_rows(name: str, rows: list[tuple[int, int, int]], weights: list[int]) -> None:
    logit, label, user = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    user, weight = user.astype(np.int64), np.array(weights, dtype=np.float64)
    metric = build(name)
    weighted = metric.prepare(logit, label, user)(weight)
    times = weight[user].astype(int)
    if times.sum() == 0:
        assert math.isnan(weighted)
        return
    # A user drawn twice stays one user in GAUC: twice the rows, the same order.
    logit, label, user = (np.repeat(column, times) for column in (logit, label, user))
    assert weighted == pytest.approx(plain(metric, logit, label, user), nan_ok=True, abs=1e-9)


def test_auc_equals_torchmetrics_without_ties() -> None:
    logit, label, user = clicks(5000)
    theirs = binary_auroc(torch.tensor(logit), torch.tensor(label).long())
    assert plain(build("auc"), logit, label, user) == pytest.approx(float(theirs), abs=1e-6)


def test_ne_calibration_and_ece_against_their_definitions() -> None:
    logit, label, user = clicks(4000)
    p, rate = 1 / (1 + np.exp(-logit)), label.mean()
    log_loss = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert plain(build("ne"), logit, label, user) == pytest.approx(log_loss / entropy)
    assert plain(build("calibration"), logit, label, user) == pytest.approx(p.sum() / label.sum())
    bins = np.array_split(np.argsort(logit), 20)  # 4000 rows without ties: bins of exactly 200
    expected = sum(abs(p[rows].mean() - label[rows].mean()) * len(rows) / 4000 for rows in bins)
    assert plain(build("ece", bins=20), logit, label, user) == pytest.approx(expected)
    assert plain(build("ne"), np.full(4000, np.log(rate / (1 - rate))), label, user) == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_equals_prepared(name: str) -> None:
    logit, label, user = clicks(1000)
    expected = plain(build(name), logit, label, user)
    assert stream(build(name), logit, label, user + 10**12) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["auc", "ece"])
def test_binned_stream_gives_five_digits_in_fixed_memory(name: str) -> None:
    logit, label, user = clicks(200_000, seed=3)
    logit = logit - 2.5  # rare clicks
    metric = build(name, thresholds=1000)
    assert stream(metric, logit, label, user, size=50_000) == pytest.approx(
        plain(build(name), logit, label, user), abs=1e-5
    )
    assert metric.bins.shape == (3, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one(name: str) -> None:
    logit, label, user = clicks(600)
    expected = stream(build(name), logit, label, user)
    here, there = build(name), build(name)
    for rank, part in ((here, slice(150)), (there, slice(150, 600))):
        rank.update(*(torch.tensor(column[part]) for column in (logit, label, user)))
    theirs = iter([state[0] if isinstance(state, list) else state for state in there.metric_state.values()])
    here.distributed_available_fn = lambda: True
    here.dist_sync_fn = lambda tensor, group: [tensor, next(theirs)]  # torchmetrics gathers one state after another
    assert float(here.compute()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_forward_survives_a_batch_without_labels(name: str) -> None:
    logit, label, user = (torch.tensor(column) for column in clicks(200))
    metric, expected = build(name), build(name)
    expected.update(logit, label, user)
    for part in (slice(100), slice(0), slice(100, 200)):  # Lightning calls forward on every validation batch
        value = metric(logit[part], label[part], user[part])
        assert bool(torch.isnan(value)) == (part == slice(0))
    assert float(metric.compute()) == pytest.approx(float(expected.compute()))


@pytest.mark.parametrize("name", NAMES)
def test_reset_forgets(name: str) -> None:
    logit, label, user = clicks(100)
    metric = build(name)
    first = stream(metric, logit, label, user)
    metric.reset()
    assert stream(metric, logit, label, user) == first


@pytest.mark.parametrize(("name", "labels"), [("auc", 0), ("auc", 1), ("gauc", 1), ("ne", 0), ("ne", 1)])
def test_one_class_is_undefined_not_zero(name: str, labels: int) -> None:
    logit, label, user = np.zeros(4), np.full(4, float(labels)), np.arange(4)
    assert math.isnan(plain(build(name), logit, label, user))
    assert math.isnan(stream(build(name), logit, label, user))
    if name == "auc":
        assert math.isnan(stream(build(name, thresholds=100), logit, label, user))


def test_calibration_without_a_click_is_undefined() -> None:
    assert math.isnan(plain(build("calibration"), np.zeros(3), np.zeros(3), np.arange(3)))


def test_huge_logits_stay_finite() -> None:
    logit, label, user = np.array([1e4, -1e4, 1e4, -1e4]), np.array([1.0, 0, 0, 1]), np.arange(4)
    for name in ("auc", "ne", "calibration", "ece"):
        assert math.isfinite(plain(build(name), logit, label, user))
        assert math.isfinite(stream(build(name), logit.astype(np.float32), label, user))


BAD = [
    ([0.0, math.nan], [0, 1], [0, 1], "logit is NaN or infinite: nan in 1 rows", "row 1", "divergence"),
    ([0.0, math.inf], [0, 1], [0, 1], "logit is NaN or infinite: inf in 1 rows", "row 1", "divergence"),
    ([0.0, 1.0], [0.5, 1], [0, 1], "label is neither 0 nor 1: 0.5 in 1 rows", "row 0", "soft targets"),
    ([0.0, 1.0], [0, math.nan], [0, 1], "label is neither 0 nor 1: nan in 1 rows", "row 1", "soft targets"),
    ([0.0, 1.0], [0], [0, 1], "must have one shape [N], got [2], [1], [2]", "", "flatten"),
    ([[0.0], [1.0]], [[0], [1]], [[0], [1]], "must have one shape [N], got [2, 1]", "", "flatten"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("logit", "label", "user", "what", "where", "fix"), BAD)
def test_bad_rows_are_refused(
    name: str, logit: list[Any], label: list[Any], user: list[Any], what: str, where: str, fix: str
) -> None:
    columns = (np.array(logit, dtype=np.float64), np.array(label, dtype=np.float64), np.array(user))
    metric = build(name)
    for attempt in (
        lambda: plain(metric, *columns),
        lambda: metric.update(*(torch.tensor(column) for column in columns)),
    ):
        with pytest.raises(DataError) as caught:
            attempt()
        assert what in caught.value.what
        assert where in caught.value.where
        assert fix in caught.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_evaluate_is_refused(name: str) -> None:
    nothing = np.zeros(0)
    with pytest.raises(DataError, match="there are no rows to evaluate") as caught:
        build(name).prepare(nothing, nothing, nothing.astype(np.int64))
    assert "check the time range and the observed labels" in str(caught.value)


def test_users_are_checked() -> None:
    with pytest.raises(DataError, match="the users are missing"):
        build("gauc").update(torch.zeros(2), torch.ones(2))
    with pytest.raises(DataError, match="user is negative: -1 in 1 rows"):
        plain(build("auc"), np.zeros(2), np.array([0.0, 1]), np.array([0, -1]))
    with pytest.raises(DataError, match=r"user weights have shape \[1\] for 2 users"):
        build("ne").prepare(np.zeros(2), np.array([0.0, 1]), np.array([0, 1]))(np.ones(1))


def test_gauc_reports_its_coverage() -> None:
    metric = build("gauc")
    metric.update(torch.zeros(5), torch.tensor([0, 1, 1, 1, 1]), torch.tensor([7, 7, 8, 8, 8]))
    assert float(metric.coverage()) == pytest.approx(0.4)


def test_directions() -> None:
    assert [build(name).higher_is_better for name in NAMES] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: recdistill_metrics.AucConfig(thresholds=10), "thresholds must lie in .* got 10"),
        (lambda: recdistill_metrics.EceConfig(thresholds=0), "thresholds must lie in .* got 0"),
        (lambda: recdistill_metrics.EceConfig(bins=1), "bins must lie in .* got 1"),
    ],
)
def test_ranges(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config()


def test_hook_module_imports_no_torch() -> None:
    code = "import sys, recdistill_metrics as m; m.recdistill_metrics(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["auc", "gauc", "ne", "calibration", "ece"])
def test_a_bootstrap_sorts_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = build(name).prepare(*clicks(2_000, users=100))
    expected = evaluate(np.ones(100))

    def sorts(*args: object, **more: object) -> None:
        raise AssertionError("a resample sorts rows again")

    for function in ("sort", "argsort", "lexsort", "unique"):
        monkeypatch.setattr(np, function, sorts)
    assert evaluate(np.ones(100)) == expected
