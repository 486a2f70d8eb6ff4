"""What is published for a preset stands beside results of the dataset that it was published for alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recdistill_gpsd.commands import _show
from recdistill_gpsd.presets import PRESETS

MANIFEST: dict[str, Any] = {
    "events": 994_169,
    "held_out": 6_040,
    "users": 6_040,
    "candidates": 3_706,
    "epochs": [{"loss": {"item": 4.5}}],
    "ranking": {
        "test": {
            "users": 6_037,
            "without_history": 2,
            "out_of_vocabulary": 1,
            "metrics": {"hr@10": {"value": 0.3, "low": 0.2, "high": 0.4}},
            "by_popularity": {"hr@10": {"value": 0.1, "low": 0.1, "high": 0.1}},
        }
    },
}


def shown(manifest: dict[str, Any], preset: str) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        _show(console, manifest, preset, Path("out"))
    return captured.get()


def test_movielens_1m_is_known_by_its_counts() -> None:
    assert PRESETS["hstu-ml1m"].published_for(MANIFEST) == {"hr@10": 0.3097, "ndcg@10": 0.1720}
    text = shown(MANIFEST, "hstu-ml1m")
    assert "published on ML-1M" in text
    assert "0.3097" in text
    assert "test: users not ranked: 2 with no event before it, 1 whose item is out of vocabulary" in text
    assert "loss of the last of 1 epochs: item 4.500" in text


@pytest.mark.parametrize("change", [{"events": 100}, {"users": 943}, {"candidates": 1_682}])
def test_another_dataset_has_no_published_result(change: dict[str, int]) -> None:
    assert PRESETS["hstu-ml1m"].published_for({**MANIFEST, **change}) == {}
    text = shown({**MANIFEST, **change}, "hstu-ml1m")
    assert "published on ML-1M" not in text
    assert "this is not MovieLens-1M, of which the preset's published results are" in text


def test_without_a_preset_nothing_is_said_of_it() -> None:
    text = shown(MANIFEST, "")
    assert "MovieLens" not in text
    assert "published" not in text
