"""``KuaiRand.open``: one pass to count and to find where histories end, then a stream of record batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.rawlog import HistoryRate, RawCategorical, RawLog, RawNumeric, RawSchema
from recdistill_kuairand import KuaiRandConfig
from recdistill_kuairand.history import Boundary, HistoryRows, last_event_keys, read_histories
from recdistill_kuairand.layout import Layout, find_layout
from recdistill_kuairand.stream import Rows, place, read_log
from recdistill_kuairand.tables import VIDEO_FEATURES, FeatureTable, age_bucket, local_hour, user_table, video_table

#: Columns of the release and of the slice that are known only after the impression.
OUTCOMES = (
    *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter"),
    *("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"),
    *("watch_ratio", "finish", "like", "long_watch", "is_positive", "date", "hourmin", "is_rand"),
    *("did_long_view", "did_like"),
)
_LABELS = {"long_view": "long_view", "click": "is_click", "like": "is_like"}
_ACTIONS = ("long_view", "like")
_EVENT_FIELDS = ("author_id", "tag", "duration_bucket")
_VIDEO_COLUMNS = (*VIDEO_FEATURES, "log_duration", "upload_day")


@dataclass
class _Tables:
    users: FeatureTable
    videos: FeatureTable
    features: tuple[str, ...]

    def features_of(self, user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64]) -> dict[str, Any]:
        """Arrow columns ``[N]`` that are known before the impression, but for its context."""
        video = self.videos.take(item, _VIDEO_COLUMNS)
        age = age_bucket(time, video.pop("upload_day"))
        return {**self.users.take(user, self.features), **video, "age_bucket": age}


@dataclass
class _Counts:
    """What the first pass found."""

    stream_rows: int = 0
    repeated: int = 0
    random: int = 0
    history_events: int = 0
    history_without_label: int = 0
    boundary: Boundary = field(default_factory=Boundary)


class KuaiRand:
    """The importer. :meth:`open` reads the log once to count its rows; the streams read it again."""

    def __init__(self, config: KuaiRandConfig) -> None:
        self.config = config

    def open(self) -> RawLog:
        """See :class:`recdistill_core.interfaces.Importer`.

        Tasks ``long_view``, ``click`` and ``like``. Events carry the bits ``long_view`` and ``like``; clicks are not
        among them, because the slice's histories do not tell them.

        Raises:
            DataError: names the missing file or column, or the unreadable row.
        """
        config = self.config
        layout = find_layout(Path(config.path), config.include_random)
        tables = _Tables(
            user_table(layout.users, config.user_features), video_table(layout.videos), config.user_features
        )
        counts = self._count(layout)
        as_rows = config.history_as_impressions and layout.sequences is not None

        def impressions() -> Iterator[Any]:
            if as_rows:
                yield from (_history_batch(rows, tables) for rows in self._histories(layout, counts))
            yield from (_stream_batch(rows, tables) for rows in self._log(layout))

        def events() -> Iterator[Any]:
            yield from (_event_batch(rows, tables) for rows in self._histories(layout, counts))

        return RawLog(
            schema=_schema(config.user_features),
            impressions=impressions,
            events=events if layout.sequences is not None and not as_rows else None,
            origin=f"kuairand {layout.name} {config.path}",
            locate=lambda row: self._locate(layout, counts, as_rows, row),
            facts=_facts(layout, counts),
            total=counts.stream_rows + (counts.history_events if as_rows else 0),
        )

    def _log(self, layout: Layout) -> Iterator[Rows]:
        config = self.config
        return read_log(layout, config.batch_rows, config.duplicate_window, config.include_random)

    def _histories(self, layout: Layout, counts: _Counts) -> Iterator[HistoryRows]:
        if layout.sequences is not None:
            yield from read_histories(layout.sequences, counts.boundary)

    def _count(self, layout: Layout) -> _Counts:
        counts = _Counts()
        if layout.sequences is not None:
            counts.boundary.last_keys = last_event_keys(layout.sequences)
        for rows in self._log(layout):
            counts.stream_rows += len(rows.row)
            counts.repeated += rows.repeated
            counts.random += rows.random
            if layout.sequences is not None:
                counts.boundary.add(rows.user, rows.item, rows.time)
        for history in self._histories(layout, counts):
            counts.history_events += len(history.row)
            counts.history_without_label += int((~history.unique).sum())
        return counts

    def _locate(self, layout: Layout, counts: _Counts, as_rows: bool, row: int) -> str:
        """Reads the log again up to the row; only error messages need it."""
        left = row
        for history in self._histories(layout, counts) if as_rows else ():
            if left < len(history.row):
                return place(layout.sequences or Path(), int(history.row[left]))
            left -= len(history.row)
        for rows in self._log(layout):
            if left < len(rows.row):
                return place(rows.file, int(rows.row[left]))
            left -= len(rows.row)
        return f"row {row} of {self.config.path}, which has fewer rows"


def _schema(user_features: tuple[str, ...]) -> RawSchema:
    categorical = [RawCategorical("user_id", side="user")]
    categorical += [RawCategorical(name, side="user") for name in user_features]
    categorical += [RawCategorical("item_id", column="video_id", side="item")]
    categorical += [RawCategorical(name, side="item") for name in VIDEO_FEATURES]
    categorical += [RawCategorical(name) for name in ("age_bucket", "tab", "hour")]
    return RawSchema(
        tasks={task: f"label_{task}" for task in _LABELS},
        item_id="video_id",
        event_time="time_ms",
        categorical=tuple(categorical),
        numeric=(RawNumeric("log_duration", missing=0.0, side="item"),),
        history_rates=(
            HistoryRate("user_long_view_rate", "long_view", prior_rate=0.3, prior_count=5.0),
            HistoryRate("user_like_rate", "like", prior_rate=0.02, prior_count=20.0),
            HistoryRate("user_log_events"),
        ),
        event_fields={name: name for name in _EVENT_FIELDS},
        actions={name: f"did_{name}" for name in _ACTIONS},
        outcomes=OUTCOMES,
    )


def _facts(layout: Layout, counts: _Counts) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "layout": layout.name,
        "licence": "CC BY-SA 4.0",
        "citation": "Gao et al., KuaiRand, CIKM 2022",
        "stream_rows": counts.stream_rows,
        "repeated_rows_dropped": counts.repeated,
        "random_rows_dropped": counts.random,
    }
    if layout.sequences is not None:
        facts["history_events"] = counts.history_events
        facts["history_events_without_label"] = counts.history_without_label
        facts["history_events_shared_with_stream_dropped"] = len(counts.boundary.shared)
        facts["history_times"] = "synthetic, 60 s apart, before the user's first row of the stream"
    return facts


def _keys(rows: Rows | HistoryRows) -> dict[str, Any]:
    return {"user_id": pa.array(rows.user), "video_id": pa.array(rows.item), "time_ms": pa.array(rows.time)}


def _stream_batch(rows: Rows, tables: _Tables) -> Any:
    labels = {task: rows.columns[column].cast(pa.int8()) for task, column in _LABELS.items()}
    columns = _keys(rows)
    columns |= {f"label_{task}": label for task, label in labels.items()}
    columns |= {f"did_{name}": labels[name] for name in _ACTIONS}
    columns |= {"tab": rows.columns["tab"], "hour": pa.array(local_hour(rows.time))}
    return pa.record_batch({**columns, **tables.features_of(rows.user, rows.item, rows.time)})


def _history_actions(rows: HistoryRows) -> dict[str, Any]:
    did = {"long_view": rows.long_view, "like": rows.like}
    return {f"did_{name}": pa.array((did[name] & rows.newest).astype(np.int8)) for name in _ACTIONS}


def _history_batch(rows: HistoryRows, tables: _Tables) -> Any:
    count, hidden = len(rows.row), ~rows.unique
    columns = _keys(rows)
    columns["label_long_view"] = pa.array(rows.long_view.astype(np.int8), mask=hidden)
    columns["label_click"] = pa.nulls(count, pa.int8())
    columns["label_like"] = pa.array(rows.like.astype(np.int8), mask=hidden)
    columns |= _history_actions(rows)
    columns |= {"tab": pa.nulls(count, pa.int64()), "hour": pa.nulls(count, pa.int64())}
    return pa.record_batch({**columns, **tables.features_of(rows.user, rows.item, rows.time)})


def _event_batch(rows: HistoryRows, tables: _Tables) -> Any:
    columns = _keys(rows) | _history_actions(rows)
    return pa.record_batch({**columns, **tables.videos.take(rows.item, _EVENT_FIELDS)})
