"""Runs that start from a pre-trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline_cases import config

PRETRAIN = {"epochs": 1, "negatives": 16, "batch_users": 16, "device": "cpu"}


def plain(dataset: Path, folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A run of one seed and one student whose teacher trains from 30% of the rows on."""
    taken = changes.pop("pretrained", {})
    return config(
        dataset,
        seeds=[1],
        students=[{"name": "mlp", "embedding": 4, "hidden": [8], "recent": 5}],
        split={"train_from": "30%", "test_from": "75%"},
        pretrain=PRETRAIN,
        **({"pretrained": {"path": str(folder), **taken}} if folder else {}),
        **changes,
    )


def manifest(path: Path) -> dict[str, Any]:
    """The manifest in a folder."""
    found: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return found
