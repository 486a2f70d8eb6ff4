"""Sample-aligned views: the labels of a dataset's rows, by position, in memory-mapped files.

::

    STORE/aligned/<key>/meta.json      what it was made from, and the sha256 of the other files
    STORE/aligned/<key>/*.npy          one array of ``[rows]`` each

The key names the dataset, its rows, the store's snapshot, the versions and the policy. A view is made once, in a
scratch folder that is renamed. One that is damaged or half built is made again: whatever it says can be derived from
the segments.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import IntegrityError
from recdistill_core.files import sync, sync_tree
from recdistill_core.fingerprint import file_sha256
from recdistill_core.label_choice import choose_labels, mean_labels, require_versions
from recdistill_core.labels import AlignedLabels, LabelChoice, LabelPolicy, LogitStore
from recdistill_parquet import labels_log

log = logging.getLogger("recdistill.labels")
ALIGNED, META = "aligned", "meta.json"


def aligned_labels(
    store: Path,
    snapshot: LogitStore,
    choice: LabelChoice,
    dataset: str,
    example_id: NDArray[np.int64],
    event_time: NDArray[np.int64],
) -> AlignedLabels:
    """The view of one snapshot, made where it is not there yet.

    Args:
        store: root of the store. snapshot: the same store, pinned.
        choice, dataset, example_id, event_time: see :meth:`recdistill_core.labels.AlignedStore.aligned`.
    """
    if choice.policy == LabelPolicy.ALL_OF:
        require_versions(snapshot, choice)
        each = [
            aligned_labels(store, snapshot, LabelChoice((version,)), dataset, example_id, event_time)
            for version in choice.versions
        ]
        return mean_labels(choice, [one.signal for one in each], each[0].snapshot)
    facts = {
        "dataset": dataset,
        "rows": _rows_digest(example_id, event_time),
        "snapshot": snapshot.snapshot_id(),
        "versions": list(choice.versions),
        "policy": choice.policy.value,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    place = store / ALIGNED / key
    if place.is_symlink() or place.exists():
        try:
            return _open(place, choice, facts)
        except (OSError, ValueError, KeyError, IntegrityError) as error:
            log.warning("the aligned view %s is not usable and is made again: %s", place, str(error).splitlines()[0])
    made = choose_labels(snapshot, choice, example_id, event_time)
    try:
        _write(place, made, facts)
        return _open(place, choice, facts)
    except OSError as error:
        log.warning("the aligned view %s cannot be kept, labels stay in memory: %s", place, error)
        return made


def _rows_digest(example_id: NDArray[np.int64], event_time: NDArray[np.int64]) -> str:
    total = hashlib.sha256(f"{example_id.size} ".encode())
    for column in (example_id, event_time):
        total.update(np.ascontiguousarray(column, np.int64).view(np.uint8).data)
    return total.hexdigest()


def _arrays(made: AlignedLabels) -> dict[str, Any]:
    """File names and their columns; tasks go by their number, as their names may be no file names."""
    tasks = enumerate(made.signal.logits)
    columns = {f"logit_{number}.npy": made.signal.logits[task] for number, task in tasks}
    columns |= {f"valid_{number}.npy": valid for number, valid in enumerate(made.signal.valid.values())}
    if made.signal.scored_at is not None:
        columns["scored_at.npy"] = made.signal.scored_at
    return {name: column.numpy() for name, column in {**columns, "origin.npy": made.origin}.items()}


def _write(place: Path, made: AlignedLabels, facts: dict[str, Any]) -> None:
    """Write the view at ``place``, whole or not at all; what was there is removed."""
    place.parent.mkdir(exist_ok=True)
    scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    scratch.mkdir()
    try:
        for name, column in _arrays(made).items():
            with (scratch / name).open("wb") as stream:
                np.save(stream, column)
        files = {path.name: file_sha256(path) for path in sorted(scratch.iterdir())}
        meta = {**facts, "tasks": list(made.signal.logits), "version": made.signal.version, "files": files}
        (scratch / META).write_text(labels_log.sealed(meta))
        sync_tree(scratch)
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            old = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
            place.rename(old)
            shutil.rmtree(old)
        scratch.rename(place)
        sync(place.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _open(place: Path, choice: LabelChoice, facts: dict[str, Any]) -> AlignedLabels:
    """The view at ``place``. Raises OSError, ValueError, KeyError or IntegrityError if it cannot be trusted."""
    if place.is_symlink():
        raise ValueError("it is a symbolic link")
    meta = labels_log.checked((place / META).read_bytes(), place / META, "the aligned view's meta.json")
    if any(meta[name] != value for name, value in facts.items()):
        raise ValueError("it was made from something else")
    columns = {}
    for name, sha256 in meta["files"].items():
        path = place / Path(name).name
        if path.is_symlink() or file_sha256(path) != sha256:
            raise ValueError(f"{name} does not match its sha256")
        columns[name] = torch.from_numpy(np.load(path, mmap_mode="c"))
    tasks = meta["tasks"]
    signal = TeacherSignal(
        logits={task: columns[f"logit_{number}.npy"] for number, task in enumerate(tasks)},
        valid={task: columns[f"valid_{number}.npy"] for number, task in enumerate(tasks)},
        version=meta["version"],
        scored_at=columns.get("scored_at.npy"),
    )
    return AlignedLabels(signal, columns["origin.npy"], choice, meta["snapshot"])
