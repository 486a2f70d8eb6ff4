"""What an importer says of somebody's log: which raw column plays which part. No torch, no pyarrow here.

Record batches are ``pyarrow.RecordBatch`` objects; the core only passes them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from recdistill_core.schema import KeepRates

TIME_UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}


@dataclass(frozen=True)
class RawCategorical:
    """A categorical feature: column ``column`` (``name`` where empty), strings or integers; null = out of vocabulary.

    Features that name the same ``vocabulary`` share ids; empty means a vocabulary of the feature's own name.
    """

    name: str
    column: str = ""
    side: str = "context"
    vocabulary: str = ""


@dataclass(frozen=True)
class RawNumeric:
    """A float feature. ``log1p`` maps x to log(1 + x) and refuses x < 0; null is refused unless ``missing`` is set.

    ``side`` says whose property it is: ``user``, ``item`` or ``context``.
    """

    name: str
    column: str = ""
    log1p: bool = False
    missing: float | None = None
    side: str = "context"


@dataclass(frozen=True)
class HistoryRate:
    """A derived float feature: the user's share of past events with an action bit, smoothed.

    ``(past events with action + prior_count * prior_rate) / (past events + prior_count)`` over events strictly before
    ``event_time``. With ``action`` empty: ``log(1 + past events)``.
    """

    name: str
    action: str = ""
    prior_rate: float = 0.5
    prior_count: float = 5.0


@dataclass(frozen=True)
class RawSchema:
    """Parts that the columns of a raw log play.

    Attributes:
        tasks: task -> label column, values 0, 1 or null (not observed).
        user_id, item_id, event_time: columns. example_id: column of unique int64 ids, or empty: the row number.
        request_id: column, or empty: one request per row.
        time_unit: unit of ``event_time`` as a number since the epoch, UTC: ``s``, ``ms`` or ``us``.
        categorical, numeric: features known BEFORE the impression's outcome.
        history_rates: derived features from earlier events.
        position, propensity: columns, or empty.
        event_fields: name -> column of further event fields (``item`` is always there), categorical.
        actions: action bit -> outcome column of the impression (0/1); every impression becomes an event at its
            ``event_time`` that only later rows see. Empty: no history.
        shown: column of 0 and 1, or empty: every row was shown. A row with 0 is a candidate of its request that was
            not: it has no label and makes no event, and a teacher's logit may be captured of it.
        outcomes: columns that are known only after the impression; refused as features.
        keep_rates: task -> known sampling rates.
        truth: task -> column of true probabilities, kept aside for evaluation.
        vocabulary_min_count: rarer values become out of vocabulary.
        vocabulary_until: values first seen at or after this time (ms UTC) become out of vocabulary; None: no limit.
        time_ordered: the log promises ascending ``event_time``; a row that goes back is an error.
    """

    tasks: Mapping[str, str]
    user_id: str = "user_id"
    item_id: str = "item_id"
    event_time: str = "event_time"
    example_id: str = ""
    request_id: str = ""
    time_unit: str = "ms"
    categorical: tuple[RawCategorical, ...] = ()
    numeric: tuple[RawNumeric, ...] = ()
    history_rates: tuple[HistoryRate, ...] = ()
    position: str = ""
    propensity: str = ""
    event_fields: Mapping[str, str] = field(default_factory=dict)
    actions: Mapping[str, str] = field(default_factory=dict)
    shown: str = ""
    outcomes: tuple[str, ...] = ()
    keep_rates: Mapping[str, KeepRates] = field(default_factory=dict)
    truth: Mapping[str, str] = field(default_factory=dict)
    vocabulary_min_count: int = 1
    vocabulary_until: int | None = None
    time_ordered: bool = False


@dataclass(frozen=True)
class RawLog:
    """A log that can be streamed.

    Attributes:
        schema: parts of the columns.
        impressions: starts a fresh pass over the impressions, as Arrow record batches of equal schema.
        events: starts a fresh pass over extra history events that were no impressions (columns: user, item, time,
            the event fields and the action columns, named as in ``schema``), or None.
        origin: names the log in messages and in the dataset's manifest.
        locate: ``locate(n) -> "FILE, row R"`` for row ``n`` (0-based) of the stream, for messages.
        facts: whatever the importer notes for the manifest (rows dropped and why, licence, ...).
        total: number of impressions where it is known before reading, for the progress bar.
    """

    schema: RawSchema
    impressions: Callable[[], Iterator[Any]]
    origin: str
    locate: Callable[[int], str]
    events: Callable[[], Iterator[Any]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    total: int | None = None
