"""A teacher's fingerprint names its labels: it must repeat, and change with whatever changes them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from recdistill_core.component import BuildContext
from recdistill_core.config import Resolved, fill_or_raise, to_yaml
from recdistill_core.interfaces import TrainableTeacher
from recdistill_core.registry import GROUP, PluginRecord, discover
from recdistill_core.schema import Schema
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.models import SEED, Logits, module_of, moved

HASH_IT = "hash weights, configuration, tasks and feature view, as recdistill_core.fingerprint.module_fingerprint does"


@check("teacher")
def fingerprint_is_a_repeatable_digest(case: Case) -> None:
    """The fingerprint is 16 or more hex digits, equal at each call, in either mode, and for two builds of one seed."""
    made, other = case.build(), case.build()
    found = made.fingerprint()
    case.require(
        isinstance(found, str) and re.fullmatch("[0-9a-f]{16,}", found) is not None,
        f"has the fingerprint {found!r}; it must be a digest of 16 or more hex digits, since labels are kept under it",
    )
    case.require(found == made.fingerprint(), f"has a new fingerprint at each call; {HASH_IT}")
    if hasattr(made, "eval"):
        made.eval()
        case.require(found == made.fingerprint(), f"has another fingerprint in eval mode; {HASH_IT}")
    case.require(found == other.fingerprint(), f"has two fingerprints for two equal builds; {HASH_IT}")


@check("teacher")
def fingerprint_is_the_same_in_every_process(case: Case) -> None:
    """Another process, with another hash seed, gives an equal build the same fingerprint (2 s: it imports torch)."""
    plugin = case.entry.plugin
    if not plugin.module:
        case.fail("comes from no entry point, so another process cannot build it")
    here, there = case.build(SEED).fingerprint(), _elsewhere(case)
    case.require(
        here == there,
        f"has the fingerprint {here} in this process and {there} in another; no hash() of strings, no id() or address, "
        f"no set order may reach it: {HASH_IT}",
    )


@check("teacher")
def fingerprint_follows_weights(case: Case) -> None:
    """A small change of any one weight or persistent buffer gives another fingerprint."""
    made = module_of(case.build())
    before = made.fingerprint()
    state = {name: value for name, value in made.state_dict().items() if _counts(value)}
    if not state:
        raise NotApplicable("it has no weights")
    deaf = []
    for name, value in state.items():
        middle = tuple(size // 2 for size in value.shape)
        old = value[middle].clone()
        value[middle] = _nudged(old)
        if made.fingerprint() == before:
            deaf.append(name)
        value[middle] = old
    case.require(not deaf, f"keeps its fingerprint when these weights change: {', '.join(deaf[:5])}; {HASH_IT}")


@check("teacher")
def fingerprint_follows_settings(case: Case) -> None:
    """Settings, or an order of tasks, that score otherwise have another fingerprint."""
    before, fingerprint = _scored(case, case.config, case.context.tasks)
    for name, value in _neighbours(case.config):
        try:
            config = replace(case.config, **{name: value})
            after, other = _scored(case, config, case.context.tasks)
        except Exception:  # an illegal neighbour proves nothing
            continue
        case.require(
            other != fingerprint or not moved(before, after),
            f"has one fingerprint for {name} = {getattr(case.config, name)!r} and for {value!r}, which score "
            f"otherwise; {HASH_IT}",
        )
    tasks = tuple(reversed(case.context.tasks))
    after, other = _scored(case, case.config, tasks)
    case.require(
        other != fingerprint or not moved(before, after),
        f"has one fingerprint for the tasks {', '.join(case.context.tasks)} and {', '.join(tasks)}, whose logits "
        f"change places; {HASH_IT}",
    )


@check("teacher")
def fingerprint_follows_the_feature_view(case: Case) -> None:
    """A schema in which equal ids and numbers mean something else gives another fingerprint."""
    before = module_of(case.build()).fingerprint()
    try:
        made = case.again("renamed", _renamed(case.schema)).build()
    except Exception as error:
        raise NotApplicable(f"it does not build with other vocabularies: {error}") from error
    case.require(
        made.fingerprint() != before,
        "has one fingerprint for two schemas whose features and vocabularies mean different things; hash "
        "Schema.view_hash() too, as recdistill_core.fingerprint.module_fingerprint does",
    )


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _nudged(value: Tensor) -> Tensor:
    """A scalar a little larger; the next one that its type holds where a little is nothing."""
    more = value + 1e-5 * value.abs().clamp(min=1.0)
    return more if bool(more != value) else torch.nextafter(value, torch.full_like(value, float("inf")))


def _scored(case: Case, config: Any, tasks: tuple[str, ...]) -> tuple[Logits, str]:
    """Logits of score and training_scores under one seed, by way and task; and the fingerprint."""
    torch.manual_seed(SEED)
    made = Resolved(case.entry, config).build(BuildContext(case.schema, tasks))
    batch = case.batch(made)
    fingerprint = made.fingerprint()
    found = {f"score {task}": logit for task, logit in made.score(batch).logits.items()}
    if isinstance(made, TrainableTeacher):
        torch.manual_seed(SEED)
        logits = made.train().training_scores(batch).logits
        found |= {f"training {task}": logit.detach() for task, logit in logits.items()}
    return found, fingerprint


def _neighbours(config: Any) -> Iterator[tuple[str, Any]]:
    """Other values of each plain setting, legal or not."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, bool):
            yield entry.name, not value
        elif isinstance(value, int):
            yield from ((entry.name, value + 1), (entry.name, value * 2))
        elif isinstance(value, float):
            yield from ((entry.name, value / 2), (entry.name, value + 0.25))


