"""The presets on MovieLens-100K, where the package RecBole, which brings the data, is installed."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest
from pipeline_cases import Verb, answer

SPEC = importlib.util.find_spec("recbole")
RATINGS = Path(SPEC.origin if SPEC and SPEC.origin else "").parent / "dataset_example/ml-100k/ml-100k.inter"
EXAMPLE = Path(__file__).parents[2] / "examples/movielens_to_parquet.py"


@pytest.mark.realdata
@pytest.mark.skipif(not RATINGS.is_file(), reason="RecBole, which brings MovieLens-100K, is not installed")
def test_two_epochs_beat_chance(recdistill: Verb, tmp_path: Path) -> None:
    assert runpy.run_path(str(EXAMPLE))["convert"](RATINGS, tmp_path) == 100_000
    words = (f"path={tmp_path}/ratings.parquet", f"schema={tmp_path}/schema.yaml", "--out", tmp_path / "dataset")
    answer(recdistill("data", "import", "table", *words, "--json"))
    out = ("--preset", "sasrec-ml1m", "--data", tmp_path / "dataset", "--out", tmp_path / "out", "--json")
    found = answer(recdistill("teacher", "pretrain", "epochs=2", "device=cpu", *out))
    assert (found["users"], found["events"], found["candidates"]) == (943, 99_057, 1_682)
    assert found["ranking"]["test"]["metrics"]["hr@10"]["low"] > 10 / 1_682
