"""``Simulator.open``: the feed as a raw log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.rawlog import HistoryRate, RawCategorical, RawLog, RawNumeric, RawSchema
from recdistill_core.schema import KeepRates
from recdistill_simulator import SimulatorConfig
from recdistill_simulator.feed import Feed, Shown
from recdistill_simulator.world import HOUR_MS

_PRIOR = {"click": 0.25, "long_view": 0.12, "like": 0.03}


class Simulator:
    """The importer."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config

    def open(self) -> RawLog:
        """See :class:`recdistill_core.interfaces.Importer`. Rows come in time order; raises nothing."""
        feed, config = Feed(self.config), self.config
        all_kept = config.keep_positive == config.keep_negative == 1.0

        def impressions() -> Iterator[Any]:
            for shown in feed.impressions():
                yield _impression_batch(feed, shown, feed.kept(shown))

        def events() -> Iterator[Any]:
            for shown in feed.histories():
                yield _event_batch(feed, shown)

        return RawLog(
            schema=_schema(config),
            impressions=impressions,
            events=events if config.history_length else None,
            origin=f"simulator seed {config.seed}",
            locate=lambda row: f"simulator seed {config.seed}, kept row {row}",
            facts=_facts(feed),
            total=config.impressions if all_kept else None,
        )


def _schema(config: SimulatorConfig) -> RawSchema:
    sampled = config.keep_positive < 1.0 or config.keep_negative < 1.0
    keep = {config.tasks[0]: KeepRates(config.keep_positive, config.keep_negative)} if sampled else {}
    rates = [HistoryRate(f"user_{task}_rate", task, prior_rate=_PRIOR[task], prior_count=5.0) for task in config.tasks]
    return RawSchema(
        tasks={task: task for task in config.tasks},
        request_id="request_id",
        categorical=(
            RawCategorical("user_id", side="user"),
            RawCategorical("segment", side="user"),
            RawCategorical("item_id", side="item"),
            RawCategorical("category", side="item"),
            RawCategorical("creator", side="item"),
            RawCategorical("length_bucket", side="item"),
            RawCategorical("surface"),
            RawCategorical("hour"),
        ),
        numeric=(RawNumeric("length", side="item"),),
        history_rates=(*rates, HistoryRate("user_log_events")),
        position="position",
        propensity="" if config.propensity == "none" else "propensity",
        event_fields={"category": "category"},
        actions={task: task for task in config.tasks},
        outcomes=config.tasks,
        keep_rates=keep,
        truth={task: f"truth_{task}" for task in config.tasks},
        time_ordered=True,
    )


def _facts(feed: Feed) -> dict[str, Any]:
    config = feed.config
    return {
        "config": asdict(config),
        "examination": feed.examined.tolist(),
        "impressions_before_sampling": config.impressions,
        "history_events": int(feed.history_lengths().sum()),
        "truth": {"observed": "P(label | position)", "relevance": "P(label | examined)"}[config.truth]
        + " before down-sampling",
        "sampled_by": config.tasks[0],
    }


def _who_and_what(feed: Feed, shown: Shown, keep: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    context = shown.context
    item = context.item[keep]
    columns: dict[str, NDArray[Any]] = {
        "user_id": context.user[keep],
        "item_id": item,
        "event_time": context.time[keep],
    }
    columns["category"] = feed.world.items.category[item]
    columns |= {task: shown.labels[task][keep].astype(np.int8) for task in feed.config.tasks}
    return columns


def _event_batch(feed: Feed, shown: Shown) -> Any:
    return pa.record_batch(_arrow(_who_and_what(feed, shown, np.arange(len(shown.position)))))


def _impression_batch(feed: Feed, shown: Shown, kept: NDArray[np.bool_]) -> Any:
    config, items, keep = feed.config, feed.world.items, np.flatnonzero(kept)
    columns = _who_and_what(feed, shown, keep)
    item, position = columns["item_id"], shown.position[keep]
    columns |= {"request_id": shown.request[keep], "position": position}
    columns |= {"segment": feed.world.users.segment[columns["user_id"]], "creator": items.creator[item]}
    columns |= {"length": items.length[item].astype(np.float32), "length_bucket": items.length_bucket[item]}
    columns |= {"surface": shown.context.surface[keep], "hour": columns["event_time"] // HOUR_MS % 24}
    examined = feed.examined[position]
    if config.propensity != "none":
        columns["propensity"] = examined if config.propensity == "examination" else shown.exposure[keep]
    for task in config.tasks:
        columns[f"truth_{task}"] = shown.relevance[task][keep] * (examined if config.truth == "observed" else 1.0)
    return pa.record_batch(_arrow(columns))


def _arrow(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: pa.array(column) for name, column in columns.items()}
