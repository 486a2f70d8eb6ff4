"""The verbs of the label store on a real log: a missing day is found, and a bad one is found and rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from label_store_cases import DAY
from labels_cases import Shell, shell

from recdistill_core.config import make
from recdistill_core.interfaces import CaptureMode
from recdistill_core.registry import installed
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_parquet.labels import ParquetLogitStore

SLICE = Path(__file__).resolve().parents[2].parent / "shared/data/kuairand_pure_slice"
FIRST, MISSING, BAD = 19_108, 19_112, 19_116  # days since the epoch: 26 April, 30 April, 4 May


@pytest.fixture
def labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with shell(capsys, monkeypatch) as run:
        yield run


@pytest.mark.realdata
@pytest.mark.skipif(not SLICE.is_dir(), reason="the KuaiRand slice is not in ../shared/data")
def test_a_missing_day_and_a_bad_one(labels: Shell, tmp_path: Path) -> None:
    """The labels of a day are the rate of the day before: dull, but honest. One day is missing, one is far too high."""
    write_dataset(make(installed(), "importer", {"name": "kuairand", "path": str(SLICE)}).open(), tmp_path / "dataset")
    source = ParquetSource(tmp_path / "dataset")
    day, ids = source.column("event_time") // DAY, source.column("example_id")
    rate = {number: float(np.nanmean(source.column("label_long_view")[day == number])) for number in np.unique(day)}
    store = ParquetLogitStore(tmp_path / "labels")
    facts = {"dataset": source.snapshot_id}
    with store.writer(
        "daily", tasks=["long_view"], mode=CaptureMode.EXTERNAL, view=source.schema.view_hash(), facts=facts
    ) as writer:
        for number in [number for number in range(FIRST, BAD + 1) if number != MISSING]:
            of = torch.from_numpy(ids[day == number].copy())
            before = rate[number - 1]
            logit = np.log(before / (1 - before)) + (3.0 if number == BAD else 0.0)
            writer.append(of, {"long_view": torch.full(of.shape, logit)}, step=number, scored_at=number * DAY)
            writer.commit()

    part = ["--since", str(FIRST * DAY), "--until", str((BAD + 1) * DAY), "--out", tmp_path / "missing.parquet"]
    gaps = labels("gaps", store.path, tmp_path / "dataset", *part, "--json").document
    assert [(entry["day"], entry["rows"]) for entry in gaps["days"]] == [("2022-04-30", int((day == MISSING).sum()))]
    assert gaps["missing"] == sum(gap["rows"] for gap in gaps["gaps"])
    assert pq.read_table(tmp_path / "missing.parquet")["example_id"].to_pylist() == ids[day == MISSING].tolist()

    check = ["verify", store.path, "--dataset", tmp_path / "dataset", "--strict", "--json"]
    # one rate a day is no distribution that could be compared with another day's
    check += ["--drift", "100"]
    done = labels(*check)
    assert (done.code, done.document["counts"]["warning"]) == (5, 1)
    sql = (
        "SELECT step, avg(1 / (1 + exp(-logit_long_view))) AS mean FROM labels GROUP BY step ORDER BY mean DESC LIMIT 1"
    )
    (worst,) = labels("inspect", store.path, "--sql", sql, "--json").document
    assert worst["step"] == BAD

    answer = labels(
        "revoke", store.path, "--version", "daily", "--since", "2022-05-04", "--reason", "far too high", "--json"
    ).document
    assert answer["count"] - answer["visible"] == (day == BAD).sum()
    done = labels(*check)
    assert (done.code, done.document["counts"]["warning"]) == (0, 0)
    labels("compact", store.path)
    assert len(labels("gc", store.path, "--grace", "0", "--json").document["removed"]) == BAD - FIRST
    assert labels("restore", store.path, "--version", "daily", "--json").document["visible"] == answer["count"]
