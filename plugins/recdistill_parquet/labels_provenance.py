"""Two different labels of one example: where each of them comes from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import LeakError
from recdistill_parquet.labels_segments import Columns, SegmentReader, logit_column
from recdistill_parquet.labels_state import Segment, VersionEntry


def conflict(
    store: Path,
    entry: VersionEntry,
    columns: Columns,
    wrong: NDArray[np.bool_],
    places: Sequence[Columns | Segment],
    reader: SegmentReader,
    segment: Segment | None = None,
) -> LeakError:
    """The error for rows ``wrong [N]`` of ``columns``, whose examples have other labels in ``places``.

    Args:
        segment: the segment that ``columns`` come from, where another writer has committed it; None: what is appended.
    """
    example = int(columns["example_id"][wrong][0])
    names = [logit_column(task) for task in entry.tasks]
    wanted = [*names, "step", "scored_at"]
    given = columns if segment is None else reader.read([segment], ["example_id", *wanted])
    second = _row(given, example, last=True)
    first = None
    for place in places:
        if isinstance(place, Segment) and not place.first_id <= example <= place.last_id:
            continue
        held = reader.read([place], ["example_id", *wanted]) if isinstance(place, Segment) else place
        first = _row(held, example, last=False)
        if first is not None:
            origin = f"segment {place.file}" if isinstance(place, Segment) else "not committed yet"
            break
    told = f"{_told(first, names)}, {origin}" if first is not None else "unknown"
    other = f"segment {segment.file}, committed by another writer" if segment else "given now"
    return LeakError(
        f"example {example} already has another label of version {entry.version!r} "
        f"({int(wrong.sum())} of {wrong.size} examples do)",
        where=f"{store}; the first: {told}; the second: {_told(second, names)}, {other}; both {entry.mode.value}",
        fix="score every example once, before the teacher trains on it; a teacher that makes a second pass needs "
        "a version of its own",
    )


def _row(columns: Columns, example: int, last: bool) -> dict[str, float] | None:
    found = np.flatnonzero(columns["example_id"] == example)
    if not found.size:
        return None
    place = found[-1 if last else 0]
    return {name: column[place].item() for name, column in columns.items() if name != "reason"}


def _told(row: dict[str, float] | None, names: Sequence[str]) -> str:
    if row is None:
        return "unknown"
    values = ", ".join(f"{name} {row[name]:.7g}" for name in names)
    when = datetime.fromtimestamp(row["scored_at"] / 1000, UTC).isoformat(timespec="milliseconds")
    return f"{values} at step {int(row['step'])}, {when}"
