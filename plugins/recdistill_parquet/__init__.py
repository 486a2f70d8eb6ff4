"""Datasets and logit stores on one machine's disk: Arrow files for random access, Parquet segments for durability.

Registers the source ``parquet`` (a dataset directory that :func:`recdistill_parquet.dataset_writer.write_dataset`
made) and the store ``parquet``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recdistill_core as rd


@dataclass(frozen=True)
class ParquetSourceConfig:
    """Where a dataset lies.

    Attributes:
        path: the dataset's directory, as ``recdistill data import`` made it.
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a dataset directory")


@dataclass(frozen=True)
class ParquetStoreConfig:
    """Where a logit store lies.

    Attributes:
        path: the store's directory; made when the first label is written.
        snapshot: id of the commit to read, 8 digits of it or more; empty: always the newest. With a snapshot the store
            is read-only.
        max_abs_logit: a logit beyond it is set aside, as NaN and infinite ones are; > 0.
        max_quarantined: share of a writer's rows that may be set aside, in [0, 1]; beyond it nothing is committed.
        max_drift: population stability index between a batch and the first rows of its version beyond which the batch
            is set aside; 0: not looked at. For teachers that are done learning.
    """

    path: str
    snapshot: str = ""
    max_abs_logit: float = 40.0
    max_quarantined: float = 0.001
    max_drift: float = 0.0

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a directory for the store")
        from recdistill_parquet.labels_limits import Limits

        Limits(self.max_abs_logit, self.max_quarantined, self.max_drift)


def _source(config: ParquetSourceConfig, context: rd.BuildContext) -> Any:
    from recdistill_parquet.dataset import ParquetSource

    return ParquetSource(Path(config.path))


def _store(config: ParquetStoreConfig, context: rd.BuildContext) -> Any:
    from recdistill_parquet.labels import ParquetLogitStore
    from recdistill_parquet.labels_limits import Limits

    limits = Limits(config.max_abs_logit, config.max_quarantined, config.max_drift)
    return ParquetLogitStore(Path(config.path), limits=limits, snapshot=config.snapshot)


def _source_example(folder: Path) -> dict[str, Any]:
    from recdistill_parquet.example import write_example

    write_example(folder / "dataset")
    return {"path": str(folder / "dataset")}


def _store_example(folder: Path) -> dict[str, Any]:
    return {"path": str(folder / "labels")}


@rd.hookimpl
def recdistill_sources() -> list[rd.Component]:
    """The dataset directory as a source."""
    return [
        rd.Component(
            "parquet",
            ParquetSourceConfig,
            _source,
            "A dataset directory: memory-mapped Arrow parts, histories stored once per user",
            example=_source_example,
            api_version=1,
        )
    ]


@rd.hookimpl
def recdistill_stores() -> list[rd.Component]:
    """The logit store in Parquet segments."""
    return [
        rd.Component(
            "parquet",
            ParquetStoreConfig,
            _store,
            "Raw teacher logits in immutable Parquet segments with atomic commits",
            example=_store_example,
            api_version=1,
        )
    ]
