"""Every head strategy by name, from the configuration to eta; and a schedule that goes on from a checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline_cases import STUDENT, config, data_module, fit, run_of
from safetensors.torch import load_file

from recdistill_core import BuildContext, TeacherSignal, installed, make
from recdistill_core.objective import Objective
from recdistill_lightning import ReadOrder, StudentModule
from recdistill_parquet.dataset import ParquetSource

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


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_ramp_goes_on_from_a_checkpoint_in_the_midst_of_an_epoch(feed: ParquetSource, tmp_path: Path) -> None:
    def module() -> StudentModule:
        torch.manual_seed(3)
        ramp = {"name": "rec_distill", "ramp": {"to": 0.0, "steps": 20}}
        parts = [make(installed(), "strategy", ramp), make(installed(), "loss", "soft_ce")]
        student = make(installed(), "student", {"name": "mlp", **STUDENT}, BuildContext(feed.schema, ("click",)))
        return StudentModule(student, {"click": Objective("click", *parts)})

    ids = feed.column("example_id")
    logit = torch.from_numpy(ids.copy()).float() / 3000
    labels = TeacherSignal({"click": logit}, {"click": torch.ones(len(ids), dtype=torch.bool)}, "v")
    whole, again = module(), module()
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    settings = {"rows": 1500, "labels": labels, "order": ReadOrder(128, 48, "shuffle")}
    fit(whole, data_module(feed, whole, **settings), save, enable_checkpointing=True)
    checkpoint = tmp_path / "step=4.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert int(state["objectives.click.strategy.alpha.at"]) == 4
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    fit(again, data_module(feed, again, **settings), save, enable_checkpointing=True, checkpoint=checkpoint)
    for name, part in whole.state_dict().items():
        assert torch.equal(part, again.state_dict()[name]), name
