"""The kit itself: its sample data, how it names tests, and what it says when there is nothing to test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dataset_cases import naive_window
from hypothesis import given
from hypothesis import strategies as st

from recdistill_core.errors import ConfigError, PluginError
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.registry import PluginRecord, Registry, installed
from recdistill_core.testing import CHECKS, checks_for, conformance, run_check, sample_batch, sample_schema, windowed
from recdistill_core.testing.compare import differences, largest_gap, leaves


def test_the_sample_batch_offers_what_checks_need() -> None:
    batch = sample_batch()
    assert batch.history is not None
    ends, lengths = batch.history.row_end, batch.history.lengths[batch.history.row_to_history]
    assert bool(((lengths - ends >= 2) | (lengths == 0)).all()), "every history goes on after its rows"
    assert bool((ends == 0).any())
    assert int(ends.max()) >= 4
    assert set(batch.labels) == {"click", "like"}
    for task in batch.labels:
        assert set(batch.labels[task].tolist()) == {0.0, 1.0}
        assert not bool(batch.observed[task].all())
    assert bool((batch.categorical == 0).any())
    assert sample_schema().capabilities() == {"history", "keep_rates", "position", "propensity", "request_groups"}


def test_seeds_give_other_samples() -> None:
    assert differences(leaves(sample_batch()), leaves(sample_batch())) == []
    assert "numeric" in differences(leaves(sample_batch()), leaves(sample_batch(seed=1)))


def test_rows_see_no_event_of_their_own_time_or_later() -> None:
    batch = sample_batch()
    assert batch.history is not None
    times, seen = batch.history.last(16)
    assert bool((torch.where(seen, times["time"], 0) < batch.event_time[:, None]).all())


@given(length=st.integers(1, 12), stride=st.integers(1, 12))
def test_a_window_leaves_each_row_the_events_that_it_promises(length: int, stride: int) -> None:
    if stride > length:
        return
    whole = sample_batch()
    cut = windowed(whole, HistoryWindow(length, stride))
    assert whole.history is not None
    assert cut.history is not None
    assert int(cut.history.lengths.max()) <= length
    before, seen_before = whole.history.last(12)
    after, seen_after = cut.history.last(12)
    kept = seen_after.sum(1)
    whole_count = seen_before.sum(1)
    assert bool((kept <= length).all())
    assert bool((kept >= torch.minimum(whole_count, torch.tensor(length - stride + 1))).all())
    for name, column in after.items():
        assert torch.equal(column, torch.where(seen_after, before[name], 0)), name
    cut.validate()


@given(length=st.integers(1, 8), stride=st.integers(1, 8), oldest=st.integers(1, 3))
def test_a_window_with_oldest_events_gives_a_row_what_it_says(length: int, stride: int, oldest: int) -> None:
    window = HistoryWindow(oldest + max(length, stride), min(length, stride), oldest)
    batch = sample_batch()
    cut = windowed(batch, window).history
    whole = batch.history
    assert whole is not None
    assert cut is not None
    for row, end in enumerate(whole.row_end.tolist()):
        begin, first = (int(each.offsets[each.row_to_history[row]]) for each in (whole, cut))
        seen = cut.events["time"][first : first + int(cut.row_end[row])]
        places = naive_window(end, window.length, window.stride, oldest)
        assert torch.equal(seen, whole.events["time"][begin : begin + end][places])
        assert len(places) <= window.length


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((4, 5), "history needs 1 <= stride <= length, got stride 5, length 4"),
        ((4, 3, 2), "history needs 1 <= stride <= length - oldest, got stride 3, length - oldest 2"),
        ((4, 1, -1), "history needs oldest >= 0, got -1"),
    ],
)
def test_windows_that_cannot_be(window: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HistoryWindow(*window)


def test_no_window_is_no_history() -> None:
    assert windowed(sample_batch(), None).history is None


def test_names_of_checks_are_unique_and_said_in_a_sentence() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert [check.name for check in CHECKS if not check.summary.endswith(".")] == []


def test_a_distribution_that_offers_nothing_is_an_error() -> None:
    with pytest.raises(PluginError, match="distribution 'nobody' registers no component") as error:
        conformance("nobody")
    assert "where: installed: recdistill" in str(error.value)
    record = PluginRecord("x", "rd-x", "1.0", error=ImportError("needs libmagic"))
    with pytest.raises(PluginError, match=r"plugin 'x' \(rd-x 1.0\): ImportError: needs libmagic"):
        conformance("RD_X", Registry((record,), ()))
    with pytest.raises(PluginError, match=r"plugin 'x' \(rd-x 1.0\): offers none"):
        conformance("rd.x", Registry((PluginRecord("x", "rd-x", "1.0"),), ()))


FILE = """
from dataclasses import replace
from recdistill_core.registry import Registry, installed
from recdistill_core.testing import NotApplicable, conformance
from recdistill_core.testing.cases import Check, CHECKS, check

@check("loss")
def a_check_with_nothing_to_say(case):
    "Never applies."
    raise NotApplicable("no position in it")

base = installed()
entry = base.get("loss", "mse")
reasons = {"it_says_what_it_is": "no time yet"}
entry = replace(entry, component=replace(entry.component, expected_failures=reasons))

@conformance("recdistill", Registry(base.plugins, (entry,)))
def test_conformance(check):
    check()
