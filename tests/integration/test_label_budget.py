"""``labels select`` and ``labels discriminate`` on a small run: what they write, repeat, and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipeline_cases import Verb, answer, config, refused, run_of

from recdistill_core.registry import installed
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.run import Run
from recdistill_pipeline.rundir import read_json
from recdistill_pipeline.scoring import score_rows
from recdistill_select.candidates import raw_student, see
from recdistill_select.jobs import ORIGIN

TRAINING = 2250  # 75% of the feed's rows


@pytest.fixture(scope="module")
def trained(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with teacher and students, not evaluated; the tests leave it as it is."""
    out = tmp_path_factory.mktemp("budget") / "run"
    run = run_of(out, config(feed_path, seeds=[1], students=["mlp"]))
    run.teachers()
    run.students()
    return out


def training_ids(feed: ParquetSource) -> Any:
    return feed.column("example_id")[:TRAINING]


@pytest.mark.parametrize(
    "sampler", [["random"], ["uncertainty", "random_share=0.2"], ["k_center", "partition_rows=500"]]
)
def test_a_choice_is_as_large_as_the_budget_and_repeats_itself(
    sampler: list[str], recdistill: Verb, trained: Path, feed: ParquetSource, tmp_path: Path
) -> None:
    name, *settings = sampler
    tables = []
    for out in (tmp_path / "one.parquet", tmp_path / "two.parquet"):
        words = ["labels", "select", trained, *settings, "--budget", "10%", "--sampler", name, "--out", out, "--json"]
        found = answer(recdistill(*words))
        assert (found["chosen"], found["examples"], found["out"]) == (TRAINING // 10, TRAINING, str(out))
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])
    assert tables[0].column_names == ["example_id", "rank"]
    assert tables[0]["rank"].to_pylist() == list(range(TRAINING // 10))
    ids = tables[0]["example_id"].to_numpy()
    assert len(np.unique(ids)) == len(ids)
    assert np.isin(ids, training_ids(feed)).all()


def test_a_number_is_a_budget_and_the_file_says_how_it_came_to_be(
    recdistill: Verb, trained: Path, feed: ParquetSource, tmp_path: Path
) -> None:
    out = tmp_path / "chosen.parquet"
    words = ["labels", "select", trained, "centre=0.3", "--budget", 7, "--sampler", "uncertainty", "--rows", "teacher"]
    code, shown, _ = recdistill(*words, "--out", out)
    assert (code, shown) == (0, f"7 of {TRAINING:,} examples, chosen by recdistill:uncertainty: {out}\n")
    said = json.loads(pq.read_schema(out).metadata[ORIGIN])
    assert said["sampler"] == {"name": "recdistill:uncertainty", "task": "", "centre": 0.3, "random_share": 0.0}
    assert (said["dataset"], said["seed"], said["student"]) == (feed.snapshot_id, 1, "mlp")
    assert (said["rows"], said["chosen"]) == ("teacher", 7)


def test_what_samplers_see_is_the_raw_student(trained: Path, feed: ParquetSource, feed_path: Path) -> None:
    run = Run(make_plan(config(feed_path, seeds=[1], students=["mlp"]), installed()), trained, installed())
    module = raw_student(run, feed, "", 1)
    told: list[int] = []
    found = see(module, feed, (100, 700), 256, lambda done, total: told.append(done))
    assert told == [256, 512, 600]
    logits = score_rows(feed, (100, 700), module.history, lambda batch: module(batch)["click"], 100)
    np.testing.assert_allclose(found.logits["click"], logits, atol=1e-5)
    assert found.embedding.shape == (600, module.student.width)
    assert (found.example_id == feed.column("example_id")[100:700]).all()
    assert (np.diff(found.event_time) >= 0).all()
    assert not module.training


def test_rejected_labels_are_those_of_all_that_are_rejected(
    recdistill: Verb, trained: Path, feed: ParquetSource, tmp_path: Path
) -> None:
    some, everything = tmp_path / "rejected.parquet", tmp_path / "all.parquet"
    words = ["labels", "discriminate", trained, "share=0.1", "neighbours=20"]
    found = answer(recdistill(*words, "--out", some, "--json"))
    assert found["labelled"] == TRAINING
    assert 0 < found["rejected"] < 0.2 * TRAINING  # a teacher that is still learning errs less and less
    assert answer(recdistill(*words, "--all", "--out", everything, "--json"))["rejected"] == found["rejected"]
    table, rejected = pq.read_table(everything), pq.read_table(some)
    assert table.num_rows == TRAINING
    assert rejected.column_names == ["example_id", "probability", "local_rate", "z"]
    assert table.filter(table["rejected"]).drop_columns(["rejected"]).equals(rejected.replace_schema_metadata())
    facts = read_json(trained / "seed-1/teacher/manifest.json")["labels"]
    run = run_of(trained, config(Path(feed.path), seeds=[1], students=["mlp"]))
    stored = run.store.read(facts["version"], table["example_id"].to_numpy()).logits["click"].double().numpy()
    np.testing.assert_allclose(table["probability"].to_numpy(), 1 / (1 + np.exp(-stored)), rtol=1e-6)
    code, shown, _ = recdistill(*words, "--out", tmp_path / "again.parquet")
    told = f"{found['rejected']:,} of {TRAINING:,} labels rejected: {tmp_path / 'again.parquet'}\n"
    assert (code, shown) == (0, told)
    assert pq.read_table(tmp_path / "again.parquet").equals(rejected)


@pytest.mark.parametrize(
    ("words", "kind", "texts"),
    [
        (["--budget", "many"], "UsageError", ["budget 'many' is no number and no share", "20000 or 25%"]),
        (["--budget", "25%x"], "UsageError", ["budget '25%x' is no number and no share"]),
        (["--budget", "nan%"], "UsageError", ["budget 'nan%' is no number and no share"]),
        (["--budget", "0"], "UsageError", ["the budget is 0 examples"]),
        (["--budget", "120%"], "UsageError", ["the budget is 2,700 examples, and there are 2,250 candidates"]),
        (["--rows", "test"], "UsageError", ["there are no rows 'test'", "students, teacher"]),
        (["--student", "dcn"], "UsageError", ["the run has no student 'dcn'", "use one of: mlp"]),
        (["--seed", "9"], "UsageError", ["the run has no seed 9", "use one of: 1"]),
        (["--sampler", "k_centre"], "PluginError", ["no sampler is named 'k_centre' (did you mean 'k_center'?)"]),
        (["centre"], "UsageError", ["setting 'centre' is not KEY=VALUE", "such as width=64"]),
        (["centre=2", "--sampler", "uncertainty"], "ConfigError", ["sampler: centre must lie in (0, 1), got 2.0"]),
        (["centre=0.5"], "ConfigError", ["sampler.centre: unknown key"]),
    ],
)
def test_select_refuses(
    words: list[str], kind: str, texts: list[str], recdistill: Verb, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "chosen.parquet"
    refused(recdistill("labels", "select", trained, *words, "--out", out, "--json"), kind, *texts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "kind", "texts"),
    [
        (["--task", "like"], "UsageError", ["the run has no task 'like'", "use one of: click"]),
        (["neighbours=0"], "ConfigError", ["neighbours must be >= 1, got 0"]),
        (["neighbors=3"], "ConfigError", ["neighbors: unknown key (did you mean 'neighbours'?)"]),
    ],
)
def test_discriminate_refuses(
    words: list[str], kind: str, texts: list[str], recdistill: Verb, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rejected.parquet"
    refused(recdistill("labels", "discriminate", trained, *words, "--out", out, "--json"), kind, *texts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["select", "discriminate"])
def test_a_file_that_exists_is_left_alone(verb: str, recdistill: Verb, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "there.parquet"
    out.write_text("mine")
    refused(recdistill("labels", verb, trained, "--out", out, "--json"), "UsageError", "the file exists already")
    assert out.read_text() == "mine"
    away = recdistill("labels", verb, trained, "--out", tmp_path / "absent" / "x.parquet", "--json")
    refused(away, "UsageError", "the folder of the file does not exist", "make it first")


@pytest.mark.parametrize("verb", ["select", "discriminate"])
def test_a_run_that_is_not_trained_is_told_so(
    verb: str, recdistill: Verb, trained: Path, feed_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.parquet"
    none = recdistill("labels", verb, tmp_path / "nothing", "--out", out, "--json")
    refused(none, "UsageError", "this is no run directory", "config.yaml")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(trained / "config.yaml", fresh)
    early = recdistill("labels", verb, fresh, "--out", out, "--json")
    refused(early, "UsageError", "the raw student mlp of seed 1 is not trained yet", "run 'student fit' first")
    assert not out.exists()


def test_changed_weights_are_refused(recdistill: Verb, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    weights = run / "seed-1/mlp-raw/model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    done = recdistill("labels", "select", run, "--out", tmp_path / "x.parquet", "--json")
    refused(done, "IntegrityError", "was changed since it was written", str(weights))


def test_a_run_without_labels_has_none_to_judge(recdistill: Verb, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "seed-1/teacher")
    early = recdistill("labels", "discriminate", run, "--out", tmp_path / "x.parquet", "--json")
    refused(early, "UsageError", "seed 1 has no teacher yet", "run 'teacher fit' first")


def test_revoked_labels_are_none(recdistill: Verb, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    version = read_json(run / "seed-1/teacher/manifest.json")["labels"]["version"]
    ParquetLogitStore(run / "labels").revoke(version, reason="for the test")
    done = recdistill("labels", "discriminate", run, "--out", tmp_path / "x.parquet", "--json")
    refused(done, "DataError", "none of the students' training rows has a label of task 'click'", version)
