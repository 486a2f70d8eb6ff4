"""``labels revoke`` and ``labels restore``, and the times that options take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from label_store_cases import T, filled, grown, open_writer, put, read
from labels_cases import Shell, shell

from recdistill_core.errors import UsageError
from recdistill_labels.arguments import iso, seconds, size, time_ms
from recdistill_parquet.labels import ParquetLogitStore


@pytest.fixture
def labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with shell(capsys, monkeypatch) as run:
        yield run


def test_a_version_is_taken_out_and_put_back(labels: Shell, tmp_path: Path) -> None:
    store = grown(tmp_path)
    before = store.snapshot_id()
    done = labels("revoke", tmp_path, "--version", "v1", "--reason", "trained on the wrong day", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.document == {
        "store": str(tmp_path), "version": "v1", "revoked": "trained on the wrong day", "revoked_since": None,
        "count": 60, "visible": 0, "snapshot": store.snapshot_id(),
    }  # fmt: skip
    assert read(ParquetLogitStore(tmp_path), range(60))[1] == [False] * 60
    assert read(store.at(before), range(60))[1] == [True] * 60
    done = labels("restore", tmp_path, "--version", "v1")
    assert done.out == (f"v1: restored; 60 of its 60 labels are visible\nsnapshot {store.snapshot_id()}, commit 8\n")
    assert read(ParquetLogitStore(tmp_path), range(60))[1] == [True] * 60


def test_the_beginning_of_a_name_will_do(labels: Shell, tmp_path: Path) -> None:
    with open_writer(ParquetLogitStore(tmp_path), "0123456789abcdef") as writer:
        put(writer, [1, 2])
        writer.commit()
    done = labels("revoke", tmp_path, "--version", "01234567", "--reason", "x")
    assert done.out.startswith("0123456789abcdef: revoked; 0 of its 2 labels are visible\n")
    refused = labels("restore", tmp_path, "--version", "0123456", "--json").document  # too few
    assert refused["kind"] == "DataError"
    assert labels("restore", tmp_path, "--version", "012345678").code == 0


@pytest.mark.parametrize("compacted", [False, True])
def test_only_what_was_scored_since_a_time(labels: Shell, tmp_path: Path, compacted: bool) -> None:
    store = grown(tmp_path)  # step k is scored at T + k ms
    if compacted:
        store.compact("v1")  # one segment with labels on both sides
    done = labels("revoke", tmp_path, "--version", "v1", "--reason", "x", "--since", "2023-11-14T22:13:20.004Z")
    assert done.out.startswith(
        "v1: revoked, those scored since 2023-11-14T22:13:20.004Z; 40 of its 60 labels are visible\n"
    )
    assert store.versions()[0].revoked_since == T + 4
    assert read(ParquetLogitStore(tmp_path), range(60))[1] == [True] * 40 + [False] * 20


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["revoke", "--version", "v9", "--reason", "x"], 3, "the label store has no version 'v9' (did you mean 'v1'?)"),
        (["restore", "--version", "v9"], 3, "the label store has no version 'v9' (did you mean 'v1'?)"),
        (["revoke", "--version", "v1", "--reason", " "], 2, "revoking version 'v1' needs a reason"),
        (["restore", "--version", "v1"], 2, "version 'v1' is not revoked"),
        (["revoke", "--version", "v1", "--reason", "x", "--since", "soon"], 2, "'soon' is no time"),
    ],
)
def test_refusals(labels: Shell, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    store = filled(tmp_path)
    done = labels(words[0], tmp_path, *words[1:])
    assert (done.code, done.out, done.err.splitlines()[0]) == (code, "", f"error: {message}")
    assert len(store.log()) == 1


def test_revoking_twice_is_refused(labels: Shell, tmp_path: Path) -> None:
    filled(tmp_path)
    assert labels("revoke", tmp_path, "--version", "v1", "--reason", "x").code == 0
    done = labels("revoke", tmp_path, "--version", "v1", "--reason", "y")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: version 'v1' is revoked already: x")


@pytest.mark.parametrize("missing", ["--version", "--reason"])
def test_a_version_and_a_reason_are_required(labels: Shell, tmp_path: Path, missing: str) -> None:
    words = {"--version": "v1", "--reason": "x"}
    del words[missing]
    done = labels("revoke", filled(tmp_path).path, *(word for pair in words.items() for word in pair))
    assert done.code == 2
    assert f"missing option '{missing}'" in done.err.lower()


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2022-05-04", 1_651_622_400_000),
        ("20220504", 1_651_622_400_000),
        ("2022-05-04T12:00:00", 1_651_665_600_000),
        ("2022-05-04T12:00:00+08:00", 1_651_636_800_000),
        ("2022-05-04T12:00:00.123Z", 1_651_665_600_123),
        ("1651622400000", 1_651_622_400_000),
        (" 1651622400000 ", 1_651_622_400_000),
        ("0", 0),
    ],
)
def test_times(text: str, ms: int) -> None:
    assert time_ms(text, "--since") == ms


@pytest.mark.parametrize("text", ["yesterday", "2022-13-01", "12:00", "-5", "1e12", "99999999"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no time\n  where: --since\n  to do: write an ISO date or time"):
        time_ms(text, "--since")


def test_seconds_are_not_taken_for_milliseconds() -> None:
    with pytest.raises(UsageError, match=r"1651622400 is 1970-01-20T02:47:02\.400Z as ms .* is it in seconds\?"):
        time_ms("1651622400", "--since")


def test_times_and_sizes_as_shown() -> None:
    assert iso(1_651_665_600_123) == "2022-05-04T12:00:00.123Z"
    assert iso(1_651_665_600_000) == "2022-05-04T12:00:00Z"
    assert iso(-1) == "1969-12-31T23:59:59.999Z"
    assert iso(2**62) == str(2**62)
    assert [size(count) for count in (0, 999, 1000, 2_345_678, 5 * 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.3 MB",
        "5000.0 TB",
    ]
    assert [seconds(text, "o") for text in ("0", "90s", "1.5m", "24h", "7d")] == [0, 90, 90, 86_400, 604_800]
