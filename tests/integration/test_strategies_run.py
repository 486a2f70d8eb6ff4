"""Every head strategy by name, from the configuration to eta; and that a schedule survives a checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_cases import config, run_of
from safetensors.torch import load_file

RAMP = {"to": 0.5, "steps": 4, "shape": "cosine"}
TERMS = {
    "rec_distill": {"main/hard", "auxiliary/hard", "auxiliary/soft"},
    "single": {"main/hard", "main/soft"},
    "exfm_aux": {"main/hard", "auxiliary/soft"},
    "student_adapter": {"main/hard", "auxiliary/soft", "adapter/hard", "adapted/soft"},
    "multi_teacher": {"main/hard", "auxiliary/hard", "auxiliary/soft"},
}


@pytest.mark.parametrize("name", TERMS)
def test_a_run_with_each_strategy(name: str, feed_path: Path, tmp_path: Path) -> None:
    strategy: dict[str, Any] = {"name": name, "alpha": 2.0, "ramp": RAMP, "confidence": "calibration"}
    plain = config(feed_path, students=["mlp"], seeds=[1], strategy=strategy)
    results = run_of(tmp_path / "out", plain).all()
    assert results["students"]["mlp"]["distilled"]["auc"] is not None
    step = tmp_path / "out/seed-1/mlp-distilled"
    with (step / "log/metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {column.removeprefix("train/click/") for column in columns if "/" in column} == TERMS[name]
    state = load_file(step / "model.safetensors")
    steps = int(state["objectives.click.strategy.alpha.at"])
    assert steps > RAMP["steps"]  # type: ignore[operator]  # an int in a mapping of several types
    assert int(state["objectives.click.strategy.confidence.rows"].sum()) == 2250  # every training row, once
    raw, served = (load_file(step.with_name(f"mlp-{kind}") / "serving.safetensors") for kind in ("raw", "distilled"))
    assert raw.keys() == served.keys()  # nothing of the strategy is served
    assert not all(torch.equal(raw[part], served[part]) for part in raw)
