"""The file of a sweep: a run and what is varied in it; every combination is an arm with its own folder."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recdistill_core.config import fill, load_yaml
from recdistill_core.errors import ConfigError, Problem
from recdistill_core.fingerprint import digest
from recdistill_sweep.naming import NAME, key_labels, run_name, value_labels

STEP = r"[A-Za-z_]\w*(?:\[\d+\])*"
DOTTED = re.compile(rf"{STEP}(?:\.{STEP})*")


@dataclass(frozen=True)
class SweepConfig:
    """What the YAML file may say.

    Attributes:
        base: a run configuration, by a path relative to the sweep's file. run: or the same, written here.
        datasets: ``{name: {dotted path: value}}``. arms: likewise; a named set of changes to the run.
        grid: ``{dotted path: [values]}``. Every dataset is combined with every arm and every point of the grid.
    """

    base: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.base) == bool(self.run):
            raise ValueError("give either base (a run configuration's path) or run (its settings), not both or neither")


@dataclass(frozen=True)
class Arm:
    """One run of the sweep.

    Attributes:
        name: of its folder. dataset, arm: the names in the file, or empty. grid: its point, ``{dotted path: value}``.
        overrides: everything that is changed in the base, ``{dotted path: value}``.
    """

    name: str
    dataset: str
    arm: str
    grid: Mapping[str, Any]
    overrides: Mapping[str, Any]


def read_sweep(path: Path) -> tuple[dict[str, Any], list[Arm]]:
    """The base configuration and the arms of a file, in order of their names.

    Raises:
        UsageError: if a file cannot be read. ConfigError: with every fault of the sweep's own keys.
    """
    problems: list[Problem] = []
    config = fill(SweepConfig, load_yaml(path), "", problems)
    arms = expand(config, problems) if config is not None else []
    if config is None or problems:
        raise ConfigError(problems)
    return (load_yaml(path.parent / config.base) if config.base else config.run), arms


def expand(config: SweepConfig, problems: list[Problem]) -> list[Arm]:
    """Every combination, in order of the names; faults are appended to ``problems``."""
    datasets, arms = _named(config.datasets, "datasets", problems), _named(config.arms, "arms", problems)
    axes = {key: values for key, values in sorted(config.grid.items()) if _is_axis(key, values, problems)}
    _refuse_twice(datasets, arms, axes, problems)
    if problems:
        return []
    labels, keys = {key: value_labels(values) for key, values in axes.items()}, key_labels(list(axes))
    found = []
    places = [range(len(values)) for values in axes.values()]
    for (dataset, first), (arm, second), at in itertools.product(
        datasets.items(), arms.items(), itertools.product(*places)
    ):
        point = {key: axes[key][place] for key, place in zip(axes, at, strict=True)}
        shown = {keys[key]: labels[key][place] for key, place in zip(axes, at, strict=True)}
        found.append(Arm(run_name(dataset, arm, shown), dataset, arm, point, {**first, **second, **point}))
    return sorted(found, key=lambda entry: entry.name)


def with_overrides(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` with ``{dotted path: value}`` set, shorter paths first, whatever their order.

    Raises:
        ConfigError: with every path that leads nowhere.
    """
    plain, problems = copy.deepcopy(dict(base)), list[Problem]()
    for key in sorted(overrides, key=lambda key: (len(_steps(key)), key)):
        try:
            _set(plain, _steps(key), copy.deepcopy(overrides[key]))
        except ValueError as error:
            problems.append(Problem(key, str(error)))
    if problems:
        raise ConfigError(problems)
    return plain


def _named(given: Mapping[str, Any], section: str, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """``{name: {dotted path: value}}``; one without a name where the file has none."""
    for name, changes in given.items():
        where = f"{section}.{name}"
        if not NAME.fullmatch(name):
            problems.append(
                Problem(where, "is no name for a folder: up to 60 letters, digits, '.', '_' and '-', no sign first")
            )
        if changes is not None and not isinstance(changes, Mapping):
            problems.append(Problem(where, f"must be a mapping from settings to values, got {changes!r}"))
            continue
        problems.extend(_no_path(f"{where}.{key}") for key in changes or () if not DOTTED.fullmatch(str(key)))
    return {name: dict(changes) for name, changes in given.items() if isinstance(changes, Mapping)} | {
        name: {} for name, changes in given.items() if changes is None
    } or {"": {}}


def _is_axis(key: str, values: Any, problems: list[Problem]) -> bool:
    if not DOTTED.fullmatch(key):
        problems.append(_no_path(f"grid.{key}"))
    elif not isinstance(values, list) or not values:
        problems.append(Problem(f"grid.{key}", f"must be a list of one or more values, got {values!r}"))
    elif len({digest(value) for value in values}) < len(values):
        twice = next(value for at, value in enumerate(values) if digest(value) in map(digest, values[:at]))
        problems.append(Problem(f"grid.{key}", f"holds {twice!r} more than once"))
    else:
        return True
    return False


def _refuse_twice(
    datasets: Mapping[str, Mapping[str, Any]],
    arms: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Any],
    problems: list[Problem],
) -> None:
    """One setting, one place: which of two would win is nothing that a reader of the file should have to know."""
    owners: dict[str, list[str]] = {}
    for section, entries in (("datasets", datasets), ("arms", arms)):
        for name, changes in entries.items():
            for key in changes:
                owners.setdefault(key, []).append(f"{section}.{name}")
    for key in axes:
        owners.setdefault(key, []).append("grid")
    for key, places in owners.items():
        first = {place.partition(".")[0]: place for place in places}
        if len(first) > 1:
            problems.append(Problem(key, f"is set in {' and in '.join(first.values())}; set it in one of them"))


def _no_path(where: str) -> Problem:
    return Problem(where, "is no path of a setting, such as strategy.alpha or students[0].width")


def _steps(key: str) -> list[str | int]:
    """``students[0].width`` as ``["students", 0, "width"]``."""
    return [int(part) if part.isdigit() else part for part in re.findall(r"\w+", key)]


def _set(node: Any, path: Sequence[str | int], value: Any) -> None:
    """Set what is at the end of the path. Raises ValueError where there is nothing to set it in."""
    for depth, step in enumerate(path):
        if isinstance(step, int) and (not isinstance(node, list) or step >= len(node)):
            raise ValueError(f"the base has no entry {step} there; give it the list, or set the whole list")
        if isinstance(step, str) and not isinstance(node, dict):
            raise ValueError(f"{step!r} cannot be set in {node!r}")
        if depth == len(path) - 1:
            node[step] = value
            return
        child = node.get(step) if isinstance(node, dict) else node[step]
        if isinstance(child, str):  # a bare name stands for a component with its defaults
            child = {"name": child}
        node[step] = {} if child is None else child
        node = node[step]
