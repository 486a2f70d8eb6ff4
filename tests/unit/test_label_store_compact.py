"""Compaction keeps labels and makes them small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_store_cases import T, grown, names, open_writer, put, read, segments

from recdistill_core.errors import DataError, LeakError, UsageError
from recdistill_parquet import labels_compact
from recdistill_parquet.labels import ParquetLogitStore


def test_compaction_keeps_every_label_and_its_order(tmp_path: Path) -> None:
    store = grown(tmp_path, segment_rows=25)
    store.revoke("v1", reason="x", since=T + 4)
    before, old = store.snapshot_id(), segments(tmp_path)
    entry = store.versions()[0]
    seen: list[tuple[int, int]] = []
    report = store.compact("v1", progress=lambda done, of: seen.append((done, of)))
    assert (report.version, report.rows, report.segments_before, report.segments_after) == ("v1", 60, 6, 3)
    assert report.bytes_before == sum(path.stat().st_size for path in old)
    assert seen[-1] == (60, 60)
    assert store.versions() == (entry,)
    assert read(store, range(60)) == read(store.at(before), range(60))
    assert read(store, range(60))[1] == [True] * 40 + [False] * 20
    listed = store._state().entries[0].segments
    assert [segment.rows for segment in listed] == [25, 25, 10]
    assert [segment.first_id for segment in listed] == [0, 25, 50]
    again = store.snapshot_id()
    assert store.compact("v1").segments_after == 3  # nothing to do
    assert store.snapshot_id() == again
    store.restore("v1")
    assert read(ParquetLogitStore(tmp_path), range(60)) == ([key / 8 for key in range(60)], [True] * 60)


def test_writers_go_on_while_a_version_is_compacted(tmp_path: Path) -> None:
    store = grown(tmp_path)
    writer = open_writer(store)
    put(writer, [100])
    store.compact("v1")
    put(writer, [0, 101])
    made = writer.commit()
    assert (made.count, made.duplicates) == (62, 1)
    put(writer, [5, 102])
    assert writer.commit().count == 63
    assert read(store, [0, 100, 101, 102])[1] == [True] * 4
    assert store.verify()[0].check == "superseded"


def test_a_writer_tells_of_a_conflict_where_its_files_are_gone(tmp_path: Path) -> None:
    store = grown(tmp_path)
    writer = open_writer(store)
    store.compact("v1")
    store.gc(0.0)
    with pytest.raises(LeakError, match=r"example 3 already has another label .*\n.*the first: logit_click 0.375"):
        put(writer, [3], [9.0])


def test_of_two_compactions_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = grown(tmp_path)
    real = labels_compact._commit

    def late(*given: Any) -> None:
        monkeypatch.setattr(labels_compact, "_commit", real)
        store.compact("v1")
        real(*given)

    monkeypatch.setattr(labels_compact, "_commit", late)
    with pytest.raises(UsageError, match=r"version 'v1' was compacted by somebody else(.|\n)*nothing is lost"):
        store.compact("v1")
    assert read(store, range(60))[1] == [True] * 60
    assert len(segments(tmp_path)) == 7  # the new files of the one that lost are gone
    assert names(tmp_path / "writers") == set()


def test_compaction_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no version 'v2'"):
        grown(tmp_path).compact("v2")
    with pytest.raises(UsageError, match="cannot compact a label store that is pinned"):
        (store := ParquetLogitStore(tmp_path)).at(store.snapshot_id()).compact("v1")


def test_labels_of_ids_without_a_pattern_take_at_most_12_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 300_000
    store = ParquetLogitStore(tmp_path, segment_rows=count)
    with open_writer(store) as writer:
        for step, ids in enumerate(np.array_split(rng.integers(-(2**63), 2**63 - 1, count), 100)):
            put(writer, ids, rng.normal(-3, 1.5, ids.size), step=step)
            if step % 10 == 9:
                writer.commit()
    assert store.compact("v1").bytes_after / count <= 12
    dense = ParquetLogitStore(tmp_path / "dense", segment_rows=count)
    with open_writer(dense) as writer:
        put(writer, rng.permutation(count), rng.normal(-3, 1.5, count))
        writer.commit()
    assert torch.is_tensor(dense.read("v1", np.arange(3)).logits["click"])
    assert segments(tmp_path / "dense")[0].stat().st_size / count <= 7
