"""The file of a sweep: which runs it means, what their folders are called, and every fault before anything runs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recdistill_core.errors import ConfigError, PluginError, Problem, UsageError
from recdistill_core.fingerprint import digest
from recdistill_core.registry import installed
from recdistill_sweep.naming import LONGEST_NAME, key_labels, run_name, value_labels
from recdistill_sweep.planned import plan_all
from recdistill_sweep.sweepfile import Arm, SweepConfig, expand, read_sweep, with_overrides

BASE: Mapping[str, Any] = {
    "name": "base",
    "task": "click",
    "dataset": {"path": "dataset"},
    "strategy": "rec_distill",
    "students": ["mlp"],
}
SCALARS = st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False) | st.text(max_size=50)
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3)
)
KEYS = st.from_regex(r"[a-c]{1,3}(\.[a-c]{1,3}){0,2}", fullmatch=True)
#: The machine may be busy: drawing nested values then takes longer than hypothesis likes.
PATIENT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.from_regex(r"[a-c0-9][a-c0-9._-]{0,8}", fullmatch=True)


def arms(**sections: Any) -> list[Arm]:
    problems: list[Problem] = []
    found = expand(SweepConfig(run=dict(BASE), **sections), problems)
    assert problems == []
    return found


def faults(**sections: Any) -> list[str]:
    problems: list[Problem] = []
    assert expand(SweepConfig(run=dict(BASE), **sections), problems) == []
    return [str(problem) for problem in problems]


def write(path: Path, plain: Mapping[str, Any]) -> Path:
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(plain))))
    return path


def test_every_dataset_meets_every_arm_and_every_point_of_the_grid() -> None:
    found = arms(
        datasets={"small": {"dataset.path": "small"}, "large": {"dataset.path": "large"}},
        arms={"plain": None, "wide": {"students": [{"name": "mlp", "hidden": [64]}]}},
        grid={"strategy.alpha": [1, 10], "strategy": ["single", {"name": "rec_distill", "alpha": 3}]},
    )
    assert len(found) == 16
    assert [arm.name for arm in found] == sorted(arm.name for arm in found)
    one = next(arm for arm in found if arm.name == "large,wide,alpha-10,strategy-single")
    assert (one.dataset, one.arm) == ("large", "wide")
    assert one.grid == {"strategy.alpha": 10, "strategy": "single"}
    made = with_overrides(BASE, one.overrides)
    assert made["strategy"] == {"name": "single", "alpha": 10}
    assert made["dataset"] == {"path": "large"}
    assert made["students"] == [{"name": "mlp", "hidden": [64]}]
    assert BASE["strategy"] == "rec_distill"


def test_a_file_without_variations_is_one_run() -> None:
    assert [(arm.name, dict(arm.overrides)) for arm in arms()] == [("run", {})]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 10, 0.5, -2, 1e-05], ["1", "10", "0.5", "-2", "1e-05"]),
        ([True, False, None], ["true", "false", "none"]),
        (["dcn", "hsTu"], ["dcn", "hsTu"]),
        ([{"name": "single", "alpha": 1}, {"alpha": 2, "name": "single"}], ["single-alpha-1", "single-alpha-2"]),
        ([["dcn", "mlp"], [{"name": "dcn", "hidden": [8, 4]}]], ["dcn+mlp", "dcn-hidden-8+4"]),
    ],
)
def test_labels_of_usual_values_are_the_values(values: list[Any], labels: list[str]) -> None:
    assert value_labels(values) == labels


def test_labels_that_would_be_equal_or_long_or_odd_carry_a_digest() -> None:
    one, other, long, path = value_labels(["1", 1, "x" * 50, "/data/a b"])
    assert one.startswith("1-")
    assert other.startswith("1-")
    assert one != other
    assert long.startswith("x" * 40 + "-")
    assert len(long) == 49
    assert path.startswith("_data_a_b-")


def test_a_key_is_named_by_its_last_word_where_that_says_which_one_it_is() -> None:
    keys = ["teacher_training.lr", "student_training.lr", "students[0].hidden", "seeds"]
    assert list(key_labels(keys).values()) == ["teacher_training.lr", "student_training.lr", "hidden", "seeds"]


@PATIENT
@given(st.lists(VALUES, min_size=1, max_size=6, unique_by=digest))
def test_different_values_have_different_labels_in_any_order(values: list[Any]) -> None:
    labels = value_labels(values)
    assert len(set(labels)) == len(labels)
    assert all(label and "/" not in label and "," not in label for label in labels)
    assert value_labels(values[::-1]) == labels[::-1]


@PATIENT
@given(
    st.dictionaries(NAMES, st.dictionaries(KEYS, SCALARS, max_size=2), max_size=3),
    st.dictionaries(KEYS, st.lists(VALUES, min_size=1, max_size=3, unique_by=digest), max_size=3),
    st.randoms(use_true_random=False),
)
def test_names_are_different_and_the_same_in_any_order(
    named: dict[str, Any], grid: dict[str, list[Any]], mix: random.Random
) -> None:
    """Named arms set keys of their own here: one that the grid has too is a fault."""
    named = {name: {f"arm.{key}": value for key, value in changes.items()} for name, changes in named.items()}
    found = arms(arms=named, grid=grid)
    names = [arm.name for arm in found]
    assert len(set(names)) == len(names) == max(1, len(named)) * math.prod(len(values) for values in grid.values())
    assert all(len(name) <= LONGEST_NAME + 9 for name in names)
    again = arms(arms=shuffled(named, mix), grid={key: mix.sample(v, len(v)) for key, v in shuffled(grid, mix).items()})
    assert {arm.name: digest(arm.overrides) for arm in again} == {arm.name: digest(arm.overrides) for arm in found}


def shuffled(plain: Mapping[str, Any], mix: random.Random) -> dict[str, Any]:
    return dict(mix.sample(list(plain.items()), len(plain)))


def test_a_name_that_is_too_long_ends_in_a_digest_of_all_of_it() -> None:
    names = [run_name("data", "arm", {f"key{at}": "v" * 30 + last for at in range(6)}) for last in "ab"]
    assert [len(name) for name in names] == [LONGEST_NAME + 9] * 2
    assert names[0] != names[1]


@PATIENT
@given(st.permutations(["strategy", "strategy.alpha", "students", "students[0].recent"]))
def test_the_order_of_overrides_does_not_matter(keys: list[str]) -> None:
    values = {"strategy": "single", "strategy.alpha": 3, "students": ["dcn", "mlp"], "students[0].recent": 7}
    made = with_overrides(BASE, {key: values[key] for key in keys})
    assert made["strategy"] == {"name": "single", "alpha": 3}
    assert made["students"] == [{"name": "dcn", "recent": 7}, "mlp"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"students[3].recent": 1}, "students[3].recent: the base has no entry 3 there"),
        ({"labels.versions[0]": "x"}, "labels.versions[0]: the base has no entry 0 there"),
        ({"name.x": 1}, ""),
        ({"students.recent": 1}, "students.recent: 'recent' cannot be set in ['mlp']"),
    ],
)
def test_paths_that_lead_nowhere(overrides: dict[str, Any], expected: str) -> None:
    if not expected:  # a bare word may be a component
        assert with_overrides(BASE, overrides)["name"] == {"name": "base", "x": 1}
        return
    with pytest.raises(ConfigError) as error:
        with_overrides(BASE, overrides)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"grid": {"strategy.alpha": 1}}, "grid.strategy.alpha: must be a list of one or more values, got 1"),
        ({"grid": {"strategy.alpha": []}}, "grid.strategy.alpha: must be a list of one or more values, got []"),
        ({"grid": {"strategy.alpha": [1, 2, 1]}}, "grid.strategy.alpha: holds 1 more than once"),
        ({"grid": {"strategy..alpha": [1]}}, "grid.strategy..alpha: is no path of a setting, such as strategy.alpha"),
        ({"arms": {"a/b": {}}}, "arms.a/b: is no name for a folder: up to 60 letters"),
        ({"arms": {"a": 3}}, "arms.a: must be a mapping from settings to values, got 3"),
        ({"datasets": {"a": {"x y": 1}}}, "datasets.a.x y: is no path of a setting"),
        ({"arms": {"a": {"task": "x"}}, "grid": {"task": ["y"]}}, "task: is set in arms.a and in grid; set it in one"),
        (
            {"arms": {"a": {"task": "x"}}, "datasets": {"d": {"task": "y"}}},
            "task: is set in datasets.d and in arms.a; set it in one of them",
        ),
    ],
)
def test_faults_of_the_file(sections: dict[str, Any], expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults(**sections)), faults(**sections)


def test_all_faults_of_the_file_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "sweep.yaml", {"run": dict(BASE), "grid": {"a": 1, "b": [2, 2]}, "arms": {"x y": {}}})
    with pytest.raises(ConfigError, match="the configuration has 3 faults"):
        read_sweep(file)
    file = write(tmp_path / "sweep.yaml", {"run": dict(BASE), "grids": {}})
    with pytest.raises(ConfigError, match=r"grids: unknown key \(did you mean 'grid'\?\)"):
        read_sweep(file)
    file = write(tmp_path / "sweep.yaml", {"grid": {}})
    with pytest.raises(ConfigError, match="give either base"):
        read_sweep(file)


def test_a_base_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub/run.yaml", BASE)
    base, found = read_sweep(write(tmp_path / "sweep.yaml", {"base": "sub/run.yaml", "grid": {"seeds": [[1], [2]]}}))
    assert base == dict(BASE)
    assert [arm.name for arm in found] == ["seeds-1", "seeds-2"]
    with pytest.raises(UsageError, match="the configuration file does not exist"):
        read_sweep(write(tmp_path / "sweep.yaml", {"base": "run.yaml"}))


def test_faults_of_all_arms_are_reported_at_once_with_their_arms(tmp_path: Path) -> None:
    found = arms(
        arms={"good": {"seeds": [1]}, "bad": {"seeds": [1, 1]}, "worse": {"splitt.test_from": "80%"}},
        grid={"strategy.alpha": [1, -1], "evaluation.resamples": [100, 200]},
    )
    with pytest.raises(ConfigError) as error:
        plan_all(BASE, found, tmp_path, installed())
    text = str(error.value)
    assert "the configuration has 3 faults" in text
    assert "run bad,alpha--1,resamples-100; bad,alpha--1,resamples-200; bad,alpha-1,resamples-100 and 1 more: " in text
    assert "seeds needs one or more different numbers" in text
    assert "splitt: unknown key (did you mean 'split'?)" in text
    assert "run good,alpha--1,resamples-100; good,alpha--1,resamples-200: strategy: alpha must be finite" in text
    assert not list(tmp_path.iterdir())


def test_runs_of_a_base_that_shared_nothing_share(tmp_path: Path) -> None:
    found = plan_all({**BASE, "shared": ""}, arms(grid={"strategy.alpha": [1, 2]}), tmp_path, installed())
    assert [entry.plan.config.shared for entry in found] == [str(tmp_path / "shared")] * 2


def test_a_fault_of_the_base_is_reported_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="all 2 runs: task: is required"):
        plan_all(
            {key: value for key, value in BASE.items() if key != "task"},
            arms(grid={"strategy.alpha": [1, 2]}),
            tmp_path,
            installed(),
        )


def test_two_arms_that_are_the_same_run_are_refused(tmp_path: Path) -> None:
    found = arms(arms={"a": {"strategy": "rec_distill"}, "b": {"strategy": {"name": "rec_distill", "alpha": 1.0}}})
    with pytest.raises(ConfigError, match="run b: is the same run as a: every setting is equal"):
        plan_all(BASE, found, tmp_path, installed())


def test_a_component_that_is_not_installed_is_a_plugin_error(tmp_path: Path) -> None:
    found = arms(grid={"strategy": ["rec_distill", "rec_distil"]})
    with pytest.raises(PluginError, match=r"run strategy-rec_distil: no strategy is named 'rec_distil' \(did you mean"):
        plan_all(BASE, found, tmp_path, installed())
