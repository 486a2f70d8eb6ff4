"""What a writer knows of labels, against a plain dictionary: any ids, repeats anywhere, several writers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_store_cases import open_writer, put

from recdistill_core.errors import LeakError
from recdistill_parquet import labels_keys
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_keys import KeyTable
from recdistill_parquet.labels_known import Known
from recdistill_parquet.labels_writer import ParquetLabelWriter

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 2**32, 2**63 - 1]
IDS = st.one_of(st.integers(-9, 9), st.sampled_from(EXTREMES), st.integers(-(2**63), 2**63 - 1))
TASKS = ("click", "like", "share")
#: Labels of three tasks; the first two are equal, as 0.0 and -0.0 are one value.
LABELS = [(0.0, 1.0, 2.0), (-0.0, 1.0, 2.0), (0.0, 1.0, -2.0), (2.0, 1.0, 0.0)]
BATCHES = st.lists(st.tuples(IDS, st.sampled_from([0, 0, 0, 1, 2, 3])), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def small_tables() -> Iterator[None]:
    """Maps of a few bits and chunks of a few ids: maps collide and grow, and calls have several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels_keys, "LEAST_MAP", 2)
        patch.setattr(labels_keys, "CHUNK", 4)
        yield


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(IDS, max_size=25), max_size=8), st.lists(IDS, max_size=25), st.booleans())
def test_a_table_is_a_dictionary(batches: list[set[int]], wanted: list[int], asked_between: bool) -> None:
    table, model = KeyTable(), dict[int, int]()
    for number, batch in enumerate(batches):
        fresh = sorted(batch - set(model))
        digests = [(key * 2654435761 + number) % 2**64 for key in fresh]
        table.add(np.array(fresh, np.int64), np.array(digests, np.uint64))
        model |= dict(zip(fresh, digests, strict=True))
        if asked_between:
            table.find(np.array(wanted, np.int64))
    asked = np.array([*model, *wanted], np.int64)
    known, digests_found = table.find(asked)
    assert len(table) == len(model)
    assert known.tolist() == [key in model for key in asked.tolist()]
    assert digests_found.tolist() == [model.get(key, 0) for key in asked.tolist()]
    places, found = table.hits(asked)
    assert places.tolist() == np.flatnonzero(known).tolist()
    assert found.tolist() == digests_found[known].tolist()


@pytest.mark.parametrize("step", [1, 3, 2**20, 2**40, 2**59])
def test_ids_with_a_pattern_are_told_apart(step: int) -> None:
    ids = np.arange(-(2**4), 2**4, dtype=np.int64) * step
    table = KeyTable(np.uint32)
    table.add(ids[::2], np.arange(16, dtype=np.uint64))
    known, digests = table.find(ids)
    assert known.tolist() == [True, False] * 16
    assert digests[::2].tolist() == list(range(16))


def test_one_task_takes_smaller_digests() -> None:
    assert Known(["logit_click"]).table()._digests.dtype == np.uint32
    assert Known(["logit_click", "logit_like"]).table()._digests.dtype == np.uint64


def test_memory_for_a_label_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the arrays, for any number of rows from a map's least size on, with all of them compared."""
    monkeypatch.setattr(labels_keys, "LEAST_MAP", 1 << 10)
    monkeypatch.setattr(labels_keys, "CHUNK", 1 << 6)
    table, draw = KeyTable(), np.random.default_rng(0)
    for _ in range(60):
        ids = draw.integers(-(2**63), 2**63 - 1, 1000)
        table.add(ids, np.zeros(1000, np.uint64))
        assert table.find(ids)[0].all()
        if len(table) >= 4000:
            chains, seen = table._chains, table._seen
            assert seen is not None
            arrays = (table._ids, table._digests, seen._bytes, chains._newest, chains._before)
            slack = 1.07  # arrays grow by a sixteenth
            assert sum(array.nbytes for array in arrays) / len(table) <= 24 * slack


def _append(writer: ParquetLabelWriter, batch: Sequence[tuple[int, int]]) -> None:
    values = torch.tensor([LABELS[which] for _, which in batch]).reshape(-1, len(TASKS))
    logits = {task: values[:, place] for place, task in enumerate(TASKS)}
    writer.append(torch.tensor([key for key, _ in batch], dtype=torch.int64), logits, step=1, scored_at=1)


def _merged(labels: dict[int, int], batch: Sequence[tuple[int, int]]) -> dict[int, int] | None:
    """``labels`` with those of ``batch``, or None where two differ."""
    after = dict(labels)
    for key, which in batch:
        if LABELS[after.setdefault(key, which)] != LABELS[which]:
            return None
    return after


STEPS = st.one_of(
    st.tuples(st.sampled_from(["append", "append", "append", "beside"]), BATCHES),
    st.tuples(st.sampled_from(["commit", "abort"]), st.just([])),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=9), segment_rows=st.integers(1, 9))
def test_writers_are_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[tuple[int, int]]]], segment_rows: int
) -> None:
    """Appends, commits, aborts and commits of another writer: each label once, none lost, other labels refused."""
    store = ParquetLogitStore(tmp_path_factory.mktemp("store"), segment_rows)
    committed, known, pending = dict[int, int](), dict[int, int](), dict[int, int]()
    writer = open_writer(store, tasks=TASKS)
    for step, batch in steps:
        if step == "append":
            after = _merged({**known, **pending}, batch)
            if after is not None and _merged(committed, batch) is None:
                continue  # what another writer has committed since is in the way of the commit alone
            if after is None:
                with pytest.raises(LeakError):
                    _append(writer, batch)
            else:
                _append(writer, batch)
                pending = {key: which for key, which in after.items() if key not in known}
        elif step == "beside" and _merged(committed, batch) and _merged(pending, batch) is not None:
            with open_writer(store, tasks=TASKS) as other:
                _append(other, batch)
                other.commit()
            committed = _merged(committed, batch) or {}
        elif step == "commit" and (pending or committed):
            assert writer.commit().count == len({**pending, **committed})
            committed = known = {**pending, **committed}
            pending = {}
        elif step == "abort":
            writer.abort()
            pending = {}
        assert writer.counts["appended"] == len(pending)
    writer.close()
    if committed:
        keys = list(committed)
        signal = ParquetLogitStore(store.path).read("v1", np.array(keys, np.int64))
        for place, task in enumerate(TASKS):
            assert signal.valid[task].all()
            assert signal.logits[task].tolist() == [LABELS[committed[key]][place] for key in keys]
        assert store.versions()[0].count == len(committed)


def test_the_first_of_equal_labels_is_kept_bit_for_bit(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    with open_writer(store) as writer:
        put(writer, [1, 2, 1, 2], [-0.0, 0.0, 0.0, -0.0])
        put(writer, [1], [0.0])
        writer.commit()
    signal = store.read("v1", np.array([1, 2]))
    assert torch.signbit(signal.logits["click"]).tolist() == [True, False]
