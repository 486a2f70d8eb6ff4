"""``labels gaps``: stretches and days of a dataset without labels, and the ids of those examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from label_store_cases import DAY, T, open_writer, put
from labels_cases import Shell, shell, six_days

from recdistill_parquet.labels import ParquetLogitStore

NOON = T - T % DAY + DAY + DAY // 2


@pytest.fixture
def labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with shell(capsys, monkeypatch) as run:
        yield run


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A dataset of six days, and a store: version ``a`` has the first day and the last, ``b`` the second."""
    source = six_days(tmp_path / "dataset")
    ids = source.column("example_id")
    store = ParquetLogitStore(tmp_path / "store")
    for version, days in (("a", [0, 5]), ("b", [1])):
        with open_writer(store, version, facts={"dataset": source.snapshot_id}) as writer:
            put(writer, ids[days])
            writer.commit()
    return store.path, tmp_path / "dataset"


def test_all_versions_count_where_none_is_named(labels: Shell, places: tuple[Path, Path]) -> None:
    done = labels("gaps", *places, "--json")
    assert (done.code, done.err) == (0, "")
    answer = done.document
    assert (answer["versions"], answer["rows"], answer["missing"], answer["coverage"]) == (["a", "b"], 6, 3, 0.5)
    assert answer["gaps"] == [{"first": NOON + 2 * DAY, "last": NOON + 4 * DAY, "rows": 3}]
    assert [day["day"] for day in answer["days"]] == ["2023-11-17", "2023-11-18", "2023-11-19"]
    assert {(day["rows"], day["missing"]) for day in answer["days"]} == {(1, 1)}
    assert answer["snapshot"] == ParquetLogitStore(places[0]).snapshot_id()
    assert answer["out"] is None
    drawn = labels("gaps", *places).out
    assert "2023-11-17T12:00:00Z" in drawn
    assert drawn.endswith("3 of 6 rows have no label; 50.00% are covered\n")


def test_versions_that_are_named(labels: Shell, places: tuple[Path, Path]) -> None:
    answer = labels("gaps", *places, "--version", "b", "--version", "b", "--min-rows", "2", "--json").document
    assert (answer["versions"], answer["missing"]) == (["b"], 5)
    assert [gap["rows"] for gap in answer["gaps"]] == [4]  # the first day alone is too short
    done = labels("gaps", *places, "--version", "c")
    assert (done.code, done.err.splitlines()[:2]) == (
        3, ["error: the label store has no version 'c'", f"  where: {places[0]}; versions: a, b"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rows", "missing"),
    [
        (["--since", "2023-11-17"], 4, 3),
        (["--until", "2023-11-17"], 2, 0),
        (["--since", "2023-11-16", "--until", "2023-11-18"], 2, 1),
        (["--since", str(NOON + 5 * DAY)], 1, 0),
        (["--since", "2023-11-18", "--until", "2023-11-16"], 0, 0),
        (["--since", "2030-01-01"], 0, 0),
    ],
)
def test_a_part_of_the_time(
    labels: Shell, places: tuple[Path, Path], words: list[str], rows: int, missing: int
) -> None:
    answer = labels("gaps", *places, *words, "--json").document
    assert (answer["rows"], answer["missing"]) == (rows, missing)


def test_ids_without_a_label_go_to_a_file(labels: Shell, places: tuple[Path, Path], tmp_path: Path) -> None:
    ids = six_days(tmp_path / "same").column("example_id")
    out = tmp_path / "missing.parquet"
    done = labels("gaps", *places, "--until", "2023-11-19", "--out", out)
    assert done.out.endswith(f"their ids: {out}\n")
    table = pq.read_table(out)
    assert (table.column_names, str(table.schema.field("example_id").type)) == (["example_id"], "int64")
    assert table["example_id"].to_pylist() == ids[2:4].tolist()
    labels("gaps", *places, "--until", "2023-11-17", "--out", out)
    assert pq.read_table(out).num_rows == 0


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            "ids.csv",
            "error: ids are written as Parquet, and 'ids.csv' says otherwise\n  to do: end its name in .parquet\n",
        ),
        ("none/ids.parquet", "error: there is no such folder\n  where: none\n  to do: make it, or write to another\n"),
    ],
)
def test_files_that_cannot_be_written(labels: Shell, places: tuple[Path, Path], out: str, message: str) -> None:
    done = labels("gaps", *places, "--out", out)
    assert (done.code, done.err) == (2, message)


def test_a_store_without_labels_covers_nothing(labels: Shell, places: tuple[Path, Path], tmp_path: Path) -> None:
    ParquetLogitStore(tmp_path / "empty")._make()
    answer = labels("gaps", tmp_path / "empty", places[1], "--json").document
    assert (answer["versions"], answer["missing"], answer["coverage"]) == ([], 6, 0.0)


def test_revoked_labels_are_gaps_and_snapshots_show_them(labels: Shell, places: tuple[Path, Path]) -> None:
    store = ParquetLogitStore(places[0])
    before = store.snapshot_id()
    store.revoke("a", reason="x")
    assert labels("gaps", *places, "--json").document["missing"] == 5
    assert labels("gaps", *places, "--snapshot", before, "--json").document["missing"] == 3


def test_labels_of_another_dataset_are_remarked(labels: Shell, places: tuple[Path, Path]) -> None:
    store = ParquetLogitStore(places[0])
    with open_writer(store, "old", facts={"dataset": "e" * 32}) as writer:
        put(writer, [0])
        writer.commit()
    done = labels("gaps", *places, "--json")
    assert done.code == 0
    assert done.err == (
        f"note: the labels of version 'old' are of dataset {'e' * 32}, not of {done.document['dataset']}: "
        "they count here only where both number examples alike\n"
    )
    assert labels("gaps", *places, "--version", "a").err == ""
