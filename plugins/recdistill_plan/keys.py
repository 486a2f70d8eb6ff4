"""Whether a run configuration has keys that no run has, found without what their values need: no torch is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from recdistill_core.errors import ConfigError, Problem, suggest
from recdistill_hstu import HSTUConfig


def require_known(plain: Mapping[str, Any]) -> None:
    """Refuse a run configuration that says what no run reads, so that no change to it is lost.

    Keys that are absent, and values that a plan does not read, are ``config validate``'s to judge.

    Raises:
        ConfigError: with every unknown key, every section that is no mapping, and a batch size that is none.
    """
    from recdistill_pipeline.runconfig import RunConfig

    problems = list(_unknown(RunConfig, plain, ""))
    training = plain.get("teacher_training")
    batch = training.get("batch_size", 1) if isinstance(training, Mapping) else 1
    if not isinstance(batch, int) or batch < 1:
        problems.append(Problem("teacher_training.batch_size", f"must be a whole number of at least 1, got {batch!r}"))
    if problems:
        raise ConfigError(problems)


def _unknown(cls: type[Any], plain: Mapping[str, Any], path: str) -> Iterator[Problem]:
    hints, known = get_type_hints(cls), [entry.name for entry in fields(cls)]
    for key, value in plain.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in known:
            yield Problem(where, f"unknown key{_hint(str(key), path, value, known)}; known: {', '.join(known)}")
        elif isinstance(hints[key], type) and is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                yield from _unknown(hints[key], value, where)
            else:
                yield Problem(where, f"must be a mapping, got {type(value).__name__} {value!r}")


def _hint(key: str, path: str, value: Any, known: list[str]) -> str:
    if not path and key in {entry.name for entry in fields(HSTUConfig)}:
        return f" (a setting of the teacher: write teacher.{key}={value})"
    return suggest(key, known)
