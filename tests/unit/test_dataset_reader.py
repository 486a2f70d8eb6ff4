"""Reading a dataset: batches, columns, and damage that must be noticed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_cases import START, impressions, log, of, words

import recdistill_core as rd
from recdistill_core.errors import DataError, IntegrityError
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.schema import KeepRates
from recdistill_parquet import ParquetSourceConfig, ParquetStoreConfig, recdistill_sources, recdistill_stores
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_parts import expand
from recdistill_parquet.dataset_writer import write_dataset

FULL = {
    "example_id": "id",
    "request_id": "request",
    "position": "rank",
    "propensity": "p",
    "keep_rates": {"click": KeepRates(1.0, 0.25)},
    "truth": {"click": "truth"},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All optional columns, in parts of four rows."""
    columns = impressions(
        id=[60, 50, 40, 30, 20, 10],
        request=["a", "b", "a", "c", "b", "d"],
        rank=[0, 1, 2, 3, 4, 5],
        p=[0.5, 0.25, 1.0, 0.125, 0.5, 0.5],
        truth=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    )
    path = tmp_path_factory.mktemp("reader") / "data"
    write_dataset(log(columns, **FULL), path, part_rows=4)  # type: ignore[arg-type]  # parts of the schema
    return path


def test_a_batch_in_any_order(dataset: Path) -> None:
    source = ParquetSource(dataset)
    batch = source.batch(np.array([5, 0, 2, 5]), HistoryWindow(3, 1)).validate()
    # Sorted by (time, id): ids 60, 50, 30, 40, 20, 10.
    assert batch.example_id.tolist() == [10, 60, 30, 10]
    assert batch.request_id.tolist() == [3, 0, 2, 3]
    assert batch.user_id.tolist() == [0, 0, 0, 0]
    assert batch.item_id.tolist() == [1, 1, 3, 1]
    assert batch.event_time.tolist() == [START + 50, START + 10, START + 30, START + 50]
    assert batch.categorical.tolist() == [[1, 1], [1, 1], [3, 2], [1, 1]]
    torch.testing.assert_close(batch.numeric[:, 0], torch.tensor([2.0, 1.5, -1.0, 2.0]))
    assert batch.labels["click"].tolist() == [1, 1, 1, 1]
    assert batch.position is not None
    assert batch.position.tolist() == [5, 0, 3, 5]
    assert batch.propensity is not None
    assert batch.propensity.tolist() == [0.5, 0.5, 0.125, 0.5]
    assert batch.keep_rates == {"click": (1.0, 0.25)}
    assert {batch.labels["click"].dtype, batch.numeric.dtype, batch.propensity.dtype} == {torch.float32}
    assert {batch.example_id.dtype, batch.categorical.dtype, batch.position.dtype} == {torch.int64}
    assert batch.history is not None
    assert batch.history.row_end.tolist() == [3, 0, 1, 3]
    assert batch.history.events["item"].tolist() == [1, 2, 3]


def test_events_of_one_millisecond_do_not_see_each_other(dataset: Path) -> None:
    batch = ParquetSource(dataset).batch(np.array([2, 3]), HistoryWindow(5, 5))
    assert batch.event_time.tolist() == [START + 30] * 2
    assert batch.history is not None
    events, seen = batch.history.last(5)
    assert seen.sum(1).tolist() == [1, 1]
    assert events["time"][:, 0].tolist() == [START + 10] * 2


def test_not_observed_is_not_label_zero(dataset: Path) -> None:
    source = ParquetSource(dataset)
    batch = source.batch(np.arange(6))
    assert batch.observed["click"].tolist() == [True, True, True, False, True, True]
    assert batch.labels["click"].tolist() == [1, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(source.column("label_click"), np.float32([1, 0, 1, np.nan, 0, 1]))
    assert source.column("observed_click").tolist() == [True, True, True, False, True, True]
    assert batch.history is None


def test_columns_and_positions(dataset: Path) -> None:
    source = ParquetSource(dataset)
    assert len(source) == source.num_rows == 6
    assert source.column("history_end").tolist() == [0, 0, 1, 1, 1, 3]
    assert source.column("item_id").tolist() == source.column("feature/item_id").tolist()
    assert source.column("genre").tolist() == [1, 1, 2, 0, 2, 1]
    np.testing.assert_allclose(source.column("activity"), np.log1p([0, 0, 1, 1, 1, 3]), rtol=1e-6)
    assert [source.row_at(START + ms) for ms in (0, 10, 11, 30, 31, 50, 51)] == [0, 0, 1, 2, 4, 5, 6]
    assert source.schema.capabilities() == {"history", "position", "propensity", "keep_rates", "request_groups"}


def test_truth_is_aside(dataset: Path, tmp_path: Path) -> None:
    truth = ParquetSource(dataset).truth("click")
    assert truth is not None
    np.testing.assert_array_equal(truth, [0.1, 0.2, 0.4, 0.3, 0.5, 0.6])
    write_dataset(log(), tmp_path / "plain")
    assert ParquetSource(tmp_path / "plain").truth("click") is None
    with pytest.raises(DataError, match="no task 'clic' \\(did you mean 'click'"):
        ParquetSource(dataset).truth("clic")


def test_requests_of_one_row_give_no_groups(tmp_path: Path) -> None:
    write_dataset(log(of("request", [1, 2, 3, 4, 5, 6]), request_id="request"), tmp_path / "out")
    source = ParquetSource(tmp_path / "out")
    assert source.schema.gives == ()
    assert source.column("request_id").tolist() == [0, 1, 2, 3, 4, 5]


def test_an_unknown_column_names_the_known_ones(dataset: Path) -> None:
    with pytest.raises(DataError) as error:
        ParquetSource(dataset).column("gnre")
    words(error, "no column 'gnre' (did you mean 'genre'?)", "use one of example_id", str(dataset))


def test_rows_outside_the_dataset(dataset: Path) -> None:
    source = ParquetSource(dataset)
    with pytest.raises(IndexError, match="rows reach from 0 to 6; the dataset has rows 0 to 5"):
        source.batch(np.array([0, 6]))
    with pytest.raises(IndexError, match="from -1"):
        source.batch(np.array([-1, 0]))


def test_an_empty_batch(dataset: Path) -> None:
    batch = ParquetSource(dataset).batch(np.array([], np.int64), HistoryWindow(3, 1)).validate()
    assert len(batch) == 0
    assert batch.history is not None
    assert batch.history.offsets.tolist() == [0]


def test_a_dataset_without_history(tmp_path: Path) -> None:
    write_dataset(log(actions={}, history_rates=()), tmp_path / "out")
    source = ParquetSource(tmp_path / "out")
    with pytest.raises(DataError) as error:
        source.batch(np.arange(2), HistoryWindow(3, 1))
    words(error, "the dataset has no history", "import the log again with `actions`")


def test_a_source_pickles_as_its_path(dataset: Path) -> None:
    copy = pickle.loads(pickle.dumps(ParquetSource(dataset)))
    assert copy.batch(np.arange(6)).example_id.tolist() == [60, 50, 30, 40, 20, 10]


def test_users_and_vocabularies(dataset: Path) -> None:
    source = ParquetSource(dataset)
    assert source.users().to_pydict() == {"user": ["ann", "bob"], "event_start": [0, 4], "event_count": [4, 2]}
    assert source.vocabulary("genre").to_pylist() == [None, "rock", "jazz"]
    with pytest.raises(ValueError, match="unknown vocabulary 'genres' \\(did you mean 'genre'"):
        source.vocabulary("genres")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def alter(path: Path) -> None:
    """Change one stored time by one bit; the file stays readable."""
    content, time = path.read_bytes(), (START + 10).to_bytes(8, "little")
    assert time in content
    path.write_bytes(content.replace(time, (START + 11).to_bytes(8, "little")))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("rock", "rick").replace('"snapshot_id": "', '"snapshot_id": "0'))


