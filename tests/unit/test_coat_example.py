"""Coat through the example script and the importer ``table``, against a direct reading of its matrices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_table import TableConfig
from recdistill_table.importer import TableImporter

REPO = Path(__file__).parents[2]
COAT = REPO / ".." / "shared" / "data" / "coat"
TEST_START_MS = 1_580_515_200_000


@pytest.mark.realdata
@pytest.mark.skipif(not COAT.is_dir(), reason="the Coat ratings are not in ../shared/data/coat")
def test_coat_imports_whole(tmp_path: Path) -> None:
    script = REPO / "examples" / "coat_to_csv.py"
    subprocess.run([sys.executable, script, "--coat", COAT, "--out", tmp_path], check=True, capture_output=True)
    config = TableConfig(str(tmp_path / "impressions.csv"), str(tmp_path / "schema.yaml"))
    write_dataset(TableImporter(config).open(), tmp_path / "dataset")
    source = ParquetSource(tmp_path / "dataset")
    train, test = (np.loadtxt(COAT / f"{name}.ascii.gz") for name in ("train", "test"))
    split = source.row_at(TEST_START_MS)
    assert (split, source.num_rows - split) == (6960, 4640) == (int((train > 0).sum()), int((test > 0).sum()))
    batch = source.batch(np.arange(source.num_rows)).validate()
    users = np.array(source.users().column("user").to_pylist(), dtype=int)[batch.user_id.numpy()]
    names = source.vocabulary("item_id").to_pylist()
    items = np.array([int(names[item] or -1) for item in batch.item_id.tolist()])
    label = batch.labels["like"].numpy()
    chances = np.loadtxt(COAT / "propensities.ascii.gz")
    assert batch.propensity is not None
    # The vocabulary holds the items of the train rows; all 300 were rated there.
    assert source.schema.num_items == 301
    for rows, ratings in ((slice(0, split), train), (slice(split, None), test)):
        np.testing.assert_array_equal(label[rows], ratings[users[rows], items[rows]] >= 4)
        assert label[rows].mean() == pytest.approx((ratings[ratings > 0] >= 4).mean())
        assert len({*zip(users[rows], items[rows], strict=True)}) == len(label[rows])
    expected = chances[users[:split], items[:split]]
    np.testing.assert_allclose(batch.propensity[:split].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(batch.propensity[split:].numpy(), 16 / 300, rtol=1e-6)


def test_a_folder_without_coat_is_named(tmp_path: Path) -> None:
    script = REPO / "examples" / "coat_to_csv.py"
    command = [sys.executable, script, "--coat", tmp_path, "--out", tmp_path]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 1
    assert "has no user_features.ascii; give the folder of the official Coat release" in found.stderr