def _renamed(schema: Schema) -> Schema:
    """The same sizes and columns, with other vocabularies, numeric features and actions in them."""

    def name(vocabulary: str) -> str:
        return vocabulary if vocabulary == schema.item_vocabulary else f"another_{vocabulary}"

    return replace(
        schema,
        categorical=tuple(replace(entry, vocabulary=name(entry.vocabulary)) for entry in schema.categorical),
        numeric=schema.numeric[::-1],
        events=tuple(replace(entry, vocabulary=name(entry.vocabulary)) for entry in schema.events),
        actions=schema.actions[::-1],
        vocabularies={name(key): size for key, size in schema.vocabularies.items()},
    )


def _elsewhere(case: Case) -> str:
    """The fingerprint of the same build in a new Python with another hash seed."""
    plain = {key: value for key, value in Resolved(case.entry, case.config).plain().items() if key != "name"}
    order = {
        "point": [case.entry.plugin.name, _entry_point(case.entry.plugin)],
        "component": case.entry.component.name,
        "config": to_yaml(plain),
        "schema": case.schema.to_dict(),
        "seed": SEED,
    }
    code = (
        "import json, sys\n"
        "sys.path[:] = json.loads(sys.argv[1])\n"
        "from recdistill_core.testing.fingerprints import answer\n"
        "print('fingerprint', answer(json.load(sys.stdin)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps([str(Path(entry).absolute()) for entry in sys.path])],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"},
    )
    if done.returncode:
        case.fail(f"cannot be built from its entry point in another process:\n{done.stderr}")
    return done.stdout.split("fingerprint ")[-1].strip()


def answer(order: dict[str, Any]) -> str:
    """The fingerprint of the teacher that ``order`` describes; called in the other process."""
    name, value = order["point"]
    registry = discover([importlib.metadata.EntryPoint(name, value, GROUP)])
    (entry,) = [entry for entry in registry.components("teacher") if entry.component.name == order["component"]]
    schema = Schema.from_dict(order["schema"])
    torch.manual_seed(order["seed"])
    config = fill_or_raise(entry.component.config, OmegaConf.to_container(OmegaConf.create(order["config"])))
    return str(Resolved(entry, config).build(BuildContext(schema, schema.tasks)).fingerprint())


def _entry_point(plugin: PluginRecord) -> str:
    """What the plugin's entry point names: its module, or an object in it."""
    points = importlib.metadata.entry_points(group=GROUP, name=plugin.name)
    return next((point.value for point in points if point.module == plugin.module), plugin.module)