def version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


DAMAGE: list[tuple[str, Callable[[Path], object], type[Exception], tuple[str, ...]]] = [
    ("manifest.json", Path.unlink, DataError, ("is not a dataset: it has no manifest.json", "did not finish")),
    ("manifest.json", cut, IntegrityError, ("the manifest cannot be read",)),
    ("manifest.json", lambda path: path.write_text('{"format": "x"}'), IntegrityError, ("KeyError('version')",)),
    ("manifest.json", version, DataError, ("version 99; this release reads", "import the log again with this")),
    ("manifest.json", edit, IntegrityError, ("the manifest's snapshot id does not match its files",)),
    ("schema.yaml", flip, IntegrityError, ("a file of the dataset is damaged: its sha256 differs", "schema.yaml")),
    ("impressions/part-00001.arrow", Path.unlink, IntegrityError, ("is missing", "impressions/part-00001.arrow")),
    ("impressions/part-00001.arrow", cut, IntegrityError, ("truncated", "part-00001.arrow", "import the log again")),
    ("vocabularies/genre.parquet", grow, IntegrityError, ("longer than it was", "vocabularies/genre.parquet")),
    ("events/part-00000.arrow", alter, IntegrityError, ("damaged: its sha256 differs", "events/part-00000.arrow")),
    ("users.arrow", flip, IntegrityError, ("damaged: its sha256 differs", "users.arrow")),
]


@pytest.mark.parametrize(("name", "harm", "kind", "expected"), DAMAGE)
def test_damage_is_noticed_and_named(
    name: str,
    harm: Callable[[Path], object],
    kind: type[Exception],
    expected: tuple[str, ...],
    dataset: Path,
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    ParquetSource(copy).verify()
    harm(copy / name)
    with pytest.raises(kind) as error:
        ParquetSource(copy).verify()
    words(error, *expected, str(copy))


def test_a_part_that_is_no_arrow_file(dataset: Path, tmp_path: Path) -> None:
    """The lengths and hashes agree, and still the part cannot be opened."""
    from recdistill_parquet import dataset_format as fmt

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / "impressions" / "part-00000.arrow").write_bytes(b"junk" * 100)
    manifest = fmt.read_manifest(dataset)
    files = fmt.hash_files(copy, {})
    changed = {**vars(manifest), "files": files, "snapshot_id": fmt.snapshot_of(files)}
    fmt.write_manifest(copy, fmt.Manifest(**changed))
    with pytest.raises(IntegrityError) as error:
        ParquetSource(copy)
    words(error, "a part of the dataset cannot be opened", "impressions/part-00000.arrow", "import the log again")


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a dataset"):
        ParquetSource(tmp_path / "nowhere")


def test_the_components(dataset: Path) -> None:
    source, store = recdistill_sources()[0], recdistill_stores()[0]
    assert (source.name, store.name) == ("parquet", "parquet")
    assert source.build(ParquetSourceConfig(str(dataset)), rd.BuildContext()).num_rows == 6
    with pytest.raises(ValueError, match="path must name a dataset directory"):
        ParquetSourceConfig("")
    with pytest.raises(ValueError, match="path must name a directory for the store"):
        ParquetStoreConfig("")


def test_expand() -> None:
    starts, lengths = np.array([5, 0, 9]), np.array([2, 0, 3])
    assert expand(starts, lengths).tolist() == [5, 6, 9, 10, 11]
    assert expand(starts[:0], lengths[:0]).tolist() == []
