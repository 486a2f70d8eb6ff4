"""The verbs list, log, compact, gc, pin, unpin and pins of ``recdistill labels``, and the group that they are in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_cases import points, write_plugin
from label_store_cases import T, filled, grown, segments
from labels_cases import NO_STORE, Shell, rich_store, shell

from recdistill_core import cli
from recdistill_core.registry import discover, installed
from recdistill_labels import VERBS
from recdistill_parquet.labels import ParquetLogitStore


@pytest.fixture
def labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with shell(capsys, monkeypatch) as run:
        yield run


def test_list_says_what_there_is(labels: Shell, tmp_path: Path) -> None:
    store = rich_store(tmp_path)
    done = labels("list", tmp_path, "--json")
    assert (done.code, done.err) == (0, "")
    answer = done.document
    assert (answer["store"], answer["snapshot"], answer["commits"]) == (str(tmp_path), store.snapshot_id(), 7)
    first, second, other = answer["versions"]
    size = sum(path.stat().st_size for path in segments(tmp_path) if path.name.startswith("v1"))
    assert first == {
        "version": "v1", "mode": "prequential", "tasks": ["click"], "view": "view", "count": 18, "dataset": "d" * 32,
        "trained_until": T, "duplicates": 0, "quarantined": 2, "revoked": "", "revoked_since": None, "revoked_at": None,
        "segments": 2, "bytes": size, "facts": {"dataset": "d" * 32, "trained_until": T},
    }  # fmt: skip
    assert (second["revoked"], second["revoked_since"]) == ("diverged", T + 1)
    assert second["revoked_at"] == store.log()[-1]["at"]
    assert (other["mode"], other["count"], other["duplicates"], other["dataset"]) == ("external", 2, 1, None)
    totals = answer["totals"]
    everything = sum(path.stat().st_size for path in segments(tmp_path))
    assert (totals["count"], totals["segments"], totals["bytes"]) == (38, 5, everything)
    assert totals["bytes_per_label"] == everything / 38
    drawn = labels("list", tmp_path).out
    for text in (
        "dddddddddddd",
        "2023-11-14T22:13:20Z",
        "v2: revoked since 2023-11-14T22:13:20.001Z: diverged",
        "38 labels in 5",
    ):
        assert text in drawn
    assert f"snapshot {store.snapshot_id()}, commit 7" in drawn


def test_list_of_an_older_snapshot(labels: Shell, tmp_path: Path) -> None:
    first = rich_store(tmp_path).log()[0]["id"]
    answer = labels("list", tmp_path, "--snapshot", first[:8], "--json").document
    assert (answer["snapshot"], answer["commits"], [row["count"] for row in answer["versions"]]) == (first, 1, [9])
    done = labels("list", tmp_path, "--snapshot", "12345678")
    assert (done.code, done.err.splitlines()[0]) == (3, "error: the label store has no snapshot '12345678'")


def test_a_store_without_commits_is_listed(labels: Shell, tmp_path: Path) -> None:
    ParquetLogitStore(tmp_path)._make()
    answer = labels("list", tmp_path, "--json").document
    assert (answer["versions"], answer["totals"]["bytes_per_label"]) == ([], 0.0)
    assert "0 labels in 0 segments, 0 B\n" in labels("list", tmp_path).out
    assert labels("log", tmp_path, "--json").document == []


def test_log_tells_what_was_done_newest_first(labels: Shell, tmp_path: Path) -> None:
    store = rich_store(tmp_path)
    store.restore("v2")
    store.compact("v1")
    rows = labels("log", tmp_path, "--json").document
    entries = store.log()
    assert [row["id"] for row in rows] == [entry["id"] for entry in reversed(entries)]
    assert [row["done"] for row in reversed(rows)] == [
        ["v1: 9 labels added in 1 segment, 1 set aside"],
        ["v1: 9 labels added in 1 segment, 1 set aside"],
        ["v2: 9 labels added in 1 segment, 1 set aside"],
        ["v2: 9 labels added in 1 segment, 1 set aside"],
        ["other: 2 labels added in 1 segment"],
        ["other: 0 labels added in 0 segments, 1 delivered again"],
        ["v2: revoked since 2023-11-14T22:13:20.001Z: diverged"],
        ["v2: restored"],
        ["v1: 2 segments compacted to 1"],
    ]
    newest = labels("log", tmp_path, "-n", "2", "--json").document
    assert newest == rows[:2]
    assert newest[0] == {
        "number": 9, "id": entries[-1]["id"], "parent": entries[-2]["id"], "at": entries[-1]["at"],
        "by": entries[-1]["by"], "done": ["v1: 2 segments compacted to 1"],
    }  # fmt: skip
    drawn = labels("log", tmp_path).out
    assert drawn.index("v1: 2 segments compacted") < drawn.index("v2: restored")
    assert entries[-1]["id"][:12] in drawn
    assert labels("log", tmp_path, "-n", "0").code == 2


def test_a_reason_with_square_brackets_is_shown_as_it_is(labels: Shell, tmp_path: Path) -> None:
    filled(tmp_path).revoke("v1", reason="see [/red] ticket [7]")
    for verb in ("list", "log"):
        assert "see [/red] ticket [7]" in labels(verb, tmp_path).out


def test_compact_then_gc(labels: Shell, tmp_path: Path) -> None:
    store = grown(tmp_path)
    done = labels("compact", tmp_path, "--segment-rows", 25, "--json")
    assert (done.code, done.err) == (0, "")
    (report,) = done.document
    assert (report["version"], report["rows"]) == ("v1", 60)
    assert (report["segments_before"], report["segments_after"]) == (6, 3)
    assert report["bytes_after"] < report["bytes_before"]
    assert labels("gc", tmp_path).out == "0 files removed, 0 B; 6 spare files kept for now\n"
    tried = labels("gc", tmp_path, "--grace", 0, "--dry-run", "--json").document
    assert (len(segments(tmp_path)), tried["dry_run"], len(tried["removed"])) == (9, True, 6)
    drawn = labels("gc", tmp_path, "--grace", "0", "--dry-run").out
    assert "6 files would be removed" in drawn
    assert "segments/v1-000000.parquet" in drawn
    answer = labels("gc", tmp_path, "--grace", "0", "--json").document
    assert {entry["why"] for entry in answer["removed"]} == {"superseded"}
    assert answer["bytes"] == report["bytes_before"]
    assert len(segments(tmp_path)) == 3
    assert store.versions()[0].count == 60


def test_compact_takes_named_versions_or_all(labels: Shell, tmp_path: Path) -> None:
    rich_store(tmp_path)
    (report,) = labels("compact", tmp_path, "--version", "v2", "--json").document
    assert report["version"] == "v2"
    drawn = labels("compact", tmp_path).out
    assert all(name in drawn for name in ("v1", "v2", "other"))
    done = labels("compact", tmp_path, "--version", "v3")
    assert (done.code, done.err.splitlines()[0]) == (
        3, "error: the label store has no version 'v3' (did you mean 'v2'?)"
    )  # fmt: skip


@pytest.mark.parametrize("grace", ["5", "h", "-1h", "1w", "1 h", "nan"])
def test_a_grace_that_is_no_duration(labels: Shell, tmp_path: Path, grace: str) -> None:
    filled(tmp_path)
    done = labels("gc", tmp_path, f"--grace={grace}")
    assert done.code == 2
    assert done.err == (
        f"error: {grace!r} is no duration\n  where: --grace\n"
        "  to do: write 0, or a number with its unit: 90s, 24h, 7d\n"
    )


def test_pins_keep_snapshots(labels: Shell, tmp_path: Path) -> None:
    store = grown(tmp_path)
    first = store.log()[0]["id"]
    made = labels("pin", tmp_path, "run-1", "--snapshot", first[:8], "--by", "ann", "--json").document
    assert (made["name"], made["snapshot"], made["by"]) == ("run-1", first, "ann")
    assert f"run-2 keeps snapshot {store.snapshot_id()}" in labels("pin", tmp_path, "run-2").out
    rows = labels("pins", tmp_path, "--json").document
    assert [(row["name"], row["snapshot"]) for row in rows] == [("run-1", first), ("run-2", store.snapshot_id())]
    assert "@" in rows[1]["by"]
    assert "run-1" in labels("pins", tmp_path).out
    store.compact("v1")
    kept = labels("gc", tmp_path, "--grace", "0", "--json").document
    assert kept["removed"] == []
    assert labels("unpin", tmp_path, "run-2", "--json").document == {"unpinned": "run-2"}
    assert labels("unpin", tmp_path, "run-1").out == "run-1 is gone\n"
    assert len(labels("gc", tmp_path, "--grace", "0", "--json").document["removed"]) == 6
    done = labels("unpin", tmp_path, "run-1")
    assert (done.code, done.err.splitlines()[0]) == (3, "error: the label store has no pin 'run-1'")


def test_a_user_without_a_name_can_pin(labels: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid 12345")

    filled(tmp_path)
    monkeypatch.setattr("getpass.getuser", nameless)
    assert labels("pin", tmp_path, "run", "--json").document["by"].startswith("unknown@")


WORDS = {
    "gaps": ["dataset"], "revoke": ["--version", "v", "--reason", "r"], "restore": ["--version", "v"], "pin": ["p"],
    "unpin": ["p"],
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_makes_a_store(labels: Shell, tmp_path: Path, verb: str) -> None:
    done = labels(verb, tmp_path, *WORDS.get(verb, []))
    assert (done.code, done.out, done.err) == (3, "", NO_STORE.format(tmp_path))
    assert list(tmp_path.iterdir()) == []
    error = labels(verb, tmp_path / "none", *WORDS.get(verb, []), "--json").document
    assert (error["kind"], error["exit_code"]) == ("DataError", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["list", "log", "inspect", "verify", "compact", "gc"])
def test_a_store_without_its_manifest_is_an_integrity_error(labels: Shell, tmp_path: Path, verb: str) -> None:
    filled(tmp_path)
    (tmp_path / "manifest.json").unlink()
    done = labels(verb, tmp_path)
    assert done.code == 5
    assert "the label store has commits but no manifest" in done.out + done.err


LIGHT = """
import sys
from recdistill_core.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "lightning", "numpy", "pyarrow", "duckdb", "matplotlib"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def imports(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIGHT, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb: str) -> None:
    assert imports("labels", verb, "--help") == "[]"


