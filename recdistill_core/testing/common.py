"""Checks for every kind of component."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.config import Resolved, fill_or_raise, to_yaml
from recdistill_core.errors import ConfigError
from recdistill_core.testing.cases import EXERCISES, Case, check
from recdistill_core.testing.compare import differences, leaves, snapshot
from recdistill_core.testing.devices import cpu_bound

#: Kinds that are handed batches, or columns of them.
BATCH_KINDS = ("teacher", "student", "loss", "debiaser", "strategy", "metric")
#: Milliseconds of processor time that importing a hook module may take, the core and its dependencies not counted.
IMPORT_MS = 50
#: What a hook module must not import; all of it belongs inside ``build``.
HEAVY = (
    "torch",
    "lightning",
    "transformers",
    "xformers",
    "pyarrow",
    "duckdb",
    "matplotlib",
    "pandas",
    "onnxruntime",
    "ray",
)


@check()
def it_builds_from_its_example(case: Case) -> None:
    """The example is a legal configuration, and ``build`` makes an object with the interface of the kind."""
    Resolved(case.entry, case.config).build(case.context)


@check()
def it_says_what_it_is(case: Case) -> None:
    """A one-line summary, and docstrings on the config class and on the class of the object."""
    component = case.entry.component
    case.require(bool(component.summary.strip()), "has no summary: say in one line what it does")
    case.require("\n" not in component.summary, "has a summary of more than one line")
    doc = component.config.__doc__ or ""
    automatic = doc.startswith(f"{component.config.__name__}(")
    case.require(bool(doc) and not automatic, f"has no docstring on {component.config.__name__}: describe the settings")
    made = type(case.build())
    own = made.__dict__.get("__doc__")
    case.require(bool(own and own.strip()), f"has no docstring on {made.__name__}: say what it computes, with shapes")


@check()
def config_survives_yaml(case: Case) -> None:
    """dataclass -> YAML -> dataclass gives an equal config."""
    plain = {key: value for key, value in Resolved(case.entry, case.config).plain().items() if key != "name"}
    read = OmegaConf.to_container(OmegaConf.create(to_yaml(plain)))
    again = fill_or_raise(case.entry.component.config, read)
    case.require(again == case.config, f"has a config that YAML changes: {case.config} comes back as {again}")


@check()
def unknown_key_is_refused(case: Case) -> None:
    """A key that the config does not have is an error, not silence."""
    try:
        fill_or_raise(case.entry.component.config, {**vars(case.config), "no_such_setting": 1})
    except ConfigError:
        return
    case.fail("takes the unknown key 'no_such_setting'; the config must be a plain dataclass")


@check()
def two_builds_under_one_seed_are_equal(case: Case) -> None:
    """Two builds after one ``torch.manual_seed`` have equal weights and give equal answers, bit for bit."""
    states, answers = [], []
    for name in ("first", "second"):
        other = case.again(name)
        made = other.build(seed=3)
        states.append(snapshot_state(made))
        torch.manual_seed(4)
        answers.append(leaves(EXERCISES[case.entry.kind](other, made)))
    weights = differences(*states)
    case.require(not weights, f"builds different weights under one seed: {', '.join(weights[:5])}")
    answered = differences(*answers)
    case.require(not answered, f"answers differently under one seed: {', '.join(answered[:5])}")


@check(*BATCH_KINDS)
def the_batch_is_never_changed(case: Case) -> None:
    """No tensor of the batch is changed in place, added or taken away."""
    made, handed = case.build(), list[Batch]()

    class Spy(Case):
        def batch(self, made: Any = None, seed: int = 0) -> Batch:
            handed.append(super().batch(made, seed))
            before.append(snapshot(handed[-1]))
            return handed[-1]

    before: list[dict[str, Any]] = []
    EXERCISES[case.entry.kind](Spy(**vars(case)), made)
    for batch, was in zip(handed, before, strict=True):
        changed = differences(was, snapshot(batch))
        case.require(not changed, f"changes the batch that it is given: {', '.join(changed)}; work on a copy")


@check(*BATCH_KINDS)
def data_stays_on_its_device(case: Case) -> None:
    """Answers, parameters and buffers stay on the device of the batch; no tensor is made on the CPU for good."""
    made = case.build()
    answers = leaves(EXERCISES[case.entry.kind](case, made))
    strays = {path: str(value.device) for path, value in answers.items() if _elsewhere(value, "cpu")}
    case.require(not strays, f"answers on another device than the batch's (cpu): {strays}")
    if isinstance(made, nn.Module):
        moved = {path: str(value.device) for path, value in snapshot_state(made).items() if _elsewhere(value, "cpu")}
        case.require(not moved, f"moves its own parameters or buffers to another device: {moved}")
    fault = cpu_bound(case.again("traced"))
    case.require(not fault, fault)


@check()
def importing_its_hooks_is_cheap(case: Case) -> None:
    """The hook module imports in under 50 ms of processor time, and no torch, lightning or pyarrow with it."""
    plugin = case.entry.plugin
    if not plugin.module:
        case.fail("comes from no entry point, so its hook module is not known")
    milliseconds, heavy = _import_cost(plugin.module)
    case.require(not heavy, f"is registered by {plugin.module}, which imports {', '.join(heavy)}: import inside build")
    case.require(
        milliseconds < IMPORT_MS,
        f"is registered by {plugin.module}, whose import takes {milliseconds:.0f} ms; the limit is {IMPORT_MS} ms",
    )


def snapshot_state(made: Any) -> dict[str, Any]:
    """Copies of a module's parameters and buffers; empty for anything else."""
    if not isinstance(made, nn.Module):
        return {}
    return {name: value.detach().clone() for name, value in made.state_dict().items()}


def _elsewhere(value: Any, device: str) -> bool:
    return isinstance(value, Tensor) and value.device.type != device


@functools.cache
def _import_cost(module: str) -> tuple[float, tuple[str, ...]]:
    """``(milliseconds, heavy modules)`` of importing ``module`` once the core's hook markers are there; best of 3."""
    code = (
        "import importlib, json, sys, time\n"
        "sys.path[:] = json.loads(sys.argv[1])\n"
        "import recdistill_core, recdistill_core.registry\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"
        "importlib.import_module(sys.argv[2])\n"
        "spent = time.process_time() - start\n"
        "print(json.dumps([spent, sorted({n.partition('.')[0] for n in set(sys.modules) - before})]))\n"
    )
    path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
    spent, loaded = [], set[str]()
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, path, module], capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"importing {module} fails:\n{done.stderr}")
        seconds, names = json.loads(done.stdout.splitlines()[-1])
        spent.append(seconds)
        loaded |= set(names)
    return 1000 * min(spent), tuple(name for name in HEAVY if name in loaded)
