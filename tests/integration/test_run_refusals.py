"""Faults of a run that are found before its first training step, and labels that cover too little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pipeline_cases import CONFIG, config, run_of, simulated

from recdistill_core.errors import ConfigError, DataError, RecdistillError, UsageError, WiringError
from recdistill_parquet.dataset_writer import write_dataset


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reaches step 0."""

    def reached(*arguments: Any) -> Any:
        raise AssertionError("training was reached")

    monkeypatch.setattr("recdistill_pipeline.run.fit_teacher", reached)


def refused(out: Path, plain: dict[str, Any], kind: type[RecdistillError], *expected: str) -> None:
    with pytest.raises(kind) as error:
        run_of(out, plain).all()
    for text in expected:
        assert text in str(error.value), f"{text!r} is not in:\n{error.value}"


@pytest.mark.usefixtures("no_training")
def test_a_debiaser_without_its_column_is_refused(tmp_path: Path) -> None:
    raw = simulated()
    write_dataset(replace(raw, schema=replace(raw.schema, position="")), tmp_path / "dataset")
    plain = config(tmp_path / "dataset", student_debiasers=["position_tower"])
    refused(tmp_path / "out", plain, WiringError, "debiaser 'position_tower' needs position", "it gives: history")
    plain = config(tmp_path / "dataset", teacher_debiasers=["ipw"], student_debiasers=["position_tower"])
    refused(tmp_path / "two", plain, WiringError, "'ipw' needs propensity", "'position_tower' needs position")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"task": "clik"}, DataError, ["the dataset has no task 'clik' (did you mean 'click'?)"]),
        ({"tasks": ["like"]}, DataError, ["the dataset has no task 'like'", "schema tasks: click, long_view"]),
        ({"split": {"test_from": "2099-01-01"}}, DataError, ["leaves no test rows", "test_from='2099-01-01'"]),
        ({"split": {"test_from": "0%"}}, DataError, ["leaves no teacher rows", "the log runs from 20"]),
        ({"split": {"student_from": "80%", "test_from": "75%"}}, DataError, ["leaves no student rows"]),
        ({"split": {"test_from": "soon"}}, UsageError, ["'soon' is no time", "split.test_from"]),
        ({"split": {"test_from": "120%"}}, UsageError, ["'120%' is no time"]),
        (
            {"teacher_training": {"within": "shuffle"}},
            ConfigError,
            ["teacher_training: within must be user or time for a teacher"],
        ),
        ({"teacher_training": {"batch_epochs": 0}}, ConfigError, ["batch_epochs must be >= 1, got 0"]),
        ({"raw_training": {"lr": -1.0}}, ConfigError, ["raw_training: lr must be > 0, got -1.0"]),
        ({"seeds": [1, 1]}, ConfigError, ["seeds needs one or more different numbers"]),
        ({"students": []}, ConfigError, ["students needs at least one entry"]),
        (
            {"evaluation": {"metrics": ["auc", "auc"]}},
            ConfigError,
            ["evaluation.metrics: names metric 'auc' more than once; results are keyed by name"],
        ),
        ({"evaluation": {"confidence": 0.4}}, ConfigError, ["evaluation: confidence must lie in (0.5, 1), got 0.4"]),
        ({"evaluation": {"resamples": 99}}, ConfigError, ["evaluation: resamples must be >= 100, got 99"]),
    ],
)
def test_faults_are_found_before_training(
    changes: dict[str, Any], kind: type[RecdistillError], expected: list[str], feed_path: Path, tmp_path: Path
) -> None:
    refused(tmp_path / "out", config(feed_path, **changes), kind, *expected)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("rate", [0, 1])
def test_test_rows_of_one_class_are_refused(rate: int, tmp_path: Path) -> None:
    raw = simulated()

    def changed() -> Any:
        table = pa.Table.from_batches(list(raw.impressions()))
        click = table["click"].to_numpy().copy()
        click[2250:] = rate
        return iter(table.set_column(table.column_names.index("click"), "click", pa.array(click)).to_batches())

    write_dataset(replace(raw, impressions=changed), tmp_path / "dataset")
    refused(
        tmp_path / "out",
        config(tmp_path / "dataset"),
        DataError,
        "the test rows hold only one class of labels of task 'click'",
        "rows 2250 to 3000",
        "move split.test_from",
    )


def test_teacher_training_reads_by_user_unless_told_otherwise() -> None:
    from recdistill_core.registry import installed
    from recdistill_pipeline.plan import make_plan

    plan = make_plan({**CONFIG, "dataset": {"path": "d"}, "teacher_training": {"lr": 0.1}}, installed())
    assert plan.config.teacher_training.within == "user"
    assert plan.config.student_training.within == "shuffle"


def test_labels_that_cover_too_little_stop_the_run(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, seeds=[1], students=["mlp"], capture={"warmup_steps": 4, "min_coverage": 0.9})
    refused(tmp_path, plain, DataError, "of the training rows for task 'click'", "less than the 90.0% asked for")
    assert (tmp_path / "seed-1/teacher/manifest.json").exists()
    assert not (tmp_path / "seed-1/mlp-distilled").exists()


def test_students_may_see_less_of_the_log_than_their_teacher(feed_path: Path, tmp_path: Path) -> None:
    plain = config(
        feed_path,
        seeds=[1],
        students=["mlp"],
        split={"test_from": "75%", "student_from": "50%", "stream_from": "60%"},
        capture={"warmup_steps": 2, "min_coverage": 1.0},
    )
    results = run_of(tmp_path, plain).all()
    assert results["data"]["teacher_rows"] == 2250
    assert 700 < results["data"]["student_rows"] < 760
    assert results["data"]["coverage"] == {"mlp": 1.0}  # the cold teacher's rows lie before the students' first row
