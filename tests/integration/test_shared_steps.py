"""The shared folder of runs: what is taken from it was made by the same settings, and what was changed is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_cases import TEACHER, config, run_of
from pretrained_cases import plain as pretrained_plain

from recdistill_core.errors import IntegrityError
from recdistill_core.fingerprint import digest
from recdistill_core.registry import installed
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.shared import SharedFolder, dataset_home, raw_settings, store_spec, teacher_settings

SMALL: Mapping[str, Any] = {"students": ["mlp"], "seeds": [1]}


def keys(**changes: Any) -> tuple[str, str]:
    """Digests of the teacher's settings and of those of its first raw student."""
    plan = make_plan({**config(Path("dataset"), **SMALL), **changes}, installed())
    return digest(teacher_settings(plan)), digest(raw_settings(plan, next(iter(plan.students))))


TRAINING = {"lr": 0.003, "batch_size": 256, "window_hours": 72}


@pytest.mark.parametrize(
    ("changes", "teacher", "raw"),
    [
        ({"name": "other"}, False, False),
        ({"seeds": [4, 5]}, False, False),
        ({"strategy": {"name": "rec_distill", "alpha": 7}}, False, False),
        ({"strategy": "single", "loss": "mse"}, False, False),
        ({"labels": {"examples": "some.parquet"}}, False, False),
        ({"evaluation": {"resamples": 200, "batch_size": 7}}, False, False),
        ({"exporters": ["torch_export"]}, False, False),
        ({"capture": {"min_coverage": 0.5, "allow_leaky": True}}, False, False),
        ({"split": {"test_from": "75%", "test_until": "90%"}}, False, False),
        ({"students": ["mlp", "dcn"]}, False, False),
        ({"states": {"width": 0, "recent": 3, "of": "token"}}, False, False),
        ({"states": {"width": 8}}, True, True),
        ({"student_training": {"lr": 0.1}}, False, True),
        ({"raw_training": {"lr": 0.1}}, False, True),
        ({"student_debiasers": ["position_tower"]}, False, True),
        ({"students": [{"name": "mlp", "recent": 3}]}, False, True),
        ({"split": {"test_from": "75%", "student_from": "50%"}}, False, True),
        ({"teacher": {**TEACHER, "width": 8}}, True, False),
        ({"teacher_training": {**TRAINING, "lr": 0.1}}, True, False),
        ({"teacher_debiasers": ["ipw"]}, True, False),
        ({"capture": {"warmup_steps": 3}}, True, False),
        ({"capture": {"mode": "out_of_fold"}}, True, False),
        ({"pretrained": {"path": "folder"}}, True, False),
        ({"split": {"test_from": "75%", "train_from": "10%"}}, True, True),
        ({"split": {"test_from": "70%"}}, True, True),
        ({"split": {"test_from": "75%", "stream_from": "50%"}}, True, True),
        ({"task": "long_view"}, True, True),
        ({"tasks": ["click", "long_view"]}, True, True),
        ({"threads": 2}, True, True),
        ({"trainer": {"name": "lightning", "gradient_clip_val": 1.0}}, True, True),
        ({"dataset": {"path": "other"}}, True, True),
    ],
    ids=str,
)
def test_what_a_model_depends_on_and_nothing_else_is_in_its_key(
    changes: dict[str, Any], teacher: bool, raw: bool
) -> None:
    before, after = keys(), keys(**changes)
    assert (before[0] != after[0], before[1] != after[1]) == (teacher, raw)


def test_a_raw_student_is_the_same_however_its_settings_are_written() -> None:
    plain = {**TRAINING, "lr": 0.1}
    assert keys(student_training=plain) == keys(student_training=TRAINING, raw_training={"lr": 0.1})


def test_where_a_store_is_given_the_teachers_of_another_one_are_not_taken() -> None:
    assert keys(store={"name": "parquet", "path": "a"})[0] != keys()[0]
    plan = make_plan(config(Path("d"), store={"name": "parquet", "path": "a"}, shared="shared"), installed())
    assert store_spec(plan, Path("run")) == {"name": "parquet", "path": "a"}


