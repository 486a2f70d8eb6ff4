"""Pre-training and a run that starts from it: what is taken over and what stays frozen."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pipeline_cases import (
    TEACHER,
    Verb,
    answer,
    config,
    data_module,
    fit,
    refused,
    run_of,
    teacher_module,
    write_config,
)
from pretrained_cases import PRETRAIN, manifest, plain

from recdistill_core.config import load_yaml
from recdistill_core.errors import UsageError
from recdistill_core.registry import installed
from recdistill_gpsd.job import of_preset, of_run, pretrain
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.external import without_effect
from recdistill_pipeline.models import build_teacher
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.teacher_of_run import TeacherOfRun

TABLE = "teacher.tokens.table.weight"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "model.safetensors")


def test_the_folder_says_how_it_was_made(model_folder: Path, feed: ParquetSource) -> None:
    found = manifest(model_folder)
    first = int(feed.column("event_time")[int(0.3 * feed.num_rows)])
    assert (found["dataset"], found["cutoff"], found["seed"]) == (feed.snapshot_id, first, 1)
    users = feed.users()
    times = feed.events(np.array([0]), np.array([feed.manifest.counts["events"]]))["time"]
    assert found["events"] + found["held_out"] == int((times < first).sum()) < len(times)
    assert found["held_out"] <= len(users)
    assert found["predicted"] == ["item", "category"]
    assert set(found["epochs"][0]["loss"]) == {"item", "category"}
    assert set(found["ranking"]) == {"test"}
    assert (
        0
        <= found["ranking"]["test"]["metrics"]["hr@10"]["low"]
        <= found["ranking"]["test"]["metrics"]["hr@10"]["value"]
    )
    assert {"torch", "recdistill"} <= set(found["versions"])
    assert json.loads((model_folder / "config.json").read_text())["teacher"]["width"] == TEACHER["width"]
    assert {path.name for path in model_folder.iterdir()} == {"config.json", "manifest.json", *found["files"]}


def test_equal_jobs_give_equal_bytes(feed_path: Path, model_folder: Path, tmp_path: Path) -> None:
    pretrain(of_run(plain(feed_path), installed(), None), tmp_path / "again")
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


def test_an_interrupted_job_goes_on_where_it_was(feed_path: Path, tmp_path: Path) -> None:
    job = of_run({**plain(feed_path), "pretrain": {**PRETRAIN, "epochs": 3}}, installed(), None)
    pretrain(job, tmp_path / "whole")
    heard: list[str] = []

    def stop(what: str, done: int, of: int) -> None:
        heard.append(what)
        if what.startswith("epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(job, tmp_path / "parts", stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".parts.progress", "whole"]
    shorter = of_run({**plain(feed_path), "pretrain": {**PRETRAIN, "epochs": 1}}, installed(), None)
    with pytest.raises(UsageError, match=r"has left its progress here, after epoch 2\n  where: .*\.parts\.progress"):
        pretrain(shorter, tmp_path / "parts")
    heard.clear()
    said: list[str] = []
    pretrain(job, tmp_path / "parts", lambda what, done, of: heard.append(what), said.append)
    assert set(heard) == {"epoch 3 of 3"}
    assert said[1:] == ["going on after epoch 2 of 3"]
    assert not (tmp_path / ".parts.progress").exists()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name


def test_seen_rows_are_taken_over_and_stay_as_they_are(
    model_folder: Path, model_run: Path, feed: ParquetSource
) -> None:
    before, after = weights(model_folder)["tokens.table.weight"], weights(model_run / "seed-1/teacher")[TABLE]
    seen = safetensors.torch.load_file(model_folder / "seen.safetensors")["tokens.table.weight"]
    start = run_of(model_run, load_yaml(model_run / "config.yaml")).plan
    fresh = build_teacher(start, feed.schema, 1).state_dict()[TABLE]
    assert 0 < int(seen.sum()) < len(seen)
    assert torch.equal(after[seen], before[seen])
    assert not torch.equal(after[seen], fresh[seen])
    assert not torch.equal(after[~seen], fresh[~seen])  # what pre-training did not see goes on training ...
    drift = (after[~seen] - fresh[~seen]).abs().max()
    assert float(drift) < 0.1  # ... from where the teacher starts it
    step = manifest(model_run / "seed-1/teacher")["pretrained"]
    assert step == {
        "weights": manifest(model_folder)["files"]["model.safetensors"],
        "cutoff": manifest(model_folder)["cutoff"],
        "transferred": {"tokens.table.weight": f"{int(seen.sum())} of {len(seen)} rows"},
        "frozen": ["tokens.table.weight"],
    }


def test_labels_say_what_their_teacher_started_from(model_run: Path, model_folder: Path) -> None:
    (version,) = ParquetLogitStore(model_run / "labels").versions()
    assert version.facts["pretrained"]["weights"] == manifest(model_folder)["files"]["model.safetensors"]


def test_rows_whose_events_were_seen_count_as_trained_on(model_run: Path, feed: ParquetSource) -> None:
    """A back-fill of rows before the cutoff would put outcomes that pre-training has seen into logits."""
    rows = np.arange(feed.num_rows)
    reached = TeacherOfRun.of(model_run).reached(feed, rows)
    early = feed.column("event_time") < manifest(model_run / "seed-1/teacher")["pretrained"]["cutoff"]
    plan = TeacherOfRun.of(model_run).plan()
    facts = TeacherOfRun.of(model_run).facts(plan, feed)
    assert facts["pretrained"] == manifest(model_run / "seed-1/teacher")["pretrained"]
    assert early.sum() > 100
    assert reached[early].all()
    assert not reached[int(0.75 * feed.num_rows) :].any()


def test_a_run_goes_on_and_is_evaluated_without_the_folder(model_run: Path, feed_path: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(model_run, gone)
    (gone / "metrics.json").unlink()
    again = load_yaml(gone / "config.yaml")
    again["pretrain"] = {"epochs": 9}  # says nothing about this run
    again["pretrained"]["path"] = str(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"pretrained\.path: .* -> "):
        run_of(gone, again)
    again["pretrained"]["path"] = load_yaml(gone / "config.yaml")["pretrained"]["path"]
    run_of(gone, again).evaluate()
    assert json.loads((gone / "metrics.json").read_text()) == json.loads((model_run / "metrics.json").read_text())


@pytest.mark.parametrize("capture", [{"mode": "out_of_fold", "folds": 2}, {"mode": "leaky", "allow_leaky": True}])
def test_other_captures_start_from_it_too(
    capture: Mapping[str, Any], feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    run_of(tmp_path / "run", plain(feed_path, model_folder, capture=capture)).teachers()
    steps = [path.parent for path in sorted((tmp_path / "run").glob("seed-1/teacher*/manifest.json"))]
    assert len(steps) == (3 if capture["mode"] == "out_of_fold" else 1)
    seen = safetensors.torch.load_file(model_folder / "seen.safetensors")["tokens.table.weight"]
    for step in steps:
        assert torch.equal(weights(step)[TABLE][seen], weights(model_folder)["tokens.table.weight"][seen])
        assert manifest(step)["pretrained"]["frozen"] == ["tokens.table.weight"]


def test_layers_are_transferred_whole_and_frozen_only_where_asked(
    feed: ParquetSource, feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    taken = {"transfer": ["^tokens", "^layers"], "freeze": ["project"]}
    run, said = run_of(tmp_path / "run", plain(feed_path, model_folder, pretrained=taken)), list[str]()
    run.say = said.append
    run.teachers()
    model = weights(model_folder)
    layers = sum(name.startswith("layers.") for name in model)
    head = sum(name.startswith("teacher.head.") for name, _ in teacher_module(feed).named_parameters())
    assert said[0] == (
        f"taken over from {model_folder}: {1 + layers} parameters, layers ({layers}), tokens (1); not taken over: "
        f"predict ({len(model) - layers - 1}); at the teacher's own start: head ({head})"
    )
    before, after = weights(model_folder), weights(tmp_path / "run/seed-1/teacher")
    step = manifest(tmp_path / "run/seed-1/teacher")["pretrained"]
    assert step["transferred"]["layers.0.output.weight"] == "all"
    assert step["frozen"] == ["layers.0.project.weight"]
    assert torch.equal(after["teacher.layers.0.project.weight"], before["layers.0.project.weight"])
    assert not torch.equal(after["teacher.layers.0.output.weight"], before["layers.0.output.weight"])
    assert not torch.equal(after[TABLE], before["tokens.table.weight"])


def test_held_parameters_do_not_move(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    module.optimisation = type(module.optimisation)(lr=1e-2, weight_decay=0.1)
    start = {name: part.detach().clone() for name, part in module.named_parameters()}
    rows = torch.zeros(len(start[TABLE]), dtype=torch.bool)
    rows[:30] = True
    module.hold(TABLE, rows)
    module.hold("teacher.layers.0.project.weight")
    module.hold("teacher.head.logits.bias", torch.ones(1, dtype=torch.bool))
    fit(module, data_module(feed, module, rows=400))
    end = dict(module.named_parameters())
    assert torch.equal(end[TABLE][:30], start[TABLE][:30])
    assert not torch.equal(end[TABLE][30:], start[TABLE][30:])
    for name in ("teacher.layers.0.project.weight", "teacher.head.logits.bias"):
        assert torch.equal(end[name], start[name])
    assert not torch.equal(end["teacher.layers.0.output.weight"], start["teacher.layers.0.output.weight"])


def test_a_teacher_that_is_not_trained_here_takes_nothing_over(feed_path: Path, model_folder: Path) -> None:
    asked = {"name": "scores_file", "path": "x", "scale": "logit"}
    assert "pretrained" in without_effect(make_plan(plain(feed_path, model_folder, teacher=asked), installed()))
    assert "pretrained" not in without_effect(make_plan(plain(feed_path, teacher=asked), installed()))


def test_the_verb_refuses_what_it_cannot_do(
    recdistill: Verb, feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "run.yaml", plain(feed_path))
    refused(recdistill("teacher", "pretrain", "--json"), "UsageError", "nothing says what to pre-train")
    refused(
        recdistill("teacher", "pretrain", "--preset", "hstu-ml1m", "--json"), "UsageError", "a preset needs a dataset"
    )
    refused(
        recdistill("teacher", "pretrain", file, "--out", model_folder, "--json"),
        "UsageError",
        "the folder exists already",
    )
    out = ("--out", tmp_path / "out", "--json")
    refused(
        recdistill("teacher", "pretrain", file, "pretrain.epochs=0", *out), "ConfigError", "epochs must be at least 1"
    )
    refused(
        recdistill("teacher", "pretrain", file, "pretrain.epoch=1", *out), "ConfigError", "pretrain.epoch: unknown key"
    )
    refused(
        recdistill("teacher", "pretrain", file, "--until", "2001-01-01", *out), "DataError", "no user has two events"
    )
    gone = recdistill("teacher", "pretrain", file, "pretrain.device=nowhere", *out)
    refused(gone, "UsageError", "the device 'nowhere' cannot be used")
    importing = write_config(tmp_path / "importing.yaml", {**plain(feed_path), "dataset": config()["dataset"]})
    refused(recdistill("teacher", "pretrain", importing, *out), "UsageError", "pre-training comes before the run")
    other = write_config(
        tmp_path / "other.yaml", {**plain(feed_path), "teacher": {"name": "scores_file", "path": "x", "scale": "logit"}}
    )
    refused(recdistill("teacher", "pretrain", other, *out), "UsageError", "has no tokens and layers")
    assert not (tmp_path / "out").exists()


def test_until_and_the_dataset_can_be_given(recdistill: Verb, feed: ParquetSource, tmp_path: Path) -> None:
    importing = {**plain(feed.path), "dataset": config()["dataset"]}
    file = write_config(tmp_path / "run.yaml", importing)
    words = ("--data", feed.path, "--until", "20%", "--out", tmp_path / "out", "--json")
    found = answer(recdistill("teacher", "pretrain", file, *words))
    assert found["cutoff"] == int(feed.column("event_time")[int(0.2 * feed.num_rows)])


def test_a_preset_reads_a_log_in_the_format_of_movielens(recdistill: Verb, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [
        f"{user}::{rng.integers(1, 40)}::{rng.integers(1, 6)}::{960_000_000 + 100 * int(rng.integers(0, 10**6))}"
        for user in range(1, 31)
        for _ in range(20)
    ]
    (tmp_path / "ratings.dat").write_text("\n".join(lines) + "\n")
    made = runpy.run_path(str(Path(__file__).parents[2] / "examples/movielens_to_parquet.py"))
    assert made["convert"](tmp_path / "ratings.dat", tmp_path / "ml") == 600
    words = (f"path={tmp_path}/ml/ratings.parquet", f"schema={tmp_path}/ml/schema.yaml")
    answer(recdistill("data", "import", "table", *words, "--out", tmp_path / "dataset", "--json"))
    changes = ("epochs=1", "teacher.max_length=10", "teacher.history_stride=10", "device=cpu")
    for preset in ("hstu-ml1m", "sasrec-ml1m"):
        out = ("--preset", preset, "--data", tmp_path / "dataset", "--out", tmp_path / preset, "--json")
        found = answer(recdistill("teacher", "pretrain", *changes, *out))
        assert (found["users"], found["events"], found["held_out"]) == (30, 570, 30)
        assert found["ranking"]["test"]["users"] == 30
        assert found["predicted"] == ["item"]
    code, text, _ = recdistill("teacher", "pretrain", *changes, *out[:4], "--out", tmp_path / "shown")
    assert (code, "published on ML-1M" in text, "0.2853" in text) == (0, False, False)
    assert "this is not MovieLens-1M, of which the preset's published results are" in text
    assert of_preset("sasrec-ml1m", {"until": "50%"}, ParquetSource(tmp_path / "dataset")).cutoff is not None
