"""A run whose teacher is a transformers decoder, and its teacher as an artefact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import TEACHER, Verb, answer, config, refused, run_of, write_config

from recdistill_core.artefact import load_teacher, read_card
from recdistill_core.interfaces import CaptureMode
from recdistill_hf.teacher import HFTeacher
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.teacher_of_run import TeacherOfRun

SMALL = {"seeds": [1], "students": [{"name": "mlp", "embedding": 4, "hidden": [8], "recent": 5}]}
HF = {**TEACHER, "name": "hf", "kv_heads": 1, "options": {"rope_parameters": {"rope_theta": 500.0}}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, feed_path: Path) -> Path:
    """A finished run; read-only."""
    out = tmp_path_factory.mktemp("hf") / "run"
    run_of(out, config(feed_path, **{**SMALL, "teacher": HF})).all()
    return out


def test_a_run_distils_from_a_transformers_decoder(finished: Path, feed: ParquetSource) -> None:
    manifest = json.loads((finished / "seed-1/teacher/manifest.json").read_text())
    assert manifest["description"] == {"architecture": "llama", "backend": "sdpa"}
    found = TeacherOfRun.of(finished)
    plan = found.plan()
    (version,) = found.store(plan).versions()
    assert version.mode is CaptureMode.PREQUENTIAL
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["capture"] == "prequential"


def test_its_teacher_is_saved_and_scores_alike(
    finished: Path, feed: ParquetSource, recdistill: Verb, tmp_path: Path
) -> None:
    out = tmp_path / "artefact"
    found = answer(recdistill("teacher", "save", finished, "--out", out, "--json"))
    assert (found["component"], found["step"]) == ("hf", "seed-1/teacher")
    assert found["files"] == ["config.json", "model.safetensors"]
    assert read_card(out).dataset == feed.snapshot_id
    loaded = load_teacher(out)
    assert isinstance(loaded, HFTeacher)
    manifest = json.loads((finished / "seed-1/teacher/manifest.json").read_text())
    assert loaded.fingerprint() == found["fingerprint"] == manifest["fingerprint"]
    of_run = TeacherOfRun.of(finished)
    teacher = of_run.teacher(of_run.plan(), feed)
    batch = feed.batch(np.arange(2000, 2200), loaded.history)
    assert torch.equal(loaded.score(batch).logits["click"], teacher.score(batch).logits["click"])
    refused(recdistill("teacher", "save", finished, "--out", out, "--json"), "UsageError", "the folder is not empty")
    again = answer(recdistill("teacher", "save", finished, "--out", out, "--overwrite", "--json"))
    assert again == found
    done = recdistill("teacher", "save", finished, "--out", tmp_path / "other")
    assert (done[0], " ".join(done[1].split())) == (0, f"seed-1/teacher of {finished} in {tmp_path / 'other'}")


def test_a_run_without_that_teacher_is_refused(finished: Path, recdistill: Verb, tmp_path: Path) -> None:
    out = tmp_path / "artefact"
    done = recdistill("teacher", "save", finished, "--out", out, "--seed", 7, "--json")
    refused(done, "UsageError", "the run has no finished teacher seed-7/teacher")
    shutil.copytree(finished, tmp_path / "run")
    weights = tmp_path / "run/seed-1/teacher/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = recdistill("teacher", "save", tmp_path / "run", "--out", out, "--json")
    refused(done, "IntegrityError", "a file of the run is absent or was changed since it was written")
    assert not out.exists()


def test_a_teacher_that_was_not_trained_has_nothing_to_save(
    feed: ParquetSource, feed_path: Path, recdistill: Verb, tmp_path: Path
) -> None:
    scores = {"example_id": feed.column("example_id"), "probability_click": feed.truth("click")}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    teacher = {"name": "scores_file", "path": str(tmp_path / "scores.parquet"), "scale": "probability"}
    run_of(tmp_path / "run", config(feed_path, **{**SMALL, "teacher": teacher, "teacher_training": {}})).teachers()
    done = recdistill("teacher", "save", tmp_path / "run", "--out", tmp_path / "artefact", "--json")
    refused(done, "UsageError", "the run trained no scores_file, so there are no weights to save")


def test_settings_that_cannot_be_are_refused_before_training(tmp_path: Path, recdistill: Verb) -> None:
    path = write_config(tmp_path / "config.yaml", config(**{**SMALL, "teacher": {**HF, "architecture": "lama"}}))
    done = recdistill("config", "validate", path, "--json")
    refused(done, "ConfigError", "teacher: architecture must be one of gemma, ", "(did you mean 'llama'?)")
