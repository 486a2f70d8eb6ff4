"""Runs whose teacher is somebody else's: scores in files and behind a service, from YAML to eta."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_cases import CONFIG, command, config, environment, run_of, write_config

from recdistill_core.errors import DataError, UsageError
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from external_cases import Service, serving  # lies with the unit tests

QUICK = {"students": ["mlp"], "teacher_training": {}, "seeds": [1, 2]}


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as found:
        yield found


def truth_of(feed: ParquetSource) -> np.ndarray[Any, Any]:
    found = feed.truth("click")
    assert found is not None
    return found


def write_truth(feed: ParquetSource, path: Path, rows: slice = slice(None)) -> str:
    """The simulator's true probabilities as a file of scores, newest first."""
    columns = {"example_id": feed.column("example_id"), "probability_click": truth_of(feed)}
    pq.write_table(pa.table({name: column[rows][::-1] for name, column in columns.items()}), path)
    return str(path)


def teacher_facts(out: Path, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"seed-{seed}/teacher/manifest.json").read_text())
    return found


def test_a_teacher_that_is_not_trained_here_scores_no_candidates(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    teacher = {"name": "scores_file", "path": write_truth(feed, tmp_path / "scores.parquet"), "scale": "probability"}
    plain = config(feed_path, **QUICK, teacher=teacher, candidates={"per_row": 2})
    with pytest.raises(UsageError, match="teacher 'scores_file' is not trained here, and candidates are scored in"):
        run_of(tmp_path / "out", plain).all()
    plain = config(feed_path, **QUICK, teacher=teacher, states={"width": 4})
    with pytest.raises(UsageError, match="teacher 'scores_file' is not trained here, and hidden states are kept in"):
        run_of(tmp_path / "states", plain).all()
    together = {"labels": {"policy": "all_of"}}
    for where, first, other in (("teacher", teacher, CONFIG["teacher"]), ("further", CONFIG["teacher"], teacher)):
        plain = config(feed_path, **QUICK, **together, teacher=first, further_teachers=[other])
        with pytest.raises(UsageError, match="teacher 'scores_file' is not trained here, and further_teachers") as told:
            run_of(tmp_path / where, plain).all()
        assert told.value.where == {"teacher": "teacher", "further": "further_teachers[0]"}[where]


def test_true_probabilities_in_a_file_are_a_teacher_with_a_gain(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    path = write_truth(feed, tmp_path / "scores.parquet")
    said: list[str] = []
    teacher = {"name": "scores_file", "path": path, "scale": "probability"}
    plain = config(feed_path, **QUICK, teacher=teacher, capture={"min_coverage": 1.0, "warmup_steps": 3})
    results = run_of(tmp_path / "out", plain, said.append).all()
    assert results["teacher"]["auc"] == pytest.approx(results["oracle"]["auc"], abs=1e-6)
    assert results["gain"]["auc"]["teacher"]["low"] > 0
    assert results["capture"] == "external"
    assert results["data"]["teacher_rows"] == 0
    assert results["cost"]["ratio"] == dict.fromkeys(results["cost"]["ratio"])
    assert results["data"]["coverage"] == {"mlp": 1.0}
    assert [line for line in said if "without effect" in line] == [
        "teacher scores_file is not trained here; without effect: capture.warmup_steps"
    ]
    first, second = (teacher_facts(tmp_path / "out", seed) for seed in (1, 2))
    assert first["labels"] == second["labels"]
    assert first["labels"]["mode"] == "external"
    assert first["description"]["labelled"] == {"rows": 3000, "known": 0, "added": 3000, "unscored": 0}
    assert second["description"]["labelled"] == {"rows": 3000, "known": 3000, "added": 0, "unscored": 0}
    assert not list((tmp_path / "out/seed-1/teacher").glob("*.safetensors"))
    train = slice(0, 2250)
    assert first["description"]["compared"]["click"] == {
        "mean_probability": pytest.approx(truth_of(feed)[train].mean(), rel=1e-5),
        "observed_rate": pytest.approx(feed.column("label_click")[train].mean()),
    }
    assert sum("the mean probability of the labels is" in line for line in said) == 2
    assert not any("set scale: probability" in line for line in said)
    summary = (tmp_path / "out/summary.md").read_text()
    assert "**External labels.** The teacher was not trained here." in summary
    assert f"| mlp | 100.0% | {results['data']['label_auc']['mlp']:.4f} | unknown : " in summary
    assert len(ParquetLogitStore(tmp_path / "out/labels").versions()) == 1
    again = run_of(tmp_path / "out", plain).evaluate()
    assert again["eta"] == results["eta"]


def test_a_service_is_asked_once_for_each_row_of_a_run(
    feed: ParquetSource, feed_path: Path, tmp_path: Path, service: Service
) -> None:
    chance = dict(zip(feed.column("example_id").tolist(), truth_of(feed).tolist(), strict=True))

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        ids = [row["id"] for row in asked["rows"]]
        return {"version": "v1", "ids": ids, "scores": {"click": [chance[example] for example in ids]}}

    service.server.answer = answer
    service.fail_at_random(3, share=0.3)
    settings = service.settings(scale="probability", batch_rows=100, attempts=30, fields=["user_id", "item_id"])
    plain = {**CONFIG, "dataset": {"path": str(feed_path)}, **QUICK, "teacher": {"name": "http", **settings}}
    file = write_config(tmp_path / "run.yaml", plain)
    for verb in ("teacher fit", "run"):
        words = command(*verb.split(), file, "--out", tmp_path / "out", "--json")
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gain"]["auc"]["teacher"]["low"] > 0
    assert set(service.scored.values()) == {1}
    assert len(service.scored) == 3000
    assert {"id", "user_id", "item_id"} == set(service.requests[0]["asked"]["rows"][0])


def test_a_service_is_asked_about_the_chosen_examples_and_the_test_rows_alone(
    feed: ParquetSource, feed_path: Path, tmp_path: Path, service: Service
) -> None:
    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        ids = [row["id"] for row in asked["rows"]]
        return {"version": "v1", "ids": ids, "scores": {"click": [0.3] * len(ids)}}

    service.server.answer = answer
    pq.write_table(pa.table({"example_id": np.arange(0, 2250, 9)}), tmp_path / "chosen.parquet")
    settings = service.settings(scale="probability", batch_rows=100, fields=["user_id", "item_id"])
    plain = config(feed_path, **QUICK, teacher={"name": "http", **settings})
    chosen = {"examples": str(tmp_path / "chosen.parquet")}
    run = run_of(tmp_path / "out", {**plain, "labels": chosen, "capture": {"min_coverage": 0.11}})
    run.teachers()
    run.students()
    assert len(service.scored) == 250 + 750
    step = json.loads((tmp_path / "out/seed-1/mlp-distilled/manifest.json").read_text())
    assert step["labels"]["coverage"]["click"] == pytest.approx(250 / 2250)
    with pytest.raises(DataError, match=r"scores for 11\.1% of the students' training rows, less than the 50\.0%"):
        run_of(tmp_path / "two", {**plain, "labels": chosen, "capture": {"min_coverage": 0.5}}).teachers()


def test_scores_that_do_not_cover_the_test_rows_stop_the_run_before_training(
    feed: ParquetSource, feed_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*arguments: Any) -> Any:
        raise AssertionError("training was reached")

    monkeypatch.setattr("recdistill_pipeline.run.fit_student", reached)
    path = write_truth(feed, tmp_path / "scores.parquet", slice(0, 2900))
    said: list[str] = []
    teacher = {"name": "scores_file", "path": path, "scale": "probability"}
    with pytest.raises(DataError, match=r"task 'click' for 100 of 750 test rows\n.*example \d+\n.*test_until"):
        run_of(tmp_path / "out", config(feed_path, **QUICK, teacher=teacher), said.append).all()
    assert any("scores_file has no score for 100 of 3,000 rows: examples " in line for line in said)


def test_scores_that_cover_too_little_stop_the_run_before_training(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    path = write_truth(feed, tmp_path / "scores.parquet", slice(1000, None))
    teacher = {"name": "scores_file", "path": path, "scale": "probability"}
    plain = config(feed_path, **QUICK, teacher=teacher, capture={"min_coverage": 0.9})
    with pytest.raises(DataError, match=r"for 55.6% of the students' training rows, less than the 90.0% of capture"):
        run_of(tmp_path / "one", plain).all()
    results = run_of(tmp_path / "two", {**plain, "capture": {"min_coverage": 0.5}, "seeds": [1]}).all()
    assert results["data"]["coverage"]["mlp"] == pytest.approx(1250 / 2250)


def test_probabilities_that_are_called_logits_are_pointed_out(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    path = write_truth(feed, tmp_path / "scores.parquet")
    said: list[str] = []
    teacher = {"name": "scores_file", "path": path, "scale": "logit", "scores": {"click": "probability_click"}}
    run_of(tmp_path / "out", config(feed_path, **QUICK, teacher=teacher), said.append).teachers()
    expected = "task click: all logits lie in [0, 1]; if they are probabilities, set scale: probability"
    assert said.count(expected) == 2


def test_every_setting_without_effect_is_named(feed: ParquetSource, feed_path: Path, tmp_path: Path) -> None:
    path = write_truth(feed, tmp_path / "scores.parquet")
    said: list[str] = []
    plain = config(
        feed_path,
        students=["mlp"],
        seeds=[1],
        teacher={"name": "scores_file", "path": path, "scale": "probability"},
        teacher_training={"lr": 0.5},
        capture={"mode": "leaky", "allow_leaky": True},
        teacher_debiasers=["pal"],
        split={"test_from": "75%", "train_from": "10%", "student_from": "20%"},
    )
    run_of(tmp_path / "out", plain, said.append).teachers()
    assert said[0].endswith(
        "without effect: teacher_training.lr, capture.mode, capture.allow_leaky, teacher_debiasers, split.train_from"
    )
    assert teacher_facts(tmp_path / "out", 1)["labels"]["mode"] == "external"
