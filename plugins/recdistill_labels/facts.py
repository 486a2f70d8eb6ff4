"""Versions and commits of a label store as plain values, for tables, JSON and SQL alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recdistill_core.labels import full_name
from recdistill_labels.arguments import counted, iso

if TYPE_CHECKING:
    from recdistill_parquet.labels_log import Head
    from recdistill_parquet.labels_state import VersionEntry


def read_versions(
    store: Path, snapshot: str = "", versions: Sequence[str] = ()
) -> tuple[Head, tuple[VersionEntry, ...]]:
    """The commit that is read, and its versions, oldest first; reads no labels.

    Args:
        store: root of the store. snapshot: id of a commit, or empty for the newest.
        versions: only these, in this order, by 8 characters of their name or more; empty: all.

    Raises:
        DataError: if there is no such store, snapshot or version. IntegrityError: if the log is damaged.
    """
    from recdistill_parquet import labels_log

    labels_log.require_store(store)
    head = labels_log.find_snapshot(store, snapshot) if snapshot else labels_log.read_head(store)
    state = labels_log.read_state(store, head)
    known = [entry.version for entry in state.entries]
    named = dict.fromkeys(full_name(version, known) for version in versions)
    wanted = tuple(state.require(version, str(store)) for version in named)
    return head, wanted if versions else state.entries


def version_row(entry: VersionEntry) -> dict[str, Any]:
    """One version; ``dataset`` and ``trained_until`` are facts that the writer may have noted, or None.

    NaN and infinite numbers in facts are None: strict JSON, as the verbs print it, has none of them.
    """
    facts = json.loads(json.dumps(entry.facts), parse_constant=lambda name: None)
    return {
        "version": entry.version,
        "mode": entry.mode.value,
        "tasks": list(entry.tasks),
        "view": entry.view,
        "count": entry.count,
        "dataset": facts.get("dataset"),
        "trained_until": facts.get("trained_until"),
        "duplicates": entry.duplicates,
        "quarantined": entry.quarantined,
        "revoked": entry.revoked.reason if entry.revoked else "",
        "revoked_since": entry.revoked.since if entry.revoked else None,
        "revoked_at": entry.revoked.at if entry.revoked else None,
        "segments": len(entry.segments),
        "bytes": sum(segment.bytes for segment in entry.segments),
        "facts": facts,
    }


def commit_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One commit, as :func:`recdistill_parquet.labels_log.history` gives it; ``done`` is a sentence for each action."""
    return {
        "number": entry["number"],
        "id": entry["id"],
        "parent": entry["parent"],
        "at": entry["at"],
        "by": entry["by"],
        "done": [_told(action) for action in entry["actions"]],
    }


def _told(action: Mapping[str, Any]) -> str:
    version = action["version"]
    if action["do"] == "add":
        added = action["entry"]
        rows = sum(segment["rows"] for segment in added["segments"])
        told = f"{version}: {counted(rows, 'label')} added in {counted(len(added['segments']), 'segment')}"
        aside = sum(segment["rows"] for segment in added["aside"])
        told += f", {added['duplicates']:,} delivered again" if added["duplicates"] else ""
        return told + (f", {aside:,} set aside" if aside else "")
    if action["do"] == "revoke":
        since = "" if action["since"] is None else f" since {iso(action['since'])}"
        return f"{version}: revoked{since}: {action['reason']}"
    if action["do"] == "compact":
        return f"{version}: {counted(len(action['removed']), 'segment')} compacted to {len(action['segments'])}"
    return f"{version}: restored"
