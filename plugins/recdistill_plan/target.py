"""From the words of a command to what is planned: the teacher, its schema, and the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recdistill_core.config import load_yaml, resolve
from recdistill_core.errors import ConfigError, DataError, Problem, UsageError
from recdistill_core.registry import installed
from recdistill_core.schema import Categorical, EventField, Schema
from recdistill_hstu import HSTUConfig
from recdistill_plan.keys import require_known
from recdistill_plan.presets import preset
from recdistill_plan.sizes import Model

#: Rows of the vocabularies that are assumed where neither a dataset nor ``--vocabulary`` says otherwise.
ASSUMED = {"item_id": 1_000_000, "author_id": 100_000}


class Target(NamedTuple):
    """What is planned.

    Attributes:
        name: for headings. model: the teacher with its schema. described: whether the schema is no dataset's.
        batch_size: rows of a batch that the configuration asks for, or None. precision: its trainer's, or None.
    """

    name: str
    model: Model
    described: bool
    batch_size: int | None
    precision: str | None


def find_target(words: Sequence[str], preset_name: str, vocabularies: Sequence[str], actions: int) -> Target:
    """The teacher that is asked for.

    Args:
        words: ``[CONFIG] [KEY=VALUE ...]``; with a configuration the keys are its own, else the teacher's.
        preset_name: name of a preset, or empty. vocabularies: ``NAME=SIZE`` each. actions: bits of an action code.

    Raises:
        UsageError: if nothing or two things are named, or the teacher is no ``hstu``. ConfigError: for bad settings.
        DataError: if the dataset of the configuration has no schema that can be read.
    """
    paths, settings = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if len(paths) > 1 or (paths and preset_name):
        raise UsageError(
            f"one teacher is planned at a time, and {' and '.join([*paths, preset_name]).rstrip(' and')} are named",
            fix="give a configuration, or --preset, or the teacher's settings as key=value",
        )
    if not words and not preset_name:
        raise UsageError(
            "there is nothing to plan", fix="give a configuration (run.yaml), --preset hstu-24b, or layers=4 width=256"
        )
    if paths:
        path = Path(paths[0])
        plain = load_yaml(path, settings)
        return _of_run(path, plain, vocabularies, actions)
    teacher = {"name": "hstu", **(preset(preset_name) if preset_name else {}), **_settings(settings)}
    model = Model(_config(teacher), described_schema(vocabularies, actions), ("click",))
    return Target(preset_name or "hstu", model, True, None, None)


def described_schema(vocabularies: Sequence[str] = (), actions: int = 4) -> Schema:
    """A schema with these vocabularies: ``item_id``, and others that are features of the item and of each event.

    Raises:
        UsageError: if one of them is not ``NAME=SIZE`` with a size of at least 1, or there are too many actions.
    """
    sizes = {} if vocabularies else dict(ASSUMED)
    for entry in vocabularies:
        name, _, size = entry.partition("=")
        if not name or not size.replace("_", "").isdigit() or int(size) < 1:
            raise UsageError(
                f"vocabulary {entry!r} is not NAME=SIZE", where="--vocabulary", fix="write for example item_id=1000000"
            )
        sizes[name] = int(size)
    sizes = {"item_id": ASSUMED["item_id"], **sizes}
    if not 0 <= actions <= 16:
        raise UsageError(
            f"an action code has at most 16 bits, not {actions}", where="--actions", fix="give a number from 0 to 16"
        )
    others = [name for name in sizes if name != "item_id"]
    return Schema(
        tasks=("click",),
        categorical=tuple(Categorical(name, name, "item") for name in ["item_id", *others]),
        events=(EventField("item", "item_id"), *(EventField(name, name) for name in others)),
        actions=tuple(f"action_{bit}" for bit in range(actions)),
        vocabularies=sizes,
    )


def _of_run(path: Path, plain: Mapping[str, Any], vocabularies: Sequence[str], actions: int) -> Target:
    """The teacher of a run configuration, on its dataset where that is imported already."""
    require_known(plain)
    config = _config(plain.get("teacher", "hstu"))
    training, trainer, dataset = (_mapping(plain, key) for key in ("teacher_training", "trainer", "dataset"))
    folder = str(dataset.get("path") or "")
    if folder and vocabularies:
        raise UsageError(
            "--vocabulary describes a dataset, and the configuration names one",
            where=f"dataset.path of {path}",
            fix="leave --vocabulary out, or override dataset.path=",
        )
    schema = _schema_in(Path(folder)) if folder else described_schema(vocabularies, actions)
    tasks = tuple(dict.fromkeys([str(name) for name in (plain.get("task"), *plain.get("tasks", ())) if name]))
    batch = training.get("batch_size", 2048)
    return Target(
        str(plain.get("name", path.stem)),
        Model(config, schema, tasks or schema.tasks),
        not folder,
        batch,
        str(trainer["precision"]) if "precision" in trainer else None,
    )


def _mapping(plain: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = plain.get(key, {})
    return found if isinstance(found, Mapping) else {}


def _schema_in(folder: Path) -> Schema:
    path = folder / "schema.yaml"
    if not path.is_file():
        raise DataError(
            "the dataset of the configuration is not there, or not imported",
            where=str(path),
            fix="import it, or override dataset.path= and describe it with --vocabulary",
        )
    return Schema.from_dict(load_yaml(path))


def _config(spec: Any) -> HSTUConfig:
    """The settings of a teacher ``hstu``."""
    problems: list[Problem] = []
    found = resolve(installed(), "teacher", spec, "teacher", problems)
    if found is None:
        raise ConfigError(problems)
    if not isinstance(found.config, HSTUConfig):
        raise UsageError(
            f"teacher plan knows the teacher hstu, not {found.name!r}",
            where="teacher.name",
            fix="plan a configuration whose teacher is hstu, or a preset",
        )
    return found.config


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """The teacher's settings of ``layers=8`` and, as a run configuration has them, of ``teacher.layers=8``."""
    from recdistill_pipeline.commands import settings_of

    found = settings_of(list(words))
    prefixed = found.get("teacher")
    if isinstance(prefixed, Mapping):
        del found["teacher"]
        found.update({str(key): value for key, value in prefixed.items()})
    return found