def test_list_and_log_import_nothing_heavy(tmp_path: Path) -> None:
    rich_store(tmp_path)
    assert imports("labels", "list", tmp_path) == "[]"
    assert imports("labels", "log", tmp_path, "--json") == "[]"


OTHER = """
def load():
    def count():
        print("counted")
    return count

@rd.hookimpl
def recdistill_commands():
    return [rd.Command("labels count", load, "Count them."), rd.Command("labels gc", load, "Another gc.")]
"""


@pytest.mark.parametrize("shipped", [True, False])
def test_other_plugins_add_verbs_to_the_group(
    labels: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_plugin(tmp_path, "more", OTHER)
    ours = [point for point in _entry_points() if point.name == "labels"] if shipped else []
    registry = discover([*ours, *points(tmp_path)])
    monkeypatch.setattr(cli, "installed", lambda: registry)
    assert labels("count").out == "counted\n"
    helped = labels("--help").out
    verbs = [line.split()[0] for line in helped.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert "count" in verbs
    assert ("verify" in verbs) == shipped
    refused = labels("gc", tmp_path)
    assert (refused.code, "'labels gc' is registered by 2 plugins" in refused.err) == (
        (4, True) if shipped else (2, False)
    )
    sys.modules.pop("fake_more")


def _entry_points() -> list[object]:
    from importlib.metadata import entry_points

    return list(entry_points(group="recdistill"))


def test_every_verb_has_its_summary_as_docstring_or_more() -> None:
    commands = {command.name: command for command, record in installed().commands if record.name == "labels"}
    assert set(commands) == {"labels", *(f"labels {verb}" for verb in VERBS)}
    for verb in VERBS:
        assert commands[f"labels {verb}"].load().__doc__
