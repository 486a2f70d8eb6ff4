"""A small simulated feed that all integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_cases import simulated

from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset


@pytest.fixture(scope="session")
def feed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported dataset; read-only."""
    path = tmp_path_factory.mktemp("feed") / "dataset"
    write_dataset(simulated(), path)
    return path


@pytest.fixture(scope="session")
def feed(feed_path: Path) -> ParquetSource:
    """The dataset, opened."""
    return ParquetSource(feed_path)
