"""Short names of runs, made of the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Settings that no trained model depends on, or that tell where a run lies.
ELSEWHERE = ("name", "shared", "dataset", "store", "exporters", "evaluation", "threads")
#: Settings that are told in another way than by their difference.
TOLD = ("students", "pretrain", "seeds")
LONGEST_NAME = 60
Settings = Mapping[str, Any]


def settings_of(config: Mapping[str, Any], student: int) -> dict[str, Any]:
    """``{key.path: value}`` of what one student of a run came from.

    Args:
        config: as ``config.yaml`` holds it, with every default. student: place of the student in it.
    """
    kept = {key: value for key, value in config.items() if key not in (*ELSEWHERE, *TOLD)}
    return _flat({**kept, "student": config["students"][student]}, "")


def differences(rows: Sequence[Settings]) -> list[dict[str, Any]]:
    """What of each row's settings is not the same in all rows; a key that a row lacks is absent."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    differing = [key for key in keys if any(row.get(key) != rows[0].get(key) for row in rows)]
    return [{key: row[key] for key in differing if key in row} for row in rows]


def names(rows: Sequence[Settings], places: Sequence[str]) -> list[str]:
    """A name for every row, no two alike.

    Args:
        rows: settings. places: how to tell rows apart whose settings do not: unlike one another.
    """
    telling = [key for key in dict.fromkeys(key for row in differences(rows) for key in row) if _tells(key, rows)]
    found = [
        ", ".join(f"{_short(key, telling)}={_shown(row[key])}" for key in telling if row.get(key) is not None)
        for row in rows
    ]
    if any(len(name) > LONGEST_NAME for name in found):
        return list(places)
    return [
        name if name and found.count(name) == 1 else f"{name} ({place})" if name else place
        for name, place in zip(found, places, strict=True)
    ]


def _tells(key: str, rows: Sequence[Settings]) -> bool:
    """Whether a setting says more than the name of the component that has it."""
    owner = f"{key.rpartition('.')[0]}.name"
    if owner == key:
        return True
    by_owner: dict[str, set[str]] = {}
    for row in rows:
        by_owner.setdefault(str(row.get(owner)), set()).add(json.dumps(row.get(key), default=str))
    return any(len(values) > 1 for values in by_owner.values())


def _short(key: str, keys: Sequence[str]) -> str:
    """The last word of a key where no other key ends in it; a component's name stands for the component."""
    if key.endswith(".name"):
        return key.removesuffix(".name")
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value.removeprefix("recdistill:") or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, separators=(",", ":"))


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        parts = [_flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        parts = [_flat(inner, f"{path}[{at}]") for at, inner in enumerate(value)]
    else:
        return {path: value}
    return {key: inner for part in parts for key, inner in part.items()}
