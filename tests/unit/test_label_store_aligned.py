"""Labels by row of a dataset: policies over several versions, and the views that keep them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_store_cases import filled, open_writer, put

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import DataError
from recdistill_core.label_choice import choose_labels
from recdistill_core.labels import AlignedLabels, AlignedStore, LabelChoice, LabelPolicy, full_name
from recdistill_parquet import labels_aligned
from recdistill_parquet.labels import ParquetLogitStore

ROWS = np.array([4, 2, 9, 7, 1])
TIMES = np.array([100, 200, 300, 400, 500])
ANY, LATEST = LabelPolicy.ANY_OF, LabelPolicy.LATEST_BEFORE_EVENT


def several(path: Path, until: Mapping[str, Any] | None = None) -> ParquetLogitStore:
    """``a`` labels 4, 2, 9 with 1; ``b`` labels 2, 9, 7 with 2; ``c`` labels all with 3."""
    store = ParquetLogitStore(path)
    until = {"a": 50, "b": 250, "c": 350} if until is None else until
    for value, (version, ids) in enumerate({"a": [4, 2, 9], "b": [2, 9, 7], "c": [4, 2, 9, 7, 1]}.items(), 1):
        facts = {"trained_until": until[version]} if version in until else {}
        with open_writer(store, version, facts=facts) as writer:
            put(writer, ids, [float(value)] * len(ids), step=value)
            writer.commit()
    return store


def aligned(store: ParquetLogitStore, *versions: str, policy: LabelPolicy = LabelPolicy.EXACT) -> AlignedLabels:
    return store.aligned(LabelChoice(versions, policy), dataset="d", example_id=ROWS, event_time=TIMES)


def values(labels: AlignedLabels) -> list[float]:
    return labels.signal.logits["click"].tolist()


@pytest.mark.parametrize(
    ("versions", "policy", "logits", "origin", "name"),
    [
        (["a"], LabelPolicy.EXACT, [1, 1, 1, 0, 0], [0, 0, 0, -1, -1], "a"),
        (["a", "b"], ANY, [1, 1, 1, 2, 0], [0, 0, 0, 1, -1], "any_of(a, b)"),
        (["b", "a"], ANY, [1, 2, 2, 2, 0], [1, 0, 0, 0, -1], "any_of(b, a)"),
        (["a", "b"], LATEST, [1, 1, 2, 2, 0], [0, 0, 1, 1, -1], "latest_before_event(a, b)"),
        (["c", "b", "a"], LATEST, [1, 1, 2, 3, 3], [2, 2, 1, 0, 0], "latest_before_event(c, b, a)"),
        (["c"], LATEST, [0, 0, 0, 3, 3], [-1, -1, -1, 0, 0], "latest_before_event(c)"),
    ],
)
def test_policies(
    tmp_path: Path, versions: list[str], policy: LabelPolicy, logits: list[float], origin: list[int], name: str
) -> None:
    store = several(tmp_path)
    choice = LabelChoice(tuple(versions), policy)
    for found in (
        choose_labels(store, choice, ROWS, TIMES),
        aligned(store, *versions, policy=policy),
        aligned(store, *versions, policy=policy),
    ):
        assert values(found) == logits
        assert found.origin.tolist() == origin
        assert found.origin.dtype == torch.int16
        assert found.signal.valid["click"].tolist() == [place >= 0 for place in origin]
        assert (found.signal.version, found.choice, found.snapshot) == (name, choice, store.snapshot_id())
        assert found.signal.scored_at is not None
        expected = [1_700_000_000_000 + int(logit) if logit else 0 for logit in logits]
        assert found.signal.scored_at.tolist() == expected


def test_all_of_is_the_mean_of_those_that_have_a_label_and_tells_each(tmp_path: Path) -> None:
    store = several(tmp_path)
    choice = LabelChoice(("a", "b"), LabelPolicy.ALL_OF)
    keep = torch.tensor([True, False, True, True, True])
    for found in (choose_labels(store, choice, ROWS, TIMES), aligned(store, "a", "b", policy=LabelPolicy.ALL_OF)):
        assert values(found) == [1, 1.5, 1.5, 2, 0]
        assert found.origin.tolist() == [0, 0, 0, 1, -1]
        assert found.origin.dtype == torch.int16
        assert [member.version for member in found.signal.members] == ["a", "b"]
        assert [member.logits["click"].tolist() for member in found.signal.members] == [
            [1, 1, 1, 0, 0],
            [0, 2, 2, 2, 0],
        ]
        assert (found.signal.version, found.choice, found.snapshot) == ("all_of(a, b)", choice, store.snapshot_id())
        assert found.covered() == {"click": pytest.approx(0.8)}
        assert found.coverage() == {"click": {"a": pytest.approx(0.6), "b": pytest.approx(0.6)}}
        fewer = found.masked(keep)
        assert values(fewer) == [1, 0, 1.5, 2, 0]
        assert fewer.coverage() == {"click": {"a": pytest.approx(0.4), "b": pytest.approx(0.4)}}
    with pytest.raises(DataError, match="has no version 'x'"):
        aligned(store, "a", "x", policy=LabelPolicy.ALL_OF)


def test_a_version_that_was_trained_up_to_the_event_may_label_it(tmp_path: Path) -> None:
    store = several(tmp_path, {"a": 100, "b": 201, "c": 10**6})
    assert values(aligned(store, "a", "b", policy=LATEST)) == [1, 1, 2, 2, 0]


def test_coverage_by_task_and_version(tmp_path: Path) -> None:
    found = aligned(several(tmp_path), "b", "a", policy=ANY)
    assert found.coverage() == {"click": {"b": pytest.approx(0.6), "a": pytest.approx(0.2)}}
    assert found.coverage((0, 2)) == {"click": {"b": 0.5, "a": 0.5}}
    assert found.coverage((2, 2)) == {"click": {"b": 0.0, "a": 0.0}}


def test_revoked_labels_are_passed_over(tmp_path: Path) -> None:
    store = several(tmp_path)
    assert values(aligned(store, "a", "b", policy=ANY)) == [1, 1, 1, 2, 0]
    store.revoke("a", reason="x")
    assert values(aligned(store, "a", "b", policy=ANY)) == [0, 2, 2, 2, 0]
    store.restore("a")
    assert values(aligned(store, "a", "b", policy=ANY)) == [1, 1, 1, 2, 0]


def test_choices_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"versions must be distinct, at least one, got \[\]"):
        LabelChoice(())
    with pytest.raises(ValueError, match=r"versions must be distinct, at least one, got \['a', 'a'\]"):
        LabelChoice(("a", "a"), ANY)
    assert LabelChoice(("a", "b"), "any_of").policy is LabelPolicy.ANY_OF  # type: ignore[arg-type]  # a name will do
    with pytest.raises(ValueError, match="'anyof' is not a valid LabelPolicy"):
        LabelChoice(("a", "b"), "anyof")  # type: ignore[arg-type]  # no policy
    with pytest.raises(ValueError, match=r"the policy 'exact' takes one version, got \['a', 'b'\]"):
        LabelChoice(("a", "b"))
    store = several(tmp_path, {"a": 1, "c": "soon"})
    with pytest.raises(DataError) as caught:
        aligned(store, "a", "b", policy=LATEST)
    assert str(caught.value) == (
        "version 'b' does not say until when its teacher was trained, which the policy 'latest_before_event' goes by\n"
        "  where: logit store; facts: none\n"
        "  to do: capture with facts={'trained_until': <ms since the epoch, UTC>}, or choose another policy"
    )
    with pytest.raises(DataError, match=r"version 'c' does not say(.|\n)*facts: trained_until"):
        aligned(store, "c", policy=LATEST)
    with pytest.raises(DataError, match=r"the logit store has no version 'd'(.|\n)*where: versions: a, b, c"):
        aligned(store, "a", "d", policy=ANY)
    with open_writer(store, "likes", tasks=("like",)) as writer:
        put(writer, [1], task="like")
        writer.commit()
    with pytest.raises(DataError, match="versions 'a' and 'likes' have labels of different tasks"):
        aligned(store, "a", "likes", policy=ANY)


def test_a_view_is_made_once_for_one_snapshot_rows_and_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = several(tmp_path)
    made: list[Any] = []

    def counting(*given: Any) -> AlignedLabels:
        made.append(given)
        return choose_labels(*given)

    monkeypatch.setattr(labels_aligned, "choose_labels", counting)
    for _ in range(3):
        aligned(ParquetLogitStore(tmp_path), "a")
    assert len(made) == 1
    ask = {"dataset": "d", "example_id": ROWS, "event_time": TIMES}
    for number, change in enumerate(
        ({"dataset": "e"}, {"example_id": ROWS[::-1]}, {"event_time": TIMES + 1}, {}), start=2
    ):
        choice = LabelChoice(("a",)) if change else LabelChoice(("a", "b"), ANY)
        store.aligned(choice, **{**ask, **change})  # type: ignore[arg-type]  # arrays and a name
        assert len(made) == number
    before = store.snapshot_id()
    with open_writer(store, "a", facts={"trained_until": 50}) as writer:
        put(writer, [7], [8.0])
        writer.commit()
    assert values(aligned(store, "a")) == [1, 1, 1, 8, 0]
    assert values(aligned(store.at(before), "a")) == [1, 1, 1, 0, 0]
    assert len(made) == 6


def test_a_view_is_memory_mapped_and_may_be_written_to_in_memory(tmp_path: Path) -> None:
    store = several(tmp_path)
    found = aligned(store, "a")
    found.signal.logits["click"][0] = 77.0
    assert values(aligned(store, "a")) == [1, 1, 1, 0, 0]


def _view(path: Path) -> Path:
    (place,) = (path / "aligned").iterdir()
    return place


@pytest.mark.parametrize("file", ["meta.json", "logit_0.npy", "valid_0.npy", "origin.npy", "scored_at.npy"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone", "link"])
def test_a_damaged_view_is_made_again(tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    store = several(tmp_path)
    before = values(aligned(store, "a"))
    path = _view(tmp_path) / file
    content = bytearray(path.read_bytes())
    path.unlink()
    content[len(content) // 2] ^= 4
    if how in ("flip", "cut"):
        path.write_bytes(bytes(content if how == "flip" else content[:-1]))
    elif how == "link":
        (tmp_path / "other").write_bytes(bytes(content))
        path.symlink_to(tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        assert values(aligned(store, "a")) == before
    assert f"the aligned view {_view(tmp_path)} is not usable and is made again: " in caplog.text
    caplog.clear()
    assert values(aligned(store, "a")) == before
    assert caplog.text == ""


def test_a_view_that_is_a_link_or_another_one_is_made_again(tmp_path: Path) -> None:
    store = several(tmp_path / "store")
    aligned(store, "a")
    place = _view(tmp_path / "store")
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    assert values(aligned(store, "a")) == [1, 1, 1, 0, 0]
    assert not place.is_symlink()
    assert (tmp_path / "moved/meta.json").exists()
    aligned(store, "b")
    (other,) = set((tmp_path / "store/aligned").iterdir()) - {place}
    for path in place.iterdir():
        path.write_bytes((other / path.name).read_bytes())
    assert values(aligned(store, "a")) == [1, 1, 1, 0, 0]


def test_where_a_view_cannot_be_kept_labels_stay_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = several(tmp_path)
    (tmp_path / "aligned").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert values(aligned(store, "a")) == [1, 1, 1, 0, 0]
    assert "cannot be kept, labels stay in memory" in caplog.text


def test_gc_removes_views_of_snapshots_that_nobody_keeps(tmp_path: Path) -> None:
    store = several(tmp_path)
    aligned(store, "a")
    store.pin("run", by="me")
    store.revoke("c", reason="x")
    aligned(store, "a")
    assert store.gc(0).removed == ()
    store.unpin("run")
    (removed,) = store.gc(0).removed
    assert (removed.why, removed.bytes > 500) == ("view", True)
    assert len(list((tmp_path / "aligned").iterdir())) == 1
    (_view(tmp_path) / "meta.json").unlink()
    assert [entry.why for entry in store.gc(0).removed] == ["leftover"]


class Foreign:
    """A store of somebody else: labels by task, no times."""

    def writer(self, version: str, **more: Any) -> Any:
        raise NotImplementedError

    def versions(self) -> tuple[Any, ...]:
        return ParquetLogitStore(self.path).versions()

    def snapshot_id(self) -> str:
        return "s"

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        ids = torch.from_numpy(example_id)
        return TeacherSignal({"click": ids.float(), "like": -ids.float()}, {"click": ids > 3, "like": ids > 5}, version)


def test_any_store_can_be_aligned(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    with open_writer(store, tasks=("click", "like")) as writer:
        writer.append(torch.tensor([1]), {"click": torch.ones(1), "like": torch.ones(1)}, step=0, scored_at=0)
        writer.commit()
    foreign = Foreign(tmp_path)
    assert not isinstance(foreign, AlignedStore)
    assert isinstance(store, AlignedStore)
    found = choose_labels(foreign, LabelChoice(("v1",)), ROWS, TIMES)
    assert found.signal.valid["click"].tolist() == [True, False, True, True, False]
    assert found.signal.valid["like"].tolist() == [False, False, True, True, False]
    assert found.signal.logits["click"].tolist() == [4, 0, 9, 7, 0]
    assert found.origin.tolist() == [0, -1, 0, 0, -1]
    assert found.signal.scored_at is None
    assert found.coverage() == {"click": {"v1": pytest.approx(0.6)}, "like": {"v1": pytest.approx(0.4)}}


def test_task_names_are_no_file_names(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path / "s")
    task = "../../click"
    with open_writer(store, tasks=(task,)) as writer:
        put(writer, [4], [2.0], task=task)
        writer.commit()
    assert aligned(store, "v1").signal.logits[task].tolist() == [2, 0, 0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_a_view_of_no_rows(tmp_path: Path) -> None:
    nothing = np.empty(0, np.int64)
    found = filled(tmp_path).aligned(LabelChoice(("v1",)), dataset="d", example_id=nothing, event_time=nothing)
    assert found.signal.logits["click"].shape == (0,)


def test_a_version_goes_by_the_beginning_of_its_name_where_that_is_clear() -> None:
    known = ["0123456789ab", "0123456700", "teacher-a", "teacher-a-2"]
    assert full_name("01234567", known) == "01234567"  # two begin so
    assert full_name("012345678", known) == "0123456789ab"
    assert full_name("0123456", ["0123456789ab"]) == "0123456"  # too few
    assert full_name("teacher-a", known) == "teacher-a"
    assert full_name("teacher-b", known) == "teacher-b"
