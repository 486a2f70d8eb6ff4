"""Runs whose students learn from items that were not shown, drawn or named by the log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import config, data_module, fit, run_of, teacher_module
from safetensors.torch import load_file

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, DataError, UsageError
from recdistill_core.objective import Objective
from recdistill_core.registry import installed
from recdistill_lightning import LogitCapture, StudentModule
from recdistill_lightning.candidates import CandidateDraw, CandidateItems, CandidateLabels
from recdistill_lightning.state_source import StateSource
from recdistill_lightning.states import States, pack
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore

QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}


@pytest.fixture(scope="module")
def plain_run(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    run_of(out, config(feed_path, **QUICK)).all()
    return out


def served(out: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(out / f"seed-1/mlp-{kind}/serving.safetensors")


@pytest.mark.parametrize(("weight", "same"), [(0.0, True), (1.0, False)])
def test_a_run_learns_from_candidates_as_much_as_they_count(
    weight: float, same: bool, feed_path: Path, plain_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    beside = {"per_row": 2, "by": "uniform", "weight": weight}
    run_of(out, config(feed_path, **QUICK, candidates=beside)).all()
    manifest = json.loads((out / "seed-1/mlp-distilled/manifest.json").read_text())
    assert manifest["candidates"]["per_row"] == 2
    assert manifest["candidates"]["labels"] > 4000  # of 2250 rows
    for kind, wanted in (("raw", True), ("distilled", same)):
        mine, theirs = served(out, kind), served(plain_run, kind)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine) == wanted, kind
    versions = {entry.version: entry for entry in ParquetLogitStore(out / "labels").versions()}
    told = versions[manifest["candidates"]["version"]]
    assert told.facts["candidates_of"] == manifest["labels"]["version"]


def test_popularity_counts_what_was_shown_once_whatever_the_heads_and_candidates(
    feed_path: Path, tmp_path: Path
) -> None:
    settings = {"strategy": "student_adapter", "loss": "unkd", "candidates": {"per_row": 2}}
    settings["student_training"] = {"within": "request"}
    run_of(tmp_path, config(feed_path, **QUICK, **settings)).all()
    state = load_file(tmp_path / "seed-1/mlp-distilled/model.safetensors")
    assert int(state["objectives.click.loss.seen"].sum()) == 2250  # the training rows


def test_the_soft_loss_of_a_candidate_counts_as_one_of_a_row(
    feed: ParquetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of the rows plus weight * (sum over candidates of soft) / rows."""
    drawn, module = CandidateItems(feed, CandidateDraw(2)), teacher_module(feed)
    callback = LogitCapture(ParquetLogitStore(tmp_path))
    fit(module, data_module(feed, module, candidates=drawn), callback)
    assert callback.candidates.committed is not None
    beside = CandidateLabels(drawn, ParquetLogitStore(tmp_path), callback.candidates.committed.version, (0, 1500))
    context = BuildContext(feed.schema, ("click",))
    torch.manual_seed(0)
    objective = Objective("click", make(installed(), "strategy", "rec_distill"), make(installed(), "loss", "soft_ce"))
    student = make(installed(), "student", "mlp", context)
    learner = StudentModule(student, {"click": objective}, candidate_weight=0.5)
    monkeypatch.setattr(learner, "log_dict", lambda *given, **named: None)  # there is no Trainer
    data = data_module(feed, learner, candidates=beside)
    batch = data.train_dataloader().dataset[np.arange(700, 764)]
    assert batch.candidates is not None
    assert batch.candidates.teacher.valid["click"].all()
    bare = replace(batch, candidates=replace(batch.candidates, teacher=None))
    with pytest.raises(DataError, match="the candidates beside the rows have no teacher labels"):
        learner.training_step(bare, 0)
    whole = learner.training_step(batch, 0)
    alone = learner.training_step(replace(batch, candidates=None), 0)
    soft = learner.training_step(batch.candidates, 0) * len(batch.candidates)
    torch.testing.assert_close(whole, alone + 0.5 * soft / 64)


def test_candidates_that_the_log_names_get_a_label_of_the_teacher_and_are_no_event(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    request = np.repeat(np.arange(400), 3)
    shown = np.tile([1, 0, 0], 400)
    click = np.where(shown, rng.integers(0, 2, 1200), -1)
    table = {
        "user": request % 20,
        "item": rng.integers(0, 30, 1200),
        "time": 1_700_000_000 + 60 * request,
        "request": request,
        "shown": shown,
        "click": [None if value < 0 else int(value) for value in click],
        "place": [1 if value else None for value in shown],
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    names = "user_id: user\nitem_id: item\nevent_time: time\nrequest_id: request\ntime_unit: s\n"
    names += "shown: shown\nposition: place\n"
    (tmp_path / "log.yaml").write_text(
        f"tasks: {{click: click}}\nactions: {{click: click}}\n{names}categorical: [item]\n"
    )
    importer = {"name": "table", "path": str(tmp_path / "log.parquet"), "schema": str(tmp_path / "log.yaml")}
    results = run_of(tmp_path / "out", {**config(**QUICK), "dataset": {"importer": importer}}).all()
    source = ParquetSource(tmp_path / "out/dataset")
    assert source.manifest.counts["events"] == 400
    assert np.array_equal(source.column("shown"), shown)
    assert source.column("position")[shown == 0].max() == 0
    rows = np.arange(source.num_rows)
    donors = CandidateItems(source, CandidateDraw(3)).drawn(rows)[0]
    assert shown[donors[donors >= 0]].all()
    assert shown[CandidateItems(source, CandidateDraw(3, "uniform")).drawn(rows)[0].clip(0)].all()
    codes = np.arange(source.num_rows) % 7
    states = States(source.column("example_id"), pack(np.stack([codes, -codes], 1), 4), rows < 0, 2, 4)
    view = StateSource(source, 2, states, recent=1)
    for row in range(600, 640):
        past = np.flatnonzero((table["user"] == table["user"][row]) & (request < request[row]) & (shown == 1))
        assert view.batch(np.array([row])).numeric[0, -3] == pytest.approx(codes[past[-1]] / 7)
    assert results["data"]["test_rows"] == 100  # of 300, the rows that were shown
    version = json.loads((tmp_path / "out/seed-1/mlp-distilled/manifest.json").read_text())["labels"]["version"]
    signal = ParquetLogitStore(tmp_path / "out/labels").read(version, source.column("example_id")[:900])
    assert signal.valid["click"].all()
    assert np.isnan(source.column("label_click")[:900]).sum() == 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": {"per_row": -1}}, "per_row must be >= 0, got -1"),
        ({"candidates": {"weight": -1.0}}, "weight must be finite and >= 0, got -1.0"),
        ({"candidates": {"per_row": 1, "hard": 0}}, "hard must be >= 1, got 0"),
        ({"candidates": {"per_row": 1, "by": "luck"}}, "by must be one of popularity, uniform, got 'luck'"),
        (
            {"candidates": {"per_row": 1}, "capture": {"mode": "out_of_fold"}},
            "candidates are scored by the run's own teacher before each update: they need capture.mode 'prequential'",
        ),
    ],
)
def test_settings_out_of_range_are_refused(
    changes: dict[str, Any], message: str, feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "out", config(feed_path, **QUICK, **changes))


def test_a_weight_below_zero_is_refused_in_a_script(feed: ParquetSource) -> None:
    student = make(installed(), "student", "mlp", BuildContext(feed.schema, ("click",)))
    with pytest.raises(UsageError, match="candidate_weight must be finite and >= 0, got -1"):
        StudentModule(student, {"click": Objective("click")}, candidate_weight=-1.0)
