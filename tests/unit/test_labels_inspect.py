"""``labels inspect``: what a query sees, what it cannot do, and the formats of its result."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_store_cases import T, filled, open_writer, put, segments
from labels_cases import Shell, rich_store, shell

from recdistill_core.interfaces import CaptureMode
from recdistill_labels import tables
from recdistill_labels.results import plain
from recdistill_parquet.labels import ParquetLogitStore

LOGITS = np.linspace(-2, 2, 9).tolist()


@pytest.fixture
def labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with shell(capsys, monkeypatch) as run:
        yield run


def rows(labels: Shell, store: Path, sql: str, *words: object) -> list[dict[str, Any]]:
    done = labels("inspect", store, "--sql", sql, *words, "--json")
    assert (done.code, done.err) == (0, "")
    found: list[dict[str, Any]] = done.document
    return found


def test_labels_are_one_table(labels: Shell, tmp_path: Path) -> None:
    rich_store(tmp_path)
    found = rows(labels, tmp_path, "FROM labels ORDER BY version, example_id")
    assert found[0] == {
        "example_id": 0, "version": "other", "mode": "external", "step": 7, "scored_at": T + 7, "logit_click": None,
        "logit_like": -1.0, "visible": True, "segment": "other-000000.parquet",
    }  # fmt: skip
    of = {version: [row for row in found if row["version"] == version] for version in ("v1", "v2", "other")}
    assert [row["example_id"] for row in of["v1"]] == [*range(1, 10), *range(11, 20)]
    assert [row["logit_click"] for row in of["v1"]] == [*LOGITS, *LOGITS]
    assert {row["logit_like"] for row in of["v1"]} == {None}
    assert [row["visible"] for row in of["v1"]] == [True] * 18
    assert [row["visible"] for row in of["v2"]] == [True] * 9 + [False] * 9  # the second step is revoked
    assert [row["segment"] for row in of["v2"]] == ["v2-000000.parquet"] * 9 + ["v2-000001.parquet"] * 9
    assert len(of["other"]) == 2


def test_a_version_that_is_revoked_whole_is_invisible(labels: Shell, tmp_path: Path) -> None:
    store = rich_store(tmp_path)
    store.revoke("v1", reason="x")
    sql = "SELECT version, count(*) FILTER (WHERE visible) AS seen FROM labels GROUP BY version ORDER BY version"
    assert rows(labels, tmp_path, sql) == [
        {"version": "other", "seen": 2}, {"version": "v1", "seen": 0}, {"version": "v2", "seen": 9}
    ]  # fmt: skip


def test_quarantine_versions_and_commits_are_tables(labels: Shell, tmp_path: Path) -> None:
    store = rich_store(tmp_path)
    aside = rows(labels, tmp_path, "SELECT version, example_id, logit_click, reason FROM quarantine ORDER BY ALL")
    assert [(row["version"], row["example_id"]) for row in aside] == [("v1", 0), ("v1", 10), ("v2", 0), ("v2", 10)]
    assert {(row["logit_click"], row["reason"]) for row in aside} == {(None, "NaN")}  # JSON has no NaN
    (entry,) = rows(labels, tmp_path, "FROM versions WHERE list_contains(tasks, 'like')")
    assert (entry["version"], entry["duplicates"], entry["dataset"], entry["facts"]) == ("other", 1, None, "{}")
    (entry,) = rows(labels, tmp_path, "FROM versions WHERE revoked != ''")
    assert (entry["version"], entry["revoked_since"], entry["trained_until"]) == ("v2", T + 1, T)
    found = rows(labels, tmp_path, "SELECT number, id, done FROM commits ORDER BY number")
    assert [row["id"] for row in found] == [commit["id"] for commit in store.log()]
    assert found[-1]["done"] == ["v2: revoked since 2023-11-14T22:13:20.001Z: diverged"]


def test_facts_of_any_shape_are_text(labels: Shell, tmp_path: Path) -> None:
    facts = {"dataset": {"a": 1}, "trained_until": "yesterday", "rates": [1.5, math.nan, math.inf]}
    store = ParquetLogitStore(tmp_path)
    with open_writer(store, facts=facts) as writer:
        put(writer, [1])
        writer.commit()
    (entry,) = rows(labels, tmp_path, "FROM versions")
    assert (entry["dataset"], entry["trained_until"]) == ('{"a": 1}', None)
    assert json.loads(entry["facts"])["rates"] == [1.5, None, None]
    (listed,) = labels("list", tmp_path, "--json").document["versions"]
    assert (listed["facts"]["rates"], listed["trained_until"]) == ([1.5, None, None], "yesterday")
    assert labels("list", tmp_path).code == 0


def test_only_what_the_snapshot_lists_is_seen(labels: Shell, tmp_path: Path) -> None:
    store = rich_store(tmp_path)
    before = store.log()[1]["id"]
    (tmp_path / "segments/v1-000077.parquet").write_bytes(segments(tmp_path)[1].read_bytes())
    count = "SELECT count(*) AS n FROM labels"
    assert rows(labels, tmp_path, count) == [{"n": 38}]
    assert rows(labels, tmp_path, count, "--snapshot", before) == [{"n": 18}]
    assert rows(labels, tmp_path, "SELECT count(*) AS n FROM commits", "--snapshot", before) == [{"n": 2}]
    assert rows(labels, tmp_path, count, "--version", "v1", "--version", "other") == [{"n": 20}]
    store.compact("v1")
    assert rows(labels, tmp_path, "SELECT DISTINCT segment FROM labels", "--version", "v1") == [
        {"segment": "v1-000002.parquet"}
    ]


def test_the_summary_is_what_numpy_says(labels: Shell, tmp_path: Path) -> None:
    rich_store(tmp_path)
    done = labels("inspect", tmp_path, "--json")
    v1, v2, other = done.document
    logit = np.array([*LOGITS, *LOGITS])
    assert (v1["version"], v1["task"], v1["labels"], v1["visible"]) == ("v1", "click", 18, 18)
    assert v1["mean_probability"] == pytest.approx((1 / (1 + np.exp(-logit))).mean())
    for name, share in (("p01", 0.01), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p99", 0.99)):
        assert v1[f"logit_{name}"] == pytest.approx(np.quantile(logit, share), abs=1e-6)
    assert (v1["first_scored"], v1["last_scored"]) == ("2023-11-14T22:13:20", "2023-11-14T22:13:20.001000")
    assert (v2["labels"], v2["visible"]) == (18, 9)
    assert (other["version"], other["task"], other["labels"]) == ("other", "like", 2)
    drawn = [line.strip("│ ").split("│") for line in labels("inspect", tmp_path).out.splitlines() if "│" in line]
    cells = [(name.strip(), value.strip()) for name, value in drawn]
    assert [value for name, value in cells if name == "version"] == ["v1", "v2", "other"]
    assert cells[: len(v1)][4:6] == [("mean_probability", "0.5"), ("logit_p01", "-2")]
    assert ("last_scored", "2023-11-14T22:13:20.001000") in cells


def test_the_summary_of_two_tasks_and_of_none(labels: Shell, tmp_path: Path) -> None:
    import torch

    store = ParquetLogitStore(tmp_path / "two")
    with open_writer(store, tasks=("long view", 'odd "name"')) as writer:
        both = {"long view": torch.tensor([1.0]), 'odd "name"': torch.tensor([3.0])}
        writer.append(torch.tensor([5]), both, step=1, scored_at=2**62)  # beyond the dates that there are
        writer.commit()
    found = labels("inspect", tmp_path / "two", "--json").document
    assert [(row["task"], row["logit_p50"], row["last_scored"]) for row in found] == [
        ("long view", 1.0, None),
        ('odd "name"', 3.0, None),
    ]
    ParquetLogitStore(tmp_path / "none")._make()
    assert labels("inspect", tmp_path / "none", "--json").document == []
    assert rows(labels, tmp_path / "none", "SELECT count(*) AS n FROM labels, quarantine") == [{"n": 0}]


def test_tasks_that_differ_in_case_alone(labels: Shell, tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    for version, task in (("a", "click"), ("b", "Click")):
        with open_writer(store, version, tasks=(task,)) as writer:
            put(writer, [1], task=task)
            writer.commit()
    done = labels("inspect", tmp_path)
    assert (done.code, done.err) == (
        2,
        "error: SQL cannot tell the columns 'logit_click' and 'logit_Click' apart\n"
        "  to do: choose versions in which only one of them occurs, with --version\n",
    )
    assert rows(labels, tmp_path, "SELECT logit_Click AS x FROM labels", "--version", "b") == [{"x": 0.125}]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "the query failed: Parser Error: syntax error at or near"),
        ("SELECT logit_clik FROM labels", 'Referenced column "logit_clik" not found'),
        ("FROM lables", "Did you mean"),
        ("SELECT CAST(version AS INT) AS n FROM labels", "Could not convert string 'v1' to INT32"),
        ("FROM read_parquet('{store}/segments/v1-000000.parquet')", "Permission Error: Cannot access file"),
        ("FROM '{store}/segments/*.parquet'", "Permission Error"),
        ("FROM glob('{store}/*')", "Permission Error"),
        ("SELECT * FROM read_text('{store}/manifest.json')", "Permission Error"),
        ("COPY labels TO '{store}/x.csv'", "this is not one query that only reads"),
        ("DROP VIEW labels", "this is not one query that only reads"),
        ("SET enable_external_access = true", "this is not one query that only reads"),
        ("ATTACH '{store}/x.db'", "this is not one query that only reads"),
        ("INSTALL httpfs", "this is not one query that only reads"),
        ("SELECT 1; DROP VIEW labels", "this is not one query that only reads"),
        ("EXPLAIN ANALYZE COPY labels TO '{store}/x.csv'", "this is not one query that only reads"),
        (" ; ", "this is no query"),
        ("FROM statements", "Table with name statements does not exist"),  # a variable of the program
        ("SELECT l.version, v.version FROM labels l, versions v", "two columns of the result are called 'version'"),
    ],
)
def test_what_a_query_cannot_do(labels: Shell, tmp_path: Path, sql: str, message: str) -> None:
    rich_store(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    done = labels("inspect", tmp_path, "--sql", sql.format(store=tmp_path))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert labels("inspect", tmp_path, "--sql", sql.format(store=tmp_path), "--json").document["kind"] == "UsageError"
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_wrong_query_says_which_tables_there_are(labels: Shell, tmp_path: Path) -> None:
    filled(tmp_path)
    error = labels("inspect", tmp_path, "--sql", "FROM nothing").err
    assert (
        "  where: FROM nothing\n  to do: tables: labels, versions, commits, quarantine; DESCRIBE labels lists" in error
    )
    found = rows(labels, tmp_path, "DESCRIBE labels")
    assert [(row["column_name"], row["column_type"]) for row in found] == [
        ("example_id", "BIGINT"), ("version", "VARCHAR"), ("mode", "VARCHAR"), ("step", "BIGINT"),
        ("scored_at", "BIGINT"), ("logit_click", "FLOAT"), ("visible", "BOOLEAN"), ("segment", "VARCHAR"),
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["segments/v1-000001.parquet", "quarantine/v2-000000.parquet"])
def test_damage_is_named_and_not_queried(labels: Shell, tmp_path: Path, file: str) -> None:
    rich_store(tmp_path)
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(bytes(content))
    done = labels("inspect", tmp_path, "--sql", "SELECT count(*) FROM versions")
    assert (done.code, done.out) == (5, "")
    assert "does not match its sha256 in the log" in done.err
    assert file in done.err
    assert labels("inspect", tmp_path, "--version", "other").code == 0


def test_a_file_that_goes_while_it_is_queried_is_no_fault_of_the_query(
    labels: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich_store(tmp_path)
    gone, real = tmp_path / "segments/v1-000000.parquet", tables.Snapshot.connect

    def late(seen: tables.Snapshot, scratch: Path) -> Any:
        gone.unlink()
        return real(seen, scratch)

    monkeypatch.setattr(tables.Snapshot, "connect", late)
    done = labels("inspect", tmp_path)
    assert (done.code, done.out) == (5, "")
    assert "is missing" in done.err
    assert str(gone) in done.err


def test_csv(labels: Shell, tmp_path: Path) -> None:
    rich_store(tmp_path)
    done = labels("inspect", tmp_path, "--csv", "--sql", "SELECT example_id, logit_click, version FROM labels")
    table = list(csv.DictReader(io.StringIO(done.out)))
    assert len(table) == 38
    by = {(row["version"], row["example_id"]): row["logit_click"] for row in table}
    assert (by["v1", "9"], by["v1", "5"], by["other", "0"]) == ("2", "0", "")
    nested = labels("inspect", tmp_path, "--csv", "--sql", "SELECT tasks, {'a': 1.5} AS x, NULL AS y FROM versions")
    assert next(csv.DictReader(io.StringIO(nested.out))) == {"tasks": '["click"]', "x": '{"a": 1.5}', "y": ""}
    aside = labels("inspect", tmp_path, "--csv", "--sql", "SELECT logit_click FROM quarantine LIMIT 1")
    assert aside.out == '"logit_click"\nnan\n'


def test_files(labels: Shell, tmp_path: Path) -> None:
    store = tmp_path / "store"
    rich_store(store)
    sql = "SELECT example_id, logit_click, version FROM labels WHERE version = 'v1' ORDER BY example_id"
    done = labels("inspect", store, "--sql", sql, "--out", tmp_path / "v1.parquet")
    assert (done.code, done.out) == (0, f"18 rows in {tmp_path / 'v1.parquet'}\n")
    table = pq.read_table(tmp_path / "v1.parquet")
    assert table["logit_click"].to_pylist() == [*LOGITS, *LOGITS]
    assert str(table.schema.field("logit_click").type) == "float"
    answer = labels("inspect", store, "--out", tmp_path / "summary.csv", "--json").document
    assert answer == {"out": str(tmp_path / "summary.csv"), "rows": 3}
    with (tmp_path / "summary.csv").open() as stream:
        assert [row["version"] for row in csv.DictReader(stream)] == ["v1", "v2", "other"]
    done = labels(
        "inspect", store, "--sql", "SELECT CAST(version AS INT) AS n FROM labels", "--out", tmp_path / "n.csv"
    )
    assert (done.code, "Could not convert" in done.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "summary.csv", "v1.parquet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.xlsx"], "cannot tell the format of 'x.xlsx'\n  to do: end its name in .csv or .parquet"),
        (["--out", "none/x.csv"], "there is no such folder\n  where: none\n  to do: make it, or write to another"),
        (["--csv", "--json"], "--csv goes to stdout, and so does --json"),
        (["--csv", "--out", "x.csv"], "--out has a format of its own\n  to do: choose one"),
    ],
)
def test_formats_that_do_not_go(labels: Shell, tmp_path: Path, words: list[str], message: str) -> None:
    filled(tmp_path)
    done = labels("inspect", tmp_path, *words)
    assert done.code == 2
    assert message in (done.err or done.document["error"])


def test_a_long_result_is_cut_in_the_table_alone(labels: Shell, tmp_path: Path) -> None:
    filled(tmp_path, range(250))
    done = labels("inspect", tmp_path, "--sql", "SELECT example_id AS key FROM labels ORDER BY 1")
    assert done.err == "these are the first 100 rows; --json, --csv and --out FILE give all of them\n"
    assert [word for line in done.out.splitlines() for word in line.split() if word.isdecimal()] == [
        str(key) for key in range(100)
    ]
    assert len(rows(labels, tmp_path, "FROM labels")) == 250


def test_cells_are_shown_as_they_are(labels: Shell, tmp_path: Path) -> None:
    filled(tmp_path).revoke("v1", reason="[/red] x")
    done = labels("inspect", tmp_path, "--sql", 'SELECT revoked AS "[bold]", 1 / 3 AS third FROM versions')
    assert "[/red] x" in done.out
    assert "[bold]" in done.out
    assert "0.333333" in done.out


def test_many_segments_in_little_time_and_right(labels: Shell, tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=1)
    with open_writer(store, mode=CaptureMode.OUT_OF_FOLD) as writer:
        put(writer, range(300), [float(key) / 16 for key in range(300)])
        writer.commit()
    (found,) = rows(
        labels, tmp_path, "SELECT count(DISTINCT segment) AS files, sum(logit_click * 16)::INT AS total FROM labels"
    )
    assert found == {"files": 300, "total": 300 * 299 // 2}


def test_values_as_json_has_them() -> None:
    import datetime
    import decimal

    assert plain({1: [float("nan"), math.inf, 1.5, (True, None)]}) == {"1": [None, None, 1.5, [True, None]]}
    assert (plain(decimal.Decimal("3")), plain(decimal.Decimal("1.50"))) == (3, 1.5)
    assert plain(datetime.date(2022, 5, 4)) == "2022-05-04"
    assert plain(datetime.datetime(2022, 5, 4, 1, tzinfo=datetime.UTC)) == "2022-05-04T01:00:00+00:00"
    assert (plain(b"\x00\xff"), plain(datetime.timedelta(days=2))) == ("00ff", "2 days, 0:00:00")
