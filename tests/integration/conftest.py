"""A small simulated feed that all integration tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pipeline_cases import FLIPPED, Verb, run_of, simulated
from pretrained_cases import plain

from recdistill_core.cli import main
from recdistill_core.registry import installed
from recdistill_gpsd.job import of_run, pretrain
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


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> ParquetSource:
    """The feed with one label flipped, and with it the event that later rows of the user see."""
    raw = simulated()

    def flipped() -> Iterator[pa.RecordBatch]:
        table = pa.Table.from_batches(list(raw.impressions()))
        click = table["click"].to_numpy().copy()
        click[FLIPPED] = 1 - click[FLIPPED]
        place = table.column_names.index("click")
        return iter(table.set_column(place, "click", pa.array(click)).to_batches())

    path = tmp_path_factory.mktemp("twin") / "dataset"
    write_dataset(replace(raw, impressions=flipped), path)
    return ParquetSource(path)


@pytest.fixture(scope="session")
def model_folder(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained model of the run's own cutoff; read-only."""
    out = tmp_path_factory.mktemp("pretrained") / "one"
    pretrain(of_run(plain(feed_path), installed(), None), out)
    return out


@pytest.fixture(scope="session")
def model_run(feed_path: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that started from it; read-only."""
    out = tmp_path_factory.mktemp("run") / "with"
    run_of(out, plain(feed_path, model_folder)).all()
    return out


@pytest.fixture
def recdistill(capsys: pytest.CaptureFixture[str]) -> Iterator[Verb]:
    """The command line in this process, which saves seconds of imports: exit code, stdout, stderr."""

    def verb(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield verb
    finally:  # the shell's handler writes to a stream that goes with the test
        root.handlers[:] = handlers
        root.setLevel(level)
