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
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a directory for the store")


def _source(config: ParquetSourceConfig, context: rd.BuildContext) -> Any:
    from recdistill_parquet.dataset import ParquetSource

    return ParquetSource(Path(config.path))


def _store(config: ParquetStoreConfig, context: rd.BuildContext) -> Any:
    from recdistill_parquet.labels import ParquetLogitStore

    return ParquetLogitStore(Path(config.path))


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
