"""Arguments that the verbs share: stores, versions, times and durations; and how times and sizes are shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recdistill_core.errors import UsageError

if TYPE_CHECKING:
    from recdistill_parquet.labels import ParquetLogitStore

StoreArgument = Annotated[Path, typer.Argument(help="Directory of a label store.", metavar="STORE")]
VersionOption = Annotated[str, typer.Option("--version", help="Teacher version, by 8 characters or more.")]
VersionsOption = Annotated[
    list[str] | None, typer.Option("--version", help="Teacher version, by 8 characters or more; repeatable.")
]
SnapshotOption = Annotated[
    str, typer.Option("--snapshot", help="Commit to read, by 8 digits of its id or more; the newest where absent.")
]

#: Whole numbers below this are times in seconds, most likely: as milliseconds they lie in or before 1973.
LEAST_MS = 100_000_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def open_store(path: Path, **options: Any) -> ParquetLogitStore:
    """The store at ``path``, with options of its class.

    Raises:
        DataError: if no label store lies there; no verb makes one.
    """
    from recdistill_parquet.labels import ParquetLogitStore
    from recdistill_parquet.labels_log import require_store

    require_store(path)
    return ParquetLogitStore(path, **options)


def time_ms(text: str, option: str) -> int:
    """A moment in ms since the epoch, UTC, from such a number or from an ISO date or time (UTC where it has no offset).

    Raises:
        UsageError: if it is neither, or looks like seconds; ``option`` is named as the place.
    """
    fix = "write an ISO date or time (2022-05-04, 2022-05-04T12:00:00+08:00), or ms since the epoch (13 digits)"
    if re.fullmatch(r"\d+", text.strip()) and len(text.strip()) != 8:  # 8 digits: ISO without hyphens
        number = int(text)
        if 0 < number < LEAST_MS:
            raise UsageError(f"{text} is {iso(number)} as ms since the epoch; is it in seconds?", where=option, fix=fix)
        return number
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(f"{text!r} is no time", where=option, fix=fix) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def seconds(text: str, option: str) -> float:
    """A duration such as ``90s``, ``15m``, ``24h``, ``7d`` or ``0``.

    Raises:
        UsageError: if it is none; ``option`` is named as the place.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if text.strip() == "0":
        return 0.0
    if found is None:
        raise UsageError(
            f"{text!r} is no duration", where=option, fix="write 0, or a number with its unit: 90s, 24h, 7d"
        )
    return float(found[1]) * _UNITS[found[2]]


def iso(ms: int) -> str:
    """``2022-05-04T12:00:00Z``, with milliseconds where there are any; a number that is no date stays a number."""
    try:
        moment = datetime.fromtimestamp(ms // 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}{f'.{ms % 1000:03d}' if ms % 1000 else ''}Z"


def size(count: int) -> str:
    """``12 B``, ``3.4 MB``: decimal, as disks are sold."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
