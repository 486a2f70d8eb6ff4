"""Checks for logit stores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import DataError, LeakError
from recdistill_core.labels import CaptureMode, LabelWriter, LogitStore
from recdistill_core.testing.cases import Case, check, exercise

TASKS = ("click", "like")
FACTS = {"dataset": "sample", "seed": 7}
VIEW = "0123456789abcdef"
#: Logits that a detour through text, float64 or float16 would change; a store keeps them as they are.
HARD = (0.1, -0.0, 1e-40, -39.5, 1.1754944e-38, 1 / 3)


def labels(count: int, first: int = 0, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """``count`` example ids ``[N]`` in no order, and logits ``{task: [N]}`` for them."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randperm(count, generator=draw) * 7 + first
    logits = {task: 4 * torch.randn(count, generator=draw) for task in TASKS}
    for task, sign in zip(TASKS, (1, -1), strict=True):
        logits[task][: len(HARD)] = sign * torch.tensor(HARD[:count])
    return ids, logits


def writer_of(store: LogitStore, version: str = "v1") -> LabelWriter:
    """A writer as a run asks for it."""
    return store.writer(version, tasks=TASKS, mode=CaptureMode.PREQUENTIAL, view=VIEW, facts=FACTS)


def put(store: LogitStore, ids: Tensor, logits: Mapping[str, Tensor], version: str = "v1") -> None:
    """Commit labels in two appends."""
    writer, half = writer_of(store, version), len(ids) // 2
    for part in (slice(0, half), slice(half, None)):
        chosen = {task: logit[part] for task, logit in logits.items()}
        writer.append(ids[part], chosen, step=part.start, scored_at=1_650_000_000_000)
    writer.commit()


def got(store: LogitStore, ids: Tensor, version: str = "v1") -> TeacherSignal:
    """What the store says of ``ids [M]``."""
    return store.read(version, ids.numpy())


def versions_of(store: LogitStore) -> list[str]:
    """Names of the committed versions."""
    return [entry.version for entry in store.versions()]


def require_labels(case: Case, store: LogitStore, ids: Tensor, logits: Mapping[str, Tensor], where: str) -> None:
    """Fail unless ``ids [M]`` have exactly ``logits`` in the version ``v1``, in that order."""
    found = got(store, ids)
    case.require(set(found.logits) == set(logits), f"gives logits of {sorted(found.logits)}, not of {sorted(logits)}")
    for task, wanted in logits.items():
        logit, valid = found.logits[task], found.valid[task]
        case.require(logit.dtype == torch.float32, f"gives {logit.dtype} logits, not torch.float32")
        case.require(logit.shape == valid.shape == ids.shape, f"gives other shapes than one entry per example {where}")
        case.require(bool(valid.all()), f"has lost {int((~valid).sum())} of {len(ids)} labels {where}")
        same = logit.view(torch.int32) == wanted.view(torch.int32)
        if not bool(same.all()):
            row = int((~same).nonzero()[0])
            case.fail(
                f"gives {float(logit[row])!r} for example {int(ids[row])}, task {task!r}, {where}; "
                f"{float(wanted[row])!r} was put"
            )