def test_places_with_and_without_a_shared_folder() -> None:
    alone, shared = (make_plan(config(None, shared=folder), installed()) for folder in ("", "common"))
    assert dataset_home(alone, Path("run")) == Path("run/dataset")
    assert dataset_home(shared, Path("run")).parent == Path("common/datasets")
    assert store_spec(alone, Path("run"))["path"] == "run/labels"
    assert Path(store_spec(shared, Path("run"))["path"]).parent == Path("common/labels")
    given = make_plan(config(Path("here"), shared="common"), installed())
    assert dataset_home(given, Path("run")) == Path("here")


@pytest.mark.slow
def test_students_that_start_later_learn_from_the_same_teacher(feed_path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    shared = {**SMALL, "shared": str(tmp_path / "shared")}
    run_of(tmp_path / "one", config(feed_path, **shared)).all()
    late = config(feed_path, **shared, split={"test_from": "75%", "student_from": "50%"})
    run_of(tmp_path / "two", late, said.append).all()
    assert "scoring 750 test rows with teacher, seed 1" not in said
    assert "scoring 750 test rows with raw/mlp, seed 1" in said
    taken = [line for line in said if "is there already" in line]
    assert [line.partition(" ")[0] for line in taken] == ["seed-1/teacher"]
    assert not any(line.startswith("teacher hstu") for line in said)
    run_of(tmp_path / "alone", {**late, "shared": ""}).all()
    assert (tmp_path / "two/metrics.json").read_bytes() == (tmp_path / "alone/metrics.json").read_bytes()


def test_scores_that_were_changed_are_refused(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path / "shared")
    first = folder.array({"of": 1}, lambda: np.arange(3.0))
    assert folder.array({"of": 1}, lambda: np.zeros(3)).tolist() == first.tolist() == [0.0, 1.0, 2.0]
    assert folder.array({"of": 2}, lambda: np.zeros(3)).tolist() == [0.0] * 3
    for path in (tmp_path / "shared/arrays").glob("*/array.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="a file of the run is absent or was changed"):
        folder.array({"of": 1}, lambda: np.arange(3.0))


@pytest.mark.slow
def test_a_teacher_of_other_pretrained_weights_is_another_one(
    feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Under the same path: what counts is the checksum of the weights."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    run = run_of(tmp_path / "run", {**pretrained_plain(feed_path, folder), "shared": str(tmp_path / "shared")})
    source, _ = run.dataset()
    before = run._settings(source, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert digest(run._settings(source, 1)) != digest(before)
    assert run._settings(source, 1)["start"] == "0" * 64


@pytest.mark.slow
def test_copies_out_of_fold_are_shared_too(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, **SMALL, shared=str(tmp_path / "shared"), capture={"mode": "out_of_fold", "folds": 2})
    run_of(tmp_path / "one", plain).teachers()
    made = {path.name for path in (tmp_path / "shared/steps").iterdir()}
    assert len(made) == 3
    run_of(tmp_path / "two", {**plain, "loss": "mse"}).teachers()
    assert {path.name for path in (tmp_path / "shared/steps").iterdir()} == made
    for step in ("teacher", "teacher-fold-0", "teacher-fold-1"):
        one, two = (tmp_path / run / "seed-1" / step for run in ("one", "two"))
        assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
        assert (one / "model.safetensors").samefile(two / "model.safetensors")


@pytest.mark.slow
def test_a_step_that_was_changed_is_refused_and_one_that_is_gone_is_made_again(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, **SMALL, shared=str(tmp_path / "shared"))
    run_of(tmp_path / "one", plain).raw_student("mlp", 1)
    (home,) = (tmp_path / "shared/steps").iterdir()
    weights = home / "model.safetensors"
    good = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError) as error:
        run_of(tmp_path / "two", plain).raw_student("mlp", 1)
    assert "a file of the run is absent or was changed since it was written" in str(error.value)
    assert f"delete {home} and run again" in str(error.value)
    shutil.rmtree(home)
    run_of(tmp_path / "two", plain).raw_student("mlp", 1)
    assert weights.read_bytes() == good
    shutil.rmtree(home)  # as where a process has ended between making a step and sharing it
    said: list[str] = []
    run_of(tmp_path / "two", plain, said.append).raw_student("mlp", 1)
    assert said == []
    assert weights.samefile(tmp_path / "two/seed-1/mlp-raw/model.safetensors")
    manifest = json.loads((tmp_path / "two/seed-1/mlp-raw/manifest.json").read_text())
    assert manifest == json.loads((tmp_path / "one/seed-1/mlp-raw/manifest.json").read_text())
