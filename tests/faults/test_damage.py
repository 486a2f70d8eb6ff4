"""Any file of a label store flipped, cut or gone: the right answer or an error that names it, never a wrong label."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from damage_cases import COUNT, IDS, append, logit
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import IntegrityError
from recdistill_core.labels import LabelChoice
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity
from recdistill_parquet.labels_limits import Limits


def rich(path: Path) -> ParquetLogitStore:
    """A store with everything in it: several commits, versions, a revocation, a pin, a view, values set aside."""
    store = ParquetLogitStore(path, 30, Limits(max_quarantined=0.9))
    append(store, "v1", 0, 50)
    store.pin("run", by="me")
    append(store, "v1", 50, 150)
    store.compact("v1")
    append(store, "v1", 150, COUNT, id199=float("nan"))
    append(store, "v2", 0, 30)
    append(store, "v2", 30, 60)
    store.revoke("v2", reason="bad", since=30)
    for number in range(60):  # past a stored state
        store.restore("v2") if number % 2 else None
        store.revoke("v2", reason="bad", since=30) if number % 2 else None
    store.aligned(LabelChoice(("v1",)), dataset="d", example_id=IDS, event_time=IDS)
    return store


@functools.cache
def rich_origin() -> Path:
    import atexit
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="recdistill-damage-"))
    atexit.register(shutil.rmtree, folder, True)
    rich(folder / "store")
    return folder / "store"


@functools.cache
def files_by_kind() -> list[list[str]]:
    """The store's files, grouped by their folder and suffix: there are many commits and one manifest."""
    origin, kinds = rich_origin(), dict[tuple[str, str], list[str]]()
    for path in sorted(path for path in origin.rglob("*") if path.is_file() and path.stat().st_size):
        name = path.relative_to(origin)
        kinds.setdefault((name.parts[0], path.suffix), []).append(str(name))
    return list(kinds.values())


def test_every_kind_of_file_is_damaged() -> None:
    kinds = {Path(names[0]).parts[0] + Path(names[0]).suffix for names in files_by_kind()}
    assert kinds >= {
        "manifest.json.json",
        "log.json",
        "log.state",
        "segments.parquet",
        "quarantine.parquet",
        "pins.json",
        "aligned.json",
        "aligned.npy",
    }


@functools.cache
def first_commit() -> str:
    return str(ParquetLogitStore(rich_origin()).log()[0]["id"])


EXPECTED = {"v1": {key: logit(key) for key in range(199)}, "v2": {key: logit(key) for key in range(30)}}


def answers(path: Path, first: str) -> None:
    """Everything that can be read, compared with what was written; an IntegrityError is fine, a wrong label is not."""

    def labels(signal: Any) -> dict[int, float]:
        valid = signal.valid["click"].numpy()
        return dict(zip(IDS[valid].tolist(), signal.logits["click"].numpy()[valid].tolist(), strict=True))

    def aligned(store: ParquetLogitStore) -> Any:
        return store.aligned(LabelChoice(("v1",)), dataset="d", example_id=IDS, event_time=IDS).signal

    def pinned(store: ParquetLogitStore) -> Any:
        pins = store.pins()
        return store.at(pins[0].snapshot if pins else first).read("v1", IDS)

    looks: dict[str, tuple[Callable[[ParquetLogitStore], Any], dict[int, float]]] = {
        "v1": (lambda store: store.read("v1", IDS), EXPECTED["v1"]),
        "v2": (lambda store: store.read("v2", IDS), EXPECTED["v2"]),
        "aligned": (aligned, EXPECTED["v1"]),
        "pinned": (pinned, {key: logit(key) for key in range(50)}),
    }
    for look, expected in looks.values():
        try:
            found = look(ParquetLogitStore(path))
        except IntegrityError:
            continue
        assert labels(found) == expected


@settings(max_examples=5000 if os.environ.get("RECDISTILL_KILLS") == "all" else 250, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_an_integrity_error_or_does_no_harm(data: st.DataObject) -> None:
    origin = rich_origin()
    name = data.draw(st.sampled_from(data.draw(st.sampled_from(files_by_kind()))))
    content = bytearray((origin / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    good = (origin / name).read_bytes()
    try:
        (origin / name).write_bytes(bytes(content))
        answers(origin, first_commit())
        ParquetLogitStore(origin).verify()
    finally:
        (origin / name).parent.mkdir(exist_ok=True)
        (origin / name).write_bytes(good)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_file_is_an_integrity_error_or_does_no_harm(data: st.DataObject) -> None:
    origin = rich_origin()
    name = data.draw(st.sampled_from(data.draw(st.sampled_from(files_by_kind()))))
    good = (origin / name).read_bytes()
    try:
        (origin / name).write_bytes(good[: data.draw(st.integers(0, len(good)))])
        answers(origin, first_commit())
    finally:
        (origin / name).parent.mkdir(exist_ok=True)
        (origin / name).write_bytes(good)


def test_each_file_that_is_gone_is_an_integrity_error_or_does_no_harm() -> None:
    origin = rich_origin()
    for path in sorted(path for path in origin.rglob("*") if path.is_file()):
        good = path.read_bytes()
        path.unlink()
        try:
            answers(origin, first_commit())
        finally:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(good)


def test_the_whole_store_answers_right() -> None:
    origin = rich_origin()
    answers(origin, first_commit())
    store = ParquetLogitStore(origin)
    assert store.read("v1", IDS).valid["click"].sum() == 199
    assert [finding for finding in store.verify() if finding.severity is Severity.ERROR] == []
