"""Every arm with its checked configuration, before any of them runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdistill_core.errors import ConfigError, PluginError, Problem, RecdistillError, UsageError
from recdistill_core.fingerprint import digest
from recdistill_core.registry import Registry
from recdistill_pipeline.plan import Plan, make_plan
from recdistill_pipeline.rundir import RunDirectory, read_json
from recdistill_sweep.sweepfile import Arm, with_overrides

RUNS, SHARED, LOGS = "runs", "shared", "logs"
#: So many runs are named in a message that many of them share.
NAMED = 3


@dataclass(frozen=True)
class Planned:
    """An arm that can run.

    Attributes:
        arm: which. plan: its configuration. folder: its run directory.
    """

    arm: Arm
    plan: Plan
    folder: Path

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.arm.name

    def finished(self) -> bool:
        """Whether the run directory holds all of this very run."""
        if not (self.folder / "metrics.json").exists() or not (self.folder / "manifest.json").exists():
            return False
        done: bool = read_json(self.folder / "manifest.json")["config_digest"] == digest(self.plan.resolved())
        return done


def plan_all(base: Mapping[str, Any], arms: Sequence[Arm], out: Path, registry: Registry) -> list[Planned]:
    """Check the configuration of every arm.

    Raises:
        ConfigError: with the faults of all arms, each with the arms that have it.
        PluginError: if nothing is wrong but that components are not installed.
    """
    found, faults, others = list[Planned](), list[tuple[str, Problem]](), list[tuple[str, Problem]]()
    seen: dict[str, str] = {}
    home = str((out / SHARED).resolve())
    for arm in arms:
        try:
            plain = with_overrides(base, arm.overrides)
            # the configuration of a run that shares nothing says so, which is no wish of the sweep's
            plan = make_plan({**plain, "shared": plain.get("shared") or home, "name": arm.name}, registry)
        except ConfigError as error:
            faults += [(arm.name, problem) for problem in error.problems]
            continue
        except RecdistillError as error:
            others.append((arm.name, Problem("", error.what)))
            continue
        same = seen.setdefault(digest({**plan.resolved(), "name": ""}), arm.name)
        if same != arm.name:
            faults.append((arm.name, Problem("", f"is the same run as {same}: every setting is equal")))
        found.append(Planned(arm, plan, out / RUNS / arm.name))
    if faults:
        raise ConfigError(_by_problem([*faults, *others], len(arms)))
    if others:
        raise PluginError(
            "\n".join(_by_problem(others, len(arms))),
            where="the sweep's file",
            fix="install the plugin that has it, or use another component ('recdistill plugins list')",
        )
    return found


def open_folders(planned: Sequence[Planned]) -> None:
    """Create the run directories of all arms, or take over what is there.

    Raises:
        UsageError: if one of them holds another run; with all of them that do.
    """
    refused = []
    for entry in planned:
        try:
            if not entry.finished():
                entry.folder.parent.mkdir(parents=True, exist_ok=True)
                RunDirectory(entry.folder, json.loads(json.dumps(entry.plan.resolved())), entry.plan.third_party())
        except UsageError as error:
            refused.append(f"{entry.name}: {error.what}")
    if refused:
        shown = "\n  ".join(refused[:NAMED]) + (f"\n  and {len(refused) - NAMED} more" if len(refused) > NAMED else "")
        raise UsageError(
            f"run directories that hold other runs than those of the sweep: {len(refused)}\n  {shown}",
            where=str(planned[0].folder.parent),
            fix="give another --out, or the file with which the sweep was started",
        )


def _by_problem(found: Sequence[tuple[str, Problem]], count: int) -> list[Problem]:
    """Each fault once, with the runs that have it."""
    owners: dict[Problem, list[str]] = {}
    for name, problem in found:
        owners.setdefault(problem, []).append(name)
    return [Problem(_runs(names, count), str(problem)) for problem, names in owners.items()]


def _runs(names: Sequence[str], count: int) -> str:
    if len(names) == count > 1:
        return f"all {count} runs"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"run {'; '.join(names[:NAMED])}{more}"
