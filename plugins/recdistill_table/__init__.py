"""Imports anyone's log from CSV (``.csv``, ``.tsv``, also ``.gz``) or Parquet: a file, a folder or a glob of files.

A YAML file says which column plays which part. Only ``tasks`` is required; the rest shows what there is, with the
default where there is one::

    tasks: {click: clicked}          # task -> label column of 0, 1 or nothing (not observed)
    user_id: user_id
    item_id: item_id
    event_time: event_time
    time_unit: ms                    # s, ms, us, or iso: ISO 8601 text, UTC where it names no zone
    example_id: ""                   # column of unique int64 ids; nothing: the row number
    request_id: ""                   # column; rows of one request share its value
    categorical:                     # known BEFORE the outcome; a bare name, or
      - country
      - {name: genre, column: item_genre, side: item, vocabulary: genre}
    numeric:
      - {name: price, column: "", log1p: false, missing: 0.0}
    history_rates:                   # derived from the user's earlier events
      - {name: click_rate, action: click, prior_rate: 0.5, prior_count: 5.0}
    actions: {click: clicked}        # action -> outcome column; every row becomes an event that later rows see
    event_fields: {genre: item_genre}  # what a history event tells besides its item and action
    outcomes: [watch_time]           # known only AFTER the impression: refused as features
    position: ""                     # column, 0 = top
    propensity: ""                   # column, in (0, 1]
    keep_rates: {click: {positive: 1.0, negative: 0.1}}
    truth: {}                        # task -> column of true probabilities, for evaluation only
    vocabulary_min_count: 1
    vocabulary_until: 2024-03-01     # ms UTC or ISO 8601: later values are out of vocabulary
    time_ordered: false              # true: a row that goes back in time is an error
    events: purchases.csv            # extra history events; relative to this file
    delimiter: ","                   # of CSV files; a tab for .tsv
    null_values: [""]                # what reads as null in CSV files

CSV values keep their text as ids, so ``007`` and ``7`` are two users. Nothing in the file is run as code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Importer


@dataclass(frozen=True)
class TableConfig:
    """Where the log and its description lie.

    Attributes:
        path: a file, a folder of files, or a glob; several files are read in the order of their names.
        schema: the YAML file that says which column plays which part.
    """

    path: str
    schema: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a file, a folder or a glob")
        if not self.schema:
            raise ValueError("schema must name a YAML file")


def _importer(config: TableConfig, context: rd.BuildContext) -> Importer:
    from recdistill_table.importer import TableImporter

    return TableImporter(config)


def _example(folder: Path) -> dict[str, Any]:
    from recdistill_table.example import write_example

    write_example(folder)
    return {"path": str(folder / "log.csv"), "schema": str(folder / "log.yaml")}


@rd.hookimpl
def recdistill_importers() -> list[rd.Component]:
    """The importer ``table``."""
    return [
        rd.Component(
            "table",
            TableConfig,
            _importer,
            "Anyone's CSV or Parquet log, described by a YAML file",
            example=_example,
            api_version=1,
        )
    ]
