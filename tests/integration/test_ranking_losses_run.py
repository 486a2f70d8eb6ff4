"""A run with every ranking loss, and with the residual loss, by name."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pipeline_cases import STUDENT, config, run_of

from recdistill_core.errors import ConfigError
from recdistill_core.labels import CaptureMode
from recdistill_core.registry import installed
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.plan import make_plan

LOSSES: list[dict[str, Any]] = [
    {"name": "listnet", "temperature": 2.0},
    {"name": "clid"},
    {"name": "clid", "mass": True},
    {"name": "ranking_distillation", "k": 2, "mu": 0.5},
    {"name": "rrd", "interesting": 2},
    {"name": "rce_kd", "k": 2},
    {"name": "unkd"},
    {"name": "residual"},
]


@pytest.fixture(scope="module")
def store(feed: ParquetSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of a teacher that knows the truth, so that no test has to train one; read-only."""
    out = tmp_path_factory.mktemp("labels") / "store"
    logits = {task: torch.logit(torch.tensor(feed.truth(task))).float() for task in ("click", "long_view")}
    settings = {"mode": CaptureMode.EXTERNAL, "view": "v", "facts": {"dataset": feed.snapshot_id}}
    with ParquetLogitStore(out).writer("truth", tasks=list(logits), **settings) as writer:
        writer.append(torch.tensor(feed.column("example_id")), logits, step=-1, scored_at=1)
        writer.commit()
    return out


def distil(out: Path, given: dict[str, Any]) -> Path:
    """The students of a run that reads its labels."""
    run = run_of(out, given)
    run.teachers()
    run.students()
    return out


def plain(feed_path: Path, store: Path, loss: dict[str, Any], **changes: Any) -> dict[str, Any]:
    labels = {"store": {"path": str(store)}, "labels": {"versions": ["truth"]}}
    training = {"batch_size": 64, "window_hours": 72, "within": "request"}
    settings = {"loss": loss, "seeds": [1], "students": [{"name": "mlp", **STUDENT}], "student_training": training}
    return config(feed_path, **settings, strategy={"name": "rec_distill"}, **labels, **changes)


def soft_losses(out: Path, task: str = "click") -> list[float]:
    with (out / "seed-1" / "mlp-distilled" / "log" / "metrics.csv").open() as file:
        found = [row[f"train/{task}/auxiliary/soft"] for row in csv.DictReader(file)]
    return [float(value) for value in found if value]


def weights(out: Path, name: str, file: str = "serving") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "seed-1" / name / f"{file}.safetensors")


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss.values())))
def test_a_run_distils_with_it(feed_path: Path, store: Path, tmp_path: Path, loss: dict[str, Any]) -> None:
    distil(tmp_path / "run", plain(feed_path, store, loss))
    found = soft_losses(tmp_path / "run")
    assert found
    assert all(0 < value < 10 for value in found)
    raw, distilled = (weights(tmp_path / "run", name) for name in ("mlp-raw", "mlp-distilled"))
    assert raw.keys() == distilled.keys()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in distilled.values())
    assert any(not torch.equal(raw[name], distilled[name]) for name in raw)


def test_unkd_counts_what_it_trained_on_and_repeats_bit_for_bit(feed_path: Path, store: Path, tmp_path: Path) -> None:
    states = []
    for place in ("one", "two"):
        distil(tmp_path / place, plain(feed_path, store, {"name": "unkd"}))
        states.append(weights(tmp_path / place, "mlp-distilled", "model"))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    (seen,) = (tensor for name, tensor in states[0].items() if name.endswith("loss.seen"))
    assert int(seen.sum()) == 2250, "75% of 3000 rows, each once"
    assert not any("loss." in name for name in weights(tmp_path / "one", "mlp-distilled"))


def test_the_residual_loss_reads_each_task_s_own_labels(feed_path: Path, store: Path, tmp_path: Path) -> None:
    both = ["click", "long_view"]
    distil(tmp_path / "run", plain(feed_path, store, {"name": "residual"}, tasks=both))
    click, like = (soft_losses(tmp_path / "run", task) for task in both)
    assert click != like
    assert all(value > 0 for value in (*click, *like))


def test_an_order_that_tears_requests_apart_is_refused(feed_path: Path, store: Path) -> None:
    torn = {
        **plain(feed_path, store, {"name": "clid"}),
        "student_training": {"within": "shuffle", "window_hours": 24.0},
    }
    with pytest.raises(ConfigError, match="'shuffle' tears requests apart, and loss 'clid' needs their rows together"):
        make_plan(torn, installed())
