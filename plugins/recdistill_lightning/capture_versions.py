"""Versions that a capture has written before: found again after an interruption, or in the way of another attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recdistill_core.errors import LeakError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion, LogitStore


def committed(store: LogitStore, version: str, mode: CaptureMode, facts: Mapping[str, Any]) -> LabelVersion | None:
    """The committed version of this name, if mode and facts are the same; for jobs that were interrupted."""
    plain = json.loads(json.dumps(dict(facts)))
    found = (entry for entry in store.versions() if entry.version == version and entry.mode == mode)
    return next((entry for entry in found if dict(entry.facts) == plain), None)


def require_not_revoked(store: LogitStore, version: str) -> bool:
    """Whether anything was committed under this version.

    Raises:
        UsageError: if it was revoked: the same teacher would be trained again for labels that nobody is to see.
    """
    entry = next((entry for entry in store.versions() if entry.version == version), None)
    if entry is not None and entry.revoked:
        raise UsageError(
            f"labels of version {version!r}, which this teacher would make again, are revoked: {entry.revoked}",
            where="logit store",
            fix="restore them, use another store, or change what makes the labels: data, schedule, seed or facts",
        )
    return entry is not None


@contextmanager
def told_what_to_do(version: str, again: bool) -> Iterator[None]:
    """Where an earlier fit has committed the version, a conflict is most likely a script that was run a second time."""
    try:
        yield
    except LeakError as error:
        if not again:
            raise
        raise LeakError(
            f"{error.what}; an earlier fit has committed labels of this version",
            where=error.where,
            fix=f"to learn from those labels, read them (read_labels(..., {version!r}, ...)) without a capture; "
            "to train the teacher again and let them stand, give resume=True; to capture anew, use another store, or "
            "facts={...} that say what is different now, which makes another version. Equal labels would have been "
            "dropped: dropout or a GPU gives other ones in each run",
        ) from error
