"""Small teachers, and what lies in the folders they are saved to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_cases
import hstu_cases

from recdistill_hf.teacher import HFTeacher
from recdistill_hstu.teacher import HSTUTeacher

Saved = HSTUTeacher | HFTeacher


def make(name: str) -> Saved:
    """A small teacher of each kind."""
    if name == "hstu":
        return hstu_cases.make_teacher(hstu_cases.small_config(leave_out=("user_segment",)))
    options = {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 300.0}}
    return hf_cases.make_teacher(hf_cases.small_config(architecture="qwen3", kv_heads=2, options=options))


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def card(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    plain: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return plain


def change(folder: Path, **changes: Any) -> None:
    """Write config.json with other values."""
    (folder / "config.json").write_text(json.dumps({**card(folder), **changes}))


def lines(caught: Any) -> list[str]:
    """The lines of an error."""
    return str(caught.value).splitlines()
