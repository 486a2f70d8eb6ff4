"""Embedding distillation in runs: what is kept, what students learn from it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import TEACHER, Verb, config, data_module, fit, run_of, teacher_tables
from safetensors.torch import load_file

from recdistill_compare.job import compare_runs
from recdistill_compare.report import summary
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, IntegrityError, UsageError
from recdistill_core.fingerprint import digest
from recdistill_core.objective import Objective
from recdistill_core.registry import installed
from recdistill_lightning import (
    EmbeddingDistillation,
    FeatureView,
    IdEmbeddings,
    StudentModule,
)
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.embeddings import require_models
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.shared import raw_settings, teacher_settings

LATE = {"test_from": "75%", "student_from": "50%"}
QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1], "split": LATE}
ON = {"weight": 0.5, "of": ["item", "creator"]}


@pytest.fixture(scope="module")
def plain_run(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    run_of(out, config(feed_path, **QUICK)).all()
    return out


@pytest.fixture(scope="module")
def finished(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with embeddings; read-only."""
    out = tmp_path_factory.mktemp("embeddings") / "run"
    run_of(out, config(feed_path, **QUICK, embeddings=ON)).all()
    return out


def of(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def same(one: Path, two: Path, name: str) -> bool:
    mine, theirs = load_file(one / name), load_file(two / name)
    return set(mine) == set(theirs) and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_run_keeps_the_embeddings_and_its_students_learn_from_them(
    finished: Path, plain_run: Path, feed: ParquetSource
) -> None:
    facts = of(finished, "seed-1/teacher/manifest.json")
    assert facts["embeddings"]["at"] == "student_start"
    assert facts["embeddings"]["before"] == feed.column("event_time")[1500]
    assert facts["embeddings"]["shapes"] == {"item": [81, 16], "creator": [13, 16]}
    assert 0 < facts["embeddings"]["updates"] < 12
    assert "embeddings.safetensors" in facts["files"]
    kept = IdEmbeddings.load(finished / "seed-1/teacher/embeddings.safetensors")
    assert facts["embeddings"]["trained"] == {kind: int(seen.sum()) for kind, seen in kept.seen.items()}
    student = of(finished, "seed-1/mlp-distilled/manifest.json")["embeddings"]
    assert student["of"] == ["item", "creator"]
    assert student["parameters_in_training"] > 0
    log = next((finished / "seed-1/mlp-distilled/log").rglob("metrics.csv")).read_text()
    assert "train/click/embeddings/item" in log
    assert "train/click/embeddings/creator" in log
    assert of(finished, "metrics.json")["embeddings"] == "student_start"
    assert "Embeddings of the end" not in (finished / "summary.md").read_text()
    # the teacher and the raw student are what they are without
    for name, alike in (
        ("seed-1/teacher/model.safetensors", True),
        ("seed-1/mlp-raw/model.safetensors", True),
        ("seed-1/mlp-distilled/serving.safetensors", False),
    ):
        assert same(finished, plain_run, name) == alike, name


def test_experts_are_neither_kept_nor_served(finished: Path, plain_run: Path) -> None:
    for name in ("model.safetensors", "serving.safetensors"):
        mine, theirs = (set(load_file(out / "seed-1/mlp-distilled" / name)) for out in (finished, plain_run))
        assert mine == theirs


def test_a_weight_of_0_is_none_of_it(plain_run: Path, feed_path: Path, tmp_path: Path) -> None:
    run_of(tmp_path, config(feed_path, **QUICK, embeddings={"weight": 0.0, "experts": 2})).all()
    assert (tmp_path / "metrics.json").read_bytes() == (plain_run / "metrics.json").read_bytes()
    for name in ("seed-1/teacher", "seed-1/mlp-raw", "seed-1/mlp-distilled"):
        assert same(tmp_path, plain_run, f"{name}/model.safetensors"), name
    assert not (tmp_path / "seed-1/teacher/embeddings.safetensors").exists()


def test_the_first_step_of_a_student_is_that_of_one_without(feed: ParquetSource) -> None:
    """Whatever experts draw moves neither the student's first weights nor what its training draws."""
    context = BuildContext(feed.schema, ("click",))
    found, tables = [], teacher_tables(feed)
    seen = {kind: torch.ones(len(table), dtype=torch.bool) for kind, table in tables.items()}
    for on in (False, True):
        torch.manual_seed(1)
        settings = {"name": "mlp", "embedding": 4, "hidden": [8], "dropout": 0.5}
        module = StudentModule(make(installed(), "student", settings, context), {"click": Objective("click")})
        if on:
            module.embeddings = EmbeddingDistillation(
                module.student, IdEmbeddings(tables, seen), feed.schema, steps=10, weight=0.0
            )
        fit(module, data_module(feed, module))
        found.append({name: part for name, part in module.state_dict().items() if not name.startswith("embeddings.")})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_same_run_again_gives_the_same_bits(finished: Path, feed_path: Path, tmp_path: Path) -> None:
    run_of(tmp_path, config(feed_path, **QUICK, embeddings=ON)).all()
    assert (tmp_path / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    assert same(tmp_path, finished, "seed-1/teacher/embeddings.safetensors")
    assert same(tmp_path, finished, "seed-1/mlp-distilled/model.safetensors")


def test_embeddings_of_the_end_are_marked_everywhere(
    finished: Path, plain_run: Path, feed_path: Path, tmp_path: Path, recdistill: Verb
) -> None:
    out = tmp_path / "end"
    run_of(out, config(feed_path, **QUICK, embeddings={**ON, "at": "end"})).all()
    assert of(out, "seed-1/teacher/manifest.json")["embeddings"]["at"] == "end"
    assert of(out, "seed-1/mlp-distilled/manifest.json")["embeddings"]["at"] == "end"
    assert of(out, "metrics.json")["embeddings"] == "end"
    assert "> **Embeddings of the end of training.**" in (out / "summary.md").read_text()
    shutil.copytree(finished, tmp_path / "start")
    for run, marked in ((out, True), (tmp_path / "start", False)):
        code, told, _ = recdistill("evaluate", run)
        assert code == 0
        assert ("embeddings of the end of training had seen the labels: no result" in told) == marked
    found = compare_runs([finished, out, plain_run])
    assert [row["embeddings"] for row in found["rows"]] == ["student_start", "end", ""]
    shown = summary(found)
    assert shown.count("(embeddings of the END of training: no result)") == 2 * len(found["metrics"])  # in both tables


def test_students_that_start_with_their_teacher_learn_only_from_those_of_the_end(
    feed_path: Path, tmp_path: Path
) -> None:
    plain = config(feed_path, students=["mlp"], seeds=[1], embeddings={"weight": 1.0})
    with pytest.raises(ConfigError) as caught:
        run_of(tmp_path / "one", plain).all()
    assert "embeddings.at: the students start with the teacher's first row" in str(caught.value)
    assert "set split.student_from to a later time, or at: end" in str(caught.value)
    run_of(tmp_path / "two", {**plain, "embeddings": {"weight": 1.0, "at": "end"}}).dataset()


@pytest.mark.slow
def test_a_shared_teacher_knows_the_moment(feed_path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    shared = {**QUICK, "shared": str(tmp_path / "shared"), "embeddings": ON}
    run_of(tmp_path / "one", config(feed_path, **shared), said.append).all()
    run_of(tmp_path / "again", config(feed_path, **{**shared, "embeddings": {**ON, "weight": 2.0}}), said.append).all()
    later = {**shared, "split": {**LATE, "student_from": "60%"}}
    run_of(tmp_path / "later", config(feed_path, **later), said.append).all()
    assert sum(line.startswith("teacher hstu") for line in said) == 2
    assert any("again" in line or "seed-1/teacher is there already" in line for line in said)
    one, again, last = (of(tmp_path / name, "seed-1/teacher/manifest.json") for name in ("one", "again", "later"))
    assert one["files"] == again["files"]
    assert one["embeddings"]["before"] < last["embeddings"]["before"]


def keys(**changes: Any) -> tuple[str, str]:
    plan = make_plan({**config(Path("dataset"), students=["mlp"], split=LATE), **changes}, installed())
    return digest(teacher_settings(plan)), digest(raw_settings(plan, "mlp"))


@pytest.mark.parametrize(
    ("before", "after", "teacher"),
    [
        ({}, {"embeddings": {"experts": 7}}, False),
        ({}, {"embeddings": ON}, True),
        ({"embeddings": ON}, {"embeddings": {**ON, "weight": 2.0, "temperature": 3.0}}, False),
        ({"embeddings": ON}, {"embeddings": {**ON, "of": ["item"]}}, True),
        ({"embeddings": ON}, {"embeddings": {**ON, "at": "end"}}, True),
    ],
)
def test_what_a_shared_teacher_keeps_is_in_its_key(
    before: dict[str, Any], after: dict[str, Any], teacher: bool
) -> None:
    one, two = keys(**before), keys(**after)
    assert (one[0] != two[0]) == teacher
    assert one[1] == two[1]  # a raw student learns from none


def test_the_students_start_is_in_the_key_where_it_is_the_moment() -> None:
    other = {"split": {**LATE, "student_from": "60%"}}
    assert keys(embeddings=ON)[0] != keys(embeddings=ON, **other)[0]
    end = {**ON, "at": "end"}
    assert keys(embeddings=end)[0] == keys(embeddings=end, **other)[0]
    assert keys()[0] == keys(**other)[0]


def test_embeddings_that_were_changed_are_refused(finished: Path, feed_path: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, config(feed_path, **QUICK, embeddings=ON))
    run.teachers()
    path = tmp_path / "seed-1/teacher/embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="a file of the run is absent or was changed since it was written"):
        run.students()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": {"weight": -1.0}}, "weight must be finite and >= 0, got -1.0"),
        ({"embeddings": {"experts": 0}}, "experts must be >= 1, got 0"),
        ({"embeddings": {"of": []}}, r"of must name one or more different kinds, got \[\]"),
        ({"embeddings": {"of": ["item", "item"]}}, "of must name one or more different kinds, got"),
        ({"embeddings": {"at": "noon"}}, "at must be one of student_start, end, got 'noon'"),
        ({"embeddings": {"temperature_end": 0.0}}, "temperature_end must be finite and > 0, got 0.0"),
        (
            {"embeddings": {"weight": 1.0}, "labels": {"versions": ["theirs"]}},
            "embeddings are those of the run's own teacher",
        ),
    ],
)
def test_settings_out_of_range_are_refused(
    changes: dict[str, Any], message: str, feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "out", config(feed_path, **QUICK, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": {"weight": 1.0, "of": ["itm"]}}, r"embeddings.of\[0\]: the dataset has no ids 'itm' \(did you"),
        (
            {"embeddings": {"weight": 1.0, "of": ["item", "creator"]}, "privileged": ["creator"]},
            r"embeddings.of\[1\]: 'creator' is privileged: students have no embedding of it",
        ),
        (
            {
                "embeddings": {"weight": 1.0, "of": ["item", "user_id"]},
                "teacher": {**TEACHER, "leave_out": ["user_id"]},
            },
            r"embeddings.of\[1\]: teacher hstu: HSTUTeacher has no embedding of kind 'user_id'",
        ),
    ],
)
def test_kinds_that_somebody_lacks_are_refused_before_training(
    changes: dict[str, Any], message: str, feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "out", config(feed_path, **QUICK, **changes)).teachers()
    assert not list((tmp_path / "out").glob("seed-1/*"))


def test_students_that_do_not_know_the_item_are_refused(feed: ParquetSource) -> None:
    plan = make_plan(config(Path("dataset"), **{**QUICK, "students": ["mlp", "dcn"]}, embeddings=ON), installed())
    bare = FeatureView(feed, ["item_id"])
    with pytest.raises(ConfigError) as caught:
        require_models(plan, bare, None)
    for label, kind in (("mlp", "MLP"), ("dcn", "DCN")):
        assert f"embeddings.of[0]: student {label}: {kind} has no embedding of kind 'item'" in str(caught.value)
    assert "the item itself is no categorical feature of the dataset" in str(caught.value)


def test_a_teacher_that_is_not_trained_here_has_no_embeddings(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    scores = {"example_id": feed.column("example_id"), "logit_click": np.zeros(3000)}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    teacher = {"name": "scores_file", "path": str(tmp_path / "scores.parquet"), "scale": "logit"}
    plain = config(feed_path, **QUICK, embeddings=ON, teacher=teacher, teacher_training={})
    with pytest.raises(UsageError, match="teacher 'scores_file' is not trained here, and its embeddings are not known"):
        run_of(tmp_path / "out", plain).all()