"""


def test_pytest_sees_one_test_per_check(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "PASSED test_it.py::test_conformance[loss-mse-it_builds_from_its_example]" in done.stdout
    assert "SKIPPED" in done.stdout
    assert "no position in it" in done.stdout
    assert (
        "FAILED test_it.py::test_conformance[loss-mse-it_says_what_it_is] - [XPASS(strict)] no time yet" in done.stdout
    )
    assert "1 failed" in done.stdout
    assert done.returncode == 1


def test_gaps() -> None:
    assert largest_gap(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])) == 0.5
    assert largest_gap(torch.ones(2), torch.ones(3)) == float("inf")
    assert largest_gap(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert largest_gap(torch.ones(0), torch.ones(0)) == 0.0


def nothing(check: object) -> None: ...


def test_a_component_is_checked_at_further_settings() -> None:
    base = installed()
    entries = (base.get("loss", "mse"), base.get("loss", "kl"))
    registry = Registry(base.plugins, entries)
    settings = [{"temperature": 0.5}, lambda folder: {"temperature": float(len(list(folder.iterdir()))) - 1.0}]
    mark = conformance("recdistill", registry, examples={"kl": settings})(nothing)
    params = {param.id: param for param in mark.pytestmark[-1].args[1]}
    name = "it_builds_from_its_example"
    assert [key for key in params if name in key] == [
        f"loss-mse-{name}",
        f"loss-kl-{name}",
        f"loss-kl-example2-{name}",
        f"loss-kl-example3-{name}",
    ]
    params[f"loss-kl-example2-{name}"].values[0]()
    with pytest.raises(ConfigError, match=r"temperature must lie in \[0.01, 100\], got -1.0"):
        params[f"loss-kl-example3-{name}"].values[0]()


def test_an_expected_failure_may_pass_at_further_settings() -> None:
    base = installed()
    entry = base.get("loss", "kl")
    entry = replace(entry, component=replace(entry.component, expected_failures={"it_says_what_it_is": "no time yet"}))
    registry = Registry(base.plugins, (entry,))
    mark = conformance("recdistill", registry, examples={"kl": [{"temperature": 0.5}]})(nothing)
    strict = {param.id: param.marks[0].kwargs["strict"] for param in mark.pytestmark[-1].args[1] if param.marks}
    assert strict == {"loss-kl-it_says_what_it_is": True, "loss-kl-example2-it_says_what_it_is": False}


def test_settings_for_a_component_that_is_not_there_are_an_error() -> None:
    with pytest.raises(PluginError) as error:
        conformance("recdistill", examples={"soft_cee": [{}]})
    assert "examples are given for 'soft_cee', a name that 0 of the components have" in str(error.value)
    assert "did you mean 'soft_ce'" in str(error.value)
    base = installed()
    twice = Registry(base.plugins, (base.get("loss", "kl"), base.get("loss", "kl")))
    with pytest.raises(PluginError, match="for 'kl', a name that 2 of the components have"):
        conformance("recdistill", twice, examples={"kl": [{}]})


def test_every_installed_component_is_taken_where_no_distribution_is_named() -> None:
    @conformance()
    def test(check: object) -> None: ...

    ids = [param.id for param in test.pytestmark[0].args[1]]
    for entry in installed().found:
        assert f"{entry.kind}-{entry.component.name}-it_builds_from_its_example" in ids


def unbuilt(config: object, context: object) -> None:
    raise RuntimeError("there is no such table")


def test_a_component_that_cannot_be_built_is_reported_once() -> None:
    entry = installed().get("loss", "mse")
    entry = replace(entry, component=replace(entry.component, build=unbuilt))
    outcomes = {check.name: run_check(entry, check) for check in checks_for(entry)}
    failed = {name: outcome.detail for name, outcome in outcomes.items() if outcome.status == "failed"}
    (detail,) = failed.values()
    assert list(failed) == ["it_builds_from_its_example"]
    assert "loss 'mse' cannot be built: RuntimeError: there is no such table" in detail
    skipped = {outcome.detail for outcome in outcomes.values() if outcome.status == "not applicable"}
    assert "it cannot be built, as the check it_builds_from_its_example reports" in skipped


def test_a_component_that_can_be_built_once_only_fails_where_it_fails() -> None:
    entry = installed().get("loss", "mse")
    built: list[object] = []

    def build(config: object, context: object) -> object:
        built.append(config)
        if len(built) == 2:
            raise RuntimeError("the table is locked")
        return entry.component.build(config, context)  # type: ignore[arg-type]  # what it is given is handed on

    second = replace(entry, component=replace(entry.component, build=build))
    (check,) = [check for check in CHECKS if check.name == "two_builds_under_one_seed_are_equal"]
    outcome = run_check(second, check)
    assert outcome.status == "failed"
    assert "RuntimeError: the table is locked" in outcome.detail


def test_pytest_skips_what_cannot_be_built() -> None:
    entry = installed().get("loss", "mse")
    entry = replace(entry, component=replace(entry.component, build=unbuilt))
    mark = conformance("recdistill", Registry(installed().plugins, (entry,)))(nothing)
    params = {param.id: param.values[0] for param in mark.pytestmark[-1].args[1]}
    with pytest.raises(PluginError, match="loss 'mse' cannot be built"):
        params["loss-mse-it_builds_from_its_example"]()
    with pytest.raises(pytest.skip.Exception, match="it cannot be built, as the check it_builds_from_its_example"):
        params["loss-mse-the_batch_is_never_changed"]()
