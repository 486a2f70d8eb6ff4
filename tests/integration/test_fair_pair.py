"""Raw and distilled students differ in the teacher's labels and in nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_cases import STUDENT, config, run_of

from recdistill_core.registry import installed
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.checkpoint import load_weights
from recdistill_pipeline.models import build_student
from recdistill_pipeline.plan import make_plan

DROPPING: dict[str, Any] = {"name": "mlp", **STUDENT, "dropout": 0.3}


@pytest.mark.parametrize("strategy", ["single", "rec_distill"])
def test_training_starts_from_one_state_of_the_random_generator(
    strategy: str, feed: ParquetSource, feed_path: Path
) -> None:
    plan = make_plan(config(feed_path, strategy={"name": strategy}), installed())
    states = []
    for distilled in (False, True):
        build_student(plan, "mlp", feed.schema, 1, distilled=distilled)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_labels_of_no_weight_change_no_bit_of_a_student_with_dropout(feed_path: Path, tmp_path: Path) -> None:
    weightless = {"name": "single", "alpha": 0.0}
    run_of(tmp_path, config(feed_path, seeds=[1], students=[DROPPING], strategy=weightless)).all()
    raw, distilled = (load_weights(tmp_path / f"seed-1/mlp-{kind}/model.safetensors") for kind in ("raw", "distilled"))
    assert set(raw) == set(distilled)
    assert all(torch.equal(raw[name], distilled[name]) for name in raw)


def test_raw_students_may_have_a_training_of_their_own(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, seeds=[1], students=["mlp"])
    training = {**plain["student_training"], "batch_epochs": 1}
    weights = {}
    for name, student, raw in (
        ("as-one", training, {}),
        ("apart", training, {"lr": 0.02, "batch_epochs": 2}),
        ("other", {**training, "lr": 0.02, "batch_epochs": 2}, {}),
    ):
        split = {"test_from": "75%", "stream_from": "70%"}
        changes = {"student_training": student, "raw_training": raw, "split": split}
        run_of(tmp_path / name, {**plain, **changes}).all()
        for kind in ("raw", "distilled"):
            weights[name, kind] = load_weights(tmp_path / name / f"seed-1/mlp-{kind}/model.safetensors")

    def equal(one: tuple[str, str], other: tuple[str, str]) -> bool:
        return all(torch.equal(weights[one][key], weights[other][key]) for key in weights[one])

    told = "> **Raw students have settings of their own:** lr 0.02, batch_epochs 2."
    assert [told in (tmp_path / name / "summary.md").read_text() for name in ("as-one", "apart", "other")] == [0, 1, 0]
    assert json.loads((tmp_path / "apart/metrics.json").read_text())["raw_training"] == {"lr": 0.02, "batch_epochs": 2}
    assert equal(("apart", "raw"), ("other", "raw"))
    assert equal(("apart", "distilled"), ("as-one", "distilled"))
    assert not equal(("apart", "raw"), ("as-one", "raw"))
