"""The user and video tables, held in memory (27k and 7.5k rows) and joined to each block by a take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from recdistill_kuairand.layout import read_table

#: Features of the video table that are categorical; ``duration_bucket`` is derived.
VIDEO_FEATURES = ("author_id", "tag", "video_type", "upload_type", "music_type", "duration_bucket")
#: Upper edges (days, exclusive) of the buckets of a video's age at the impression.
AGE_EDGES = np.array([0, 1, 2, 3, 5, 7, 10, 14, 21, 30, 60])
#: Mean and spread of the log of a video's duration in seconds, over the 7,583 videos of KuaiRand-Pure.
LOG_DURATION_MEAN, LOG_DURATION_SPREAD = 4.2, 1.0
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
#: Local time of the service, Beijing.
ZONE_MS = 8 * HOUR_MS


class FeatureTable:
    """Rows of a table by their id; an unknown id gives nulls.

    Args:
        ids: ``[R]`` int64, distinct.
        columns: name -> Arrow array ``[R]``.
    """

    def __init__(self, ids: NDArray[np.int64], columns: Mapping[str, Any]) -> None:
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        self.columns = dict(columns)

    def rows(self, wanted: NDArray[np.int64]) -> Any:
        """Arrow int64 ``[N]``: row of each wanted id, null where the table has none."""
        if len(self._ids) == 0:
            return pa.nulls(len(wanted), pa.int64())
        place = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return pa.array(self._order[place], mask=self._ids[place] != wanted)

    def take(self, wanted: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Any]:
        """Arrow arrays ``[N]`` of the named columns for the wanted ids."""
        rows = self.rows(wanted)
        return {name: self.columns[name].take(rows) for name in names}


def user_table(path: Path, features: tuple[str, ...]) -> FeatureTable:
    """Users with the chosen features: strings as they are, codes as int64, an empty field as null."""
    types = {name: _user_type(name) for name in features}
    table = read_table(path, {"user_id": pa.int64(), **types})
    columns = {name: _column(table, name) for name in features}
    whole = {
        name: column.cast(pa.int64()) if types[name] == pa.float64() else column for name, column in columns.items()
    }
    return FeatureTable(_column(table, "user_id").to_numpy(), whole)


def _user_type(name: str) -> Any:
    # the release writes integer codes with gaps as floats: 1.0, 4.0, empty
    return pa.string() if name.endswith(("_range", "_degree")) else pa.float64()


def video_table(path: Path) -> FeatureTable:
    """Videos with ``VIDEO_FEATURES``, ``log_duration`` (float32, about standardised) and ``upload_day`` (days)."""
    text, number = pa.string(), pa.float64()
    types = {"video_id": pa.int64(), "author_id": pa.int64(), "video_type": text, "upload_dt": pa.date32()}
    types |= {"upload_type": text, "video_duration": number, "music_type": number, "tag": text}
    table = read_table(path, types)
    seconds = _column(table, "video_duration").to_numpy(zero_copy_only=False) / 1000.0
    known = np.isfinite(seconds) & (seconds > 0)
    log = np.log(np.where(known, seconds, 1.0))
    # two buckets an octave: 5 s is 4, 60 s is 11, 20 min is 20
    bucket = np.clip(np.floor(2 * log / np.log(2)), 0, 24).astype(np.int64)
    columns = {name: _column(table, name) for name in ("author_id", "video_type", "upload_type")}
    columns["tag"] = pa.compute.list_element(pa.compute.split_pattern(_column(table, "tag"), ","), 0)
    columns["music_type"] = _column(table, "music_type").cast(pa.int64())
    columns["duration_bucket"] = pa.array(bucket, mask=~known)
    scaled = ((log - LOG_DURATION_MEAN) / LOG_DURATION_SPREAD).astype(np.float32)
    columns["log_duration"] = pa.array(scaled, mask=~known)
    columns["upload_day"] = _column(table, "upload_dt").cast(pa.int32()).cast(pa.int64())
    return FeatureTable(_column(table, "video_id").to_numpy(), columns)


def _column(table: Any, name: str) -> Any:
    column = table[name]
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def age_bucket(time_ms: NDArray[np.int64], upload_day: Any) -> Any:
    """Arrow int64 ``[N]``: bucket of the video's age in whole local days; null where the upload day is unknown."""
    age = (time_ms + ZONE_MS) // DAY_MS - np.asarray(upload_day.fill_null(0))
    bucket = np.searchsorted(AGE_EDGES, age, side="right")
    return pa.array(bucket.astype(np.int64), mask=np.asarray(upload_day.is_null()))


def local_hour(time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[N]`` hour of day in Beijing, 0 to 23."""
    return (time_ms + ZONE_MS) // HOUR_MS % 24
