"""Names of run folders: short, readable, different for different settings, and the same in any order of these."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from recdistill_core.fingerprint import digest

#: Names of arms and datasets, which users choose; a comma separates the parts of a folder's name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
LONGEST_VALUE, LONGEST_NAME = 40, 160


def run_name(dataset: str, arm: str, point: Mapping[str, str]) -> str:
    """The folder of one run.

    Args:
        dataset, arm: their names, or empty. point: ``{label of the setting: label of its value}``.
    """
    parts = [dataset, arm, *(f"{key}-{point[key]}" for key in sorted(point))]
    name = ",".join(part for part in parts if part) or "run"
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{digest(name)[:8]}"


def key_labels(keys: Sequence[str]) -> dict[str, str]:
    """``{dotted path: label}``: its last word, or all of them where two paths end in the same one."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: _slug(word if last.count(word) == 1 else key) for key, word in zip(keys, last, strict=True)}


def value_labels(values: Sequence[Any]) -> list[str]:
    """A label for each value, different for different values of one setting.

    What cannot be told in a few plain characters, or not unambiguously, carries a digest.
    """
    texts = [_text(value) for value in values]
    return [
        text
        if texts.count(text) == 1 and text == _slug(text) and 0 < len(text) <= LONGEST_VALUE
        else f"{_slug(text)[:LONGEST_VALUE]}-{digest(value)[:8]}"
        for text, value in zip(texts, values, strict=True)
    ]


def _text(value: Any) -> str:
    """A value in words: ``single-alpha-10`` for ``{name: single, alpha: 10}``, ``dcn+mlp`` for a list."""
    if isinstance(value, Mapping):
        rest = [f"{key}-{_text(value[key])}" for key in sorted(value, key=str) if key != "name"]
        return "-".join([_text(value["name"]), *rest] if "name" in value else rest)
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
