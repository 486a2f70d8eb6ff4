"""What a dataset directory holds, and its manifest.

Layout of ``DIR`` (format version 1)::

    manifest.json                 written last; names every other file with sha256, bytes and rows
    schema.yaml                   recdistill_core.schema.Schema
    impressions/part-00000.arrow  sorted by (event_time, example_id); see ``dataset_parts``
    events/part-00000.arrow       sorted by (user, time, impression before extra event, original order)
    users.arrow                   row = dense user index: user (raw id), event_start, event_count
    vocabularies/NAME.parquet     value, id; id 0 (value null) = out of vocabulary
    truth/part-00000.arrow        only where a simulator kept true probabilities aside

Columns of the impressions: ``example_id, request_id, user_id, item_id, event_time`` (int64; ms UTC), ``history_start``
(int64: place of the user's first event in the event table), ``history_end`` (int64: how many of the user's events lie
STRICTLY before ``event_time``), ``categorical`` (fixed-size list of int32),
``numeric`` (fixed-size list of float32), ``label_<task>`` (int8, -1 = not observed), ``position`` (int64),
``propensity`` (float32) and ``shown`` (int8 of 0 and 1) where the log has them. Columns of the events: the event fields
(int32 ids), ``action`` (int32 bit code), ``time`` (int64).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recdistill_core.errors import DataError, IntegrityError
from recdistill_core.files import write_atomically
from recdistill_core.fingerprint import file_sha256, snapshot_digest
from recdistill_core.schema import Schema

FORMAT = "recdistill-dataset"
VERSION = 1
MANIFEST = "manifest.json"
SCHEMA = "schema.yaml"
USERS = "users.arrow"
IMPRESSIONS = "impressions"
EVENTS = "events"
TRUTH = "truth"
VOCABULARIES = "vocabularies"
#: Stored label of a row whose outcome is not observed.
UNOBSERVED = -1
#: Staged in place of an action code: the row was not shown, and makes no event.
NOT_SHOWN = -1
_REIMPORT = "import the log again"


@dataclass(frozen=True)
class FileEntry:
    """One file of a dataset: hex ``sha256``, ``bytes``, and ``rows`` (0 for ``schema.yaml``)."""

    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    Attributes:
        format, version: what this directory is.
        snapshot_id: digest of the files' hashes; the same log imported twice gives the same id.
        origin, facts: whatever the importer noted.
        counts: ``rows``, ``events``, ``users`` and ``dropped`` (rows the importer left out).
        time_range: ``[first, last]`` event_time in ms UTC.
        part_rows: rows of every part but the last.
        files: relative path -> entry.
    """

    format: str
    version: int
    snapshot_id: str
    origin: str
    facts: Mapping[str, Any]
    counts: Mapping[str, int]
    time_range: tuple[int, int]
    part_rows: int
    files: Mapping[str, FileEntry]


def hash_files(root: Path, rows: Mapping[str, int]) -> dict[str, FileEntry]:
    """Entries of every file under ``root`` but the manifest; ``rows`` gives the rows of the files that have some."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = {path.relative_to(root).as_posix(): path for path in found}
    return {name: FileEntry(file_sha256(path), path.stat().st_size, rows.get(name, 0)) for name, path in names.items()}


def snapshot_of(files: Mapping[str, FileEntry]) -> str:
    """The snapshot id of these files."""
    return snapshot_digest({name: entry.sha256 for name, entry in files.items()})


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, atomically."""
    write_atomically(root / MANIFEST, json.dumps(asdict(manifest), indent=2, default=str) + "\n")


def read_manifest(root: Path) -> Manifest:
    """The manifest of a dataset, after checking that its files are there in full length.

    Raises:
        DataError: if the directory is no dataset, or of a format version that this release cannot read.
        IntegrityError: if the manifest is damaged, or a file is missing or has another length.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{root} is not a dataset: it has no {MANIFEST}",
            where=str(root),
            fix="give the directory that `recdistill data import` wrote; without a manifest an import did not finish",
        )
    manifest = _parse(path)
    for name, entry in manifest.files.items():
        _check_length(root / name, entry)
    if snapshot_of(manifest.files) != manifest.snapshot_id:
        raise IntegrityError("the manifest's snapshot id does not match its files", where=str(path), fix=_REIMPORT)
    return manifest


def _parse(path: Path) -> Manifest:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(plain, dict) and "config_digest" in plain:
            raise DataError(
                f"{path.parent} is a run directory, not a dataset",
                where=str(path),
                fix=f"give {path.parent / 'dataset'}, or the dataset.path of its config.yaml",
            )
        kind, version = plain["format"], plain["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the manifest cannot be read: {error!r}", where=str(path), fix=_REIMPORT) from error
    if kind != FORMAT or version != VERSION:
        raise DataError(
            f"the dataset has format {kind!r} version {version!r}; this release reads {FORMAT!r} version {VERSION}",
            where=str(path),
            fix="import the log again with this release, or read it with the release that wrote it",
        )
    try:
        plain["files"] = {name: FileEntry(**entry) for name, entry in plain["files"].items()}
        plain["time_range"] = (int(plain["time_range"][0]), int(plain["time_range"][1]))
        return Manifest(**{entry.name: plain[entry.name] for entry in fields(Manifest)})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise IntegrityError(f"the manifest cannot be read: {error!r}", where=str(path), fix=_REIMPORT) from error


def _check_length(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise IntegrityError("a file of the dataset is missing", where=str(path), fix=_REIMPORT)
    size = path.stat().st_size
    if size != entry.bytes:
        what = "truncated" if size < entry.bytes else "longer than it was"
        raise IntegrityError(
            f"a file of the dataset is {what}: {size} bytes, the manifest says {entry.bytes}",
            where=str(path),
            fix=_REIMPORT,
        )


def check_hash(path: Path, entry: FileEntry) -> None:
    """Raise IntegrityError unless the file's content is what the manifest says."""
    if file_sha256(path) != entry.sha256:
        raise IntegrityError("a file of the dataset is damaged: its sha256 differs", where=str(path), fix=_REIMPORT)


def write_schema(root: Path, schema: Schema) -> None:
    """Write ``schema.yaml``."""
    (root / SCHEMA).write_text(OmegaConf.to_yaml(OmegaConf.create(schema.to_dict())), encoding="utf-8")


def read_schema(root: Path) -> Schema:
    """The schema of a dataset. Raises DataError where it cannot be read."""
    plain = OmegaConf.to_container(OmegaConf.load(root / SCHEMA))
    if not isinstance(plain, dict):
        raise DataError("the dataset schema is no mapping", where=str(root / SCHEMA), fix=_REIMPORT)
    return Schema.from_dict({str(key): value for key, value in plain.items()})