def require_refused(case: Case, call: Callable[[], Any], kind: type[Exception], fault: str) -> None:
    """Fail with ``fault`` unless ``call`` raises ``kind``."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        case.fail(f"{fault}: it raises {type(error).__name__}, not {kind.__name__}")
    case.fail(fault)


@exercise("store")
def run_store(case: Case, made: LogitStore) -> Mapping[str, Any]:
    """Write one version and read some of it back."""
    ids, logits = labels(20)
    put(made, ids, logits)
    found = got(made, ids[:9])
    return {"logits": found.logits, "valid": found.valid, "versions": made.versions()}


@check("store")
def every_example_is_a_store_of_its_own(case: Case) -> None:
    """Stores made from the example in two folders share nothing, so that checks and tests cannot disturb each other."""
    put(case.build(), *labels(8))
    other = case.again("other").build()
    case.require(
        versions_of(other) == [],
        "shares its labels with a store made from the example in another folder: make `example` a function of the "
        "folder and put the store there",
    )


@check("store")
def what_is_put_is_got_back(case: Case) -> None:
    """Logits come back bit for bit, in any order of the examples, also from a second opening of the store."""
    store = case.build()
    ids, logits = labels(50)
    more, others = labels(30, first=10_000, seed=1)
    put(store, ids, logits)
    put(store, more, others)
    ids, logits = torch.cat([ids, more]), {task: torch.cat([logits[task], others[task]]) for task in TASKS}
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(2))
    order = torch.cat([order, order[:5]])
    for which, place in ((store, "in shuffled order"), (case.build(), "in shuffled order after it was opened again")):
        require_labels(case, which, ids[order], {task: logit[order] for task, logit in logits.items()}, place)


@check("store")
def examples_without_a_label_are_not_valid(case: Case) -> None:
    """``valid`` is False for examples that have no label, and for them alone."""
    store = case.build()
    ids, logits = labels(20)
    put(store, ids, logits)
    asked = torch.stack([ids, ids + 1], dim=1).flatten()
    for task, valid in got(store, asked).valid.items():
        case.require(valid.dtype == torch.bool, f"gives a mask of {valid.dtype}, not torch.bool")
        wrong = valid != (torch.arange(len(asked)) % 2 == 0)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            said = "invents a label" if valid[row] else "hides the label"
            case.fail(f"{said} of example {int(asked[row])} for task {task!r}")


@check("store")
def another_version_is_a_miss(case: Case) -> None:
    """A version that is not there is a DataError, and labels of one version never answer for another."""
    store = case.build()
    ids, logits = labels(20)
    put(store, ids[:10], {task: logit[:10] for task, logit in logits.items()}, "v1")
    put(store, ids[5:15], {task: -logit[5:15] for task, logit in logits.items()}, "v2")
    require_refused(
        case,
        lambda: got(store, ids, "v3"),
        DataError,
        "does not refuse a teacher version that it does not have",
    )
    for version, held, sign in (("v1", slice(0, 10), 1), ("v2", slice(5, 15), -1)):
        found = got(store, ids, version)
        case.require(found.version == version, f"answers for version {found.version!r}, {version!r} was asked for")
        expected = torch.zeros(len(ids), dtype=torch.bool)
        expected[held] = True
        for task in TASKS:
            same = torch.equal(found.valid[task], expected)
            same = same and torch.equal(found.logits[task][held], sign * logits[task][held])
            case.require(same, f"mixes the labels of two versions: version {version!r} is not as it was put")


@check("store")
def nothing_is_visible_before_commit(case: Case) -> None:
    """What is appended shows neither here nor in another opening of the store before ``commit``, in both after it."""
    store = case.build()
    ids, logits = labels(20)
    writer = writer_of(store)
    writer.append(ids, logits, step=0, scored_at=0)
    for which in (store, case.build()):
        case.require(not _shows(which, ids), "shows labels before their commit")
    writer.commit()
    for which in (store, case.build()):
        require_labels(case, which, ids, logits, "after the commit")
    late = writer_of(store)
    late.append(ids + 1, logits, step=1, scored_at=0)
    for which in (store, case.build()):
        case.require(not _shows(which, ids + 1), "shows labels before their commit, in a version that was there")
    late.abort()


def _shows(store: LogitStore, ids: Tensor) -> bool:
    if "v1" not in versions_of(store):
        return False
    return any(bool(valid.any()) for valid in got(store, ids).valid.values())


@check("store")
def abort_forgets(case: Case) -> None:
    """After ``abort`` the store is as it was, and the same examples can be labelled anew."""
    store = case.build()
    first, before = labels(10)
    put(store, first, before)
    ids, logits = labels(20, first=10_000, seed=1)
    snapshot, writer = store.snapshot_id(), writer_of(store)
    writer.append(ids, logits, step=0, scored_at=0)
    writer.abort()
    for which in (store, case.build()):
        case.require(not _shows(which, ids), "keeps labels that were aborted")
        case.require(which.snapshot_id() == snapshot, "has another snapshot_id after an abort")
    flipped = {task: -logit for task, logit in logits.items()}
    put(store, ids, flipped)
    require_labels(case, store, ids, flipped, "after an abort and a second writing")
    require_labels(case, store, first, before, "that were there before the abort")


@check("store")
def a_crash_leaves_the_store_as_it_was(case: Case) -> None:
    """What a writer that came to neither ``commit`` nor ``abort`` leaves on disk is nothing to the next opening."""
    store = case.build()
    first, before = labels(10)
    put(store, first, before)
    ids, logits = labels(40, first=10_000, seed=1)
    snapshot, writer = store.snapshot_id(), writer_of(store)
    writer.append(ids, logits, step=0, scored_at=0)
    home, crashed = case.folder / "example", case.folder / "at-the-crash"
    shutil.copytree(home, crashed)  # the disk as a process that dies now leaves it
    with suppress(Exception):
        writer.abort()
    del writer, store
    shutil.rmtree(home)
    crashed.rename(home)
    again = case.build()
    case.require(again.snapshot_id() == snapshot, "has another snapshot_id after a writer crashed")
    require_labels(case, again, first, before, "that were committed before a writer crashed")
    case.require(not _shows(again, ids), "shows labels of a writer that crashed before its commit")
    put(again, ids, logits)
    require_labels(case, again, ids, logits, "written again after a crash")


def _once_more(writer: LabelWriter, ids: Tensor, logits: Mapping[str, Tensor], rows: Sequence[int]) -> None:
    """Deliver some of the labels (again)."""
    writer.append(ids[list(rows)], {task: logits[task][list(rows)] for task in TASKS}, step=1, scored_at=0)


@check("store")
def another_second_label_is_refused(case: Case) -> None:
    """A second label that differs from the first one, pending or committed, is a LeakError, and the first one stays."""
    store = case.build()
    ids, logits = labels(10)
    flipped = {task: -logit for task, logit in logits.items()}
    fresh, twice = writer_of(store, "v0"), ids.clone()
    twice[2] = twice[1]
    require_refused(
        case,
        lambda: _once_more(fresh, twice, logits, [1, 2]),
        LeakError,
        "takes two different labels of one example in one append",
    )
    fresh.abort()
    writer = writer_of(store)
    writer.append(ids, logits, step=0, scored_at=0)
    require_refused(
        case,
        lambda: _once_more(writer, ids, flipped, [3]),
        LeakError,
        "takes another second label of an example in one writer",
    )
    writer.commit()
    late = writer_of(case.build())
    require_refused(
        case,
        lambda: _once_more(late, ids, flipped, [4]),
        LeakError,
        "takes another second label of an example that has been committed",
    )
    late.abort()
    require_labels(case, case.build(), ids, logits, "after a second label was refused")


@check("store")
def an_equal_second_label_is_dropped(case: Case) -> None:
    """Labels that are delivered twice, in one append, to one writer or after a commit, are there once."""
    store = case.build()
    ids, logits = labels(10)
    writer = writer_of(store)
    deliveries = (("in one append", [3, 3]), ("to one writer", range(10)), ("to one writer, once more", [4, 0]))
    for place, rows in deliveries:
        _deliver(case, writer, ids, logits, rows, place)
    counted = writer.commit().count
    case.require(counted == 10, f"counts {counted} labels of 10 examples that were delivered twice before a commit")
    late = writer_of(case.build())
    _deliver(case, late, ids, logits, range(10), "after a commit")
    counted = late.commit().count
    case.require(counted == 10, f"counts {counted} labels of 10 examples that were delivered again after a commit")
    require_labels(case, case.build(), ids, logits, "after they were delivered twice")


def _deliver(
    case: Case, writer: LabelWriter, ids: Tensor, logits: Mapping[str, Tensor], rows: Sequence[int], place: str
) -> None:
    try:
        _once_more(writer, ids, logits, rows)
    except LeakError:
        case.fail(f"refuses an equal second label {place}; a repeated delivery must do no harm")


@check("store")
def the_snapshot_id_follows_the_commits(case: Case) -> None:
    """``snapshot_id`` changes with every commit and nothing else, and two openings of one state agree on it."""
    store = case.build()
    seen = [store.snapshot_id()]
    for number in range(3):
        ids, logits = labels(5, first=1000 * number, seed=number)
        writer = writer_of(store, "v2" if number == 2 else "v1")
        writer.append(ids, logits, step=number, scored_at=0)
        case.require(store.snapshot_id() == seen[-1], "has another snapshot_id after an append that is not committed")
        writer.commit()
        seen.append(store.snapshot_id())
        case.require(seen[-1] not in seen[:-1], "has the same snapshot_id after another commit")
        case.require(case.build().snapshot_id() == seen[-1], "has another snapshot_id when it is opened again")


@check("store")
def versions_say_what_was_written(case: Case) -> None:
    """``versions`` lists what is committed, oldest first, with mode, tasks, view, count and facts as they were put."""
    store = case.build()
    case.require(versions_of(store) == [], "is not empty when it is new")
    for version, count in (("b", 9), ("a", 5)):
        put(store, *labels(count), version)
    for which in (store, case.build()):
        case.require(versions_of(which) == ["b", "a"], f"lists its versions as {versions_of(which)}, not oldest first")
        for entry, count in zip(which.versions(), (9, 5), strict=True):
            said = (entry.mode, tuple(entry.tasks), entry.view, entry.count, dict(entry.facts))
            given = (CaptureMode.PREQUENTIAL, TASKS, VIEW, count, FACTS)
            case.require(said == given, f"says {said} of version {entry.version!r}; it was {given}")
