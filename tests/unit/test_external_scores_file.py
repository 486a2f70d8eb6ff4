"""Scores in files: any order, any key, any type, and what is said of those that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_cases import START, words
from external_cases import ROWS, logit_of, source_in, teacher_of, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import DataError, UsageError
from recdistill_core.registry import installed
from recdistill_parquet.dataset import ParquetSource

IDS = list(range(100, 100 + ROWS))
SCORES = [logit_of(example) for example in IDS]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ParquetSource:
    return source_in(tmp_path_factory.mktemp("external") / "dataset")


def scores_of(teacher: Any, source: ParquetSource, task: str = "click") -> list[float]:
    found: list[float] = teacher.score(source.batch(np.arange(source.num_rows))).logits[task].tolist()
    return found


def refused(source: ParquetSource, *expected: str, kind: type[Exception] = DataError, **given_: Any) -> None:
    """Building the teacher or its first score raises an error with these texts."""
    with pytest.raises(kind) as error:
        scores_of(teacher_of(source, "scores_file", **{"scale": "logit", **given_}), source)
    words(error, *expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(ROWS)),
    ending=st.sampled_from(["csv", "parquet"]),
    repeats=st.lists(st.integers(0, ROWS - 1), max_size=5),
    parts=st.integers(1, 3),
)
def test_scores_round_trip_in_any_order(
    order: list[int], ending: str, repeats: list[int], parts: int, source: ParquetSource, tmp_path: Path
) -> None:
    for old in tmp_path.glob("part-*"):
        old.unlink()
    rows = np.array([*order, *repeats])
    for number, part in enumerate(np.array_split(rows, parts)):
        columns = {"example_id": [IDS[n] for n in part], "logit_click": [SCORES[n] for n in part]}
        write_table(tmp_path / f"part-{number}.{ending}", columns)
    teacher = teacher_of(source, "scores_file", path=str(tmp_path / "part-*"), scale="logit")
    assert scores_of(teacher, source) == SCORES
    assert teacher.describe()["repeated_rows"] == len(repeats)
    batch = source.batch(np.array([5, 5, 0]))
    assert teacher.score(batch).logits["click"].tolist() == [SCORES[5], SCORES[5], SCORES[0]]


def test_rows_without_a_score_are_nan_and_rows_of_others_are_left_out(source: ParquetSource, tmp_path: Path) -> None:
    columns = {"example_id": [100, 101, 7, None, 102], "logit_click": [1.0, None, 3.0, 4.0, 5.0]}
    for name in ("a.csv", "a.parquet"):
        path = write_table(tmp_path / name, columns)
        teacher = teacher_of(source, "scores_file", path=path, scale="logit")
        found = scores_of(teacher, source)
        assert [found[0], found[2]] == [1.0, 5.0]
        assert np.isnan(found[1])
        assert np.isnan(found[3:]).all()
        assert teacher.describe()["file_rows"] == 5


def keys_of(source: ParquetSource) -> Mapping[str, list[Any]]:
    """What a log of the dataset has in its own words."""
    number = np.arange(ROWS)
    return {
        "user": [("ann", "bob", "cyd")[n % 3] for n in number],
        "item": (number % 7 + 40).tolist(),
        "at": (START + number * 1000).tolist(),
        "kind": [("rock", "jazz")[n % 2] for n in number],
        "logit_click": SCORES,
    }


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("unit", "change"),
    [
        ("ms", lambda at: at),
        ("us", lambda at: [time * 1000 for time in at]),
        ("s", lambda at: [time // 1000 for time in at]),
        ("iso", lambda at: [str(np.datetime64(time, "ms")) for time in at]),
        ("iso", lambda at: [f"{np.datetime64(time + 7_200_000, 'ms')}+02:00" for time in at]),
        ("ms", lambda at: pa.array(at, pa.timestamp("ms"))),
    ],
)
def test_scores_are_found_by_the_logs_own_ids(
    ending: str, unit: str, change: Any, source: ParquetSource, tmp_path: Path
) -> None:
    columns = dict(keys_of(source))
    columns["at"] = change(columns["at"])
    timestamps = isinstance(columns["at"], pa.Array)
    path = write_table(tmp_path / f"scores.{ending}", columns)
    teacher = teacher_of(
        source,
        "scores_file",
        path=path,
        scale="logit",
        key={"user_id": "user", "item_id": "item", "event_time": "at"},
        time_unit="iso" if timestamps and ending == "csv" else unit,
    )
    assert scores_of(teacher, source) == SCORES


def test_a_score_may_belong_to_many_examples(source: ParquetSource, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"genre": ["rock", "jazz"], "p": [0.5, 0.25]})
    key, scores = {"genre": "genre"}, {"click": "p"}
    teacher = teacher_of(source, "scores_file", path=path, scale="probability", key=key, scores=scores)
    assert scores_of(teacher, source)[:4] == pytest.approx([0.0, -np.log(3), 0.0, -np.log(3)])


def test_every_task_has_its_column(tmp_path: Path) -> None:
    both = source_in(tmp_path / "dataset", tasks={"click": "click", "like": "like"})
    columns = {"example_id": IDS, "logit_click": SCORES, "mine": [-score for score in SCORES]}
    path = write_table(tmp_path / "a.parquet", columns)
    teacher = teacher_of(both, "scores_file", ("click", "like"), path=path, scale="logit", scores={"like": "mine"})
    assert scores_of(teacher, both) == SCORES
    assert scores_of(teacher, both, "like") == [-score for score in SCORES]


def test_repeated_rows_that_differ_are_refused(source: ParquetSource, tmp_path: Path) -> None:
    columns = {"example_id": [100, 101, 100, 102, 100], "logit_click": [1.0, 2.0, 1.5, float("nan"), 1.0]}
    path = write_table(tmp_path / "a.parquet", columns)
    refused(source, "give an example another score than a row before", "example 100: ", "keep one row", path=path)
    columns = {"example_id": [100, 100, 101, 101], "logit_click": [None, None, 1.0, None]}
    path = write_table(tmp_path / "b.parquet", columns)
    refused(source, "1 rows give an example another score", "example 101: ", "none", path=path)


def test_repeats_are_seen_where_record_batches_meet(source: ParquetSource, tmp_path: Path) -> None:
    from recdistill_external.config import ValueRules
    from recdistill_external.score_index import ScoreIndex, Writer
    from recdistill_external.values import Tally

    index = ScoreIndex(["click"])
    writer = Writer(index, Tally(ValueRules("logit")))
    parts = [([1, 2], [0.5, 1.0]), ([], []), ([2, 2, 3], [1.0, 1.0, 2.0]), ([3], [2.5]), ([4], [0.0])]
    writer.write(
        pa.record_batch({"id": pa.array(ids, pa.int64()), "s0": pa.array(values, pa.float64())})
        for ids, values in parts
    )
    assert (writer.repeated, writer.contradicting_rows) == (2, 1)
    index.open()
    assert index.example_id.tolist() == [1, 2, 3, 4]
    assert index.logits["click"].tolist() == [0.5, 1.0, 2.0, 0.0]
    folder = index.folder
    del writer, index
    assert not folder.exists()


@pytest.mark.parametrize(
    ("columns", "changes", "expected"),
    [
        ({"example_id": [100], "logit_click": [99.0]}, {}, ["1 of task 'click' have a logit beyond +-40"]),
        ({"example_id": [100, 101], "logit_click": ["0.5", "high"]}, {}, ["are NaN or infinite", "of example 101"]),
        (
            {"example_id": [100], "logit_clik": [0.5]},
            {},
            ["no column 'logit_click' (did you mean 'logit_clik'?)", "scores"],
        ),
        ({"id": [100], "logit_click": [0.5]}, {}, ["the scores have no column 'example_id'", "columns: id", "in key"]),
        ({"example_id": [7], "logit_click": [0.5]}, {}, []),
        ({"example_id": [None], "logit_click": [0.5]}, {}, ["none of the 1 rows of the scores belongs to an example"]),
        (
            {"user": ["zoe"], "logit_click": [0.5]},
            {"key": {"user_id": "user"}},
            [
                "none of the 1 rows of the scores belongs to an example",
                "compare the columns of key, {'user_id': 'user'}",
            ],
        ),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_cannot_be_used_is_refused(
    columns: dict[str, Any], changes: Any, expected: list[str], ending: str, source: ParquetSource, tmp_path: Path
) -> None:
    path = write_table(tmp_path / f"a.{ending}", columns)
    if expected:
        refused(source, *expected, path=path, **changes)
    else:
        assert np.isnan(scores_of(teacher_of(source, "scores_file", path=path, scale="logit"), source)).all()


def test_ids_in_floats_are_refused(source: ParquetSource, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"example_id": [100.0], "logit_click": [0.5]})
    refused(source, "column 'example_id' holds floats (DOUBLE), in which long integers are rounded", "Int64", path=path)


def test_ids_are_read_digit_by_digit(source: ParquetSource, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("example_id,logit_click\n 100 ,1\n101.4,2\n+102,3\n1e2,4\n9223372036854775808,5\n")
    found = scores_of(teacher_of(source, "scores_file", path=str(tmp_path / "a.csv"), scale="logit"), source)
    assert found[0] == 1.0
    assert np.isnan(found[1])
    assert found[2] == 3.0


def test_files_that_are_not_there_or_of_no_format_are_refused(source: ParquetSource, tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "*.csv")
    refused(source, "there is no file of scores at", missing, kind=UsageError, path=missing)
    (tmp_path / "a.csv").write_text("example_id,logit_click\n1,2\n")
    (tmp_path / "a.txt").write_text("")
    refused(source, "not of one known format: a.csv, a.txt", kind=UsageError, path=str(tmp_path / "a.*"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet")
    refused(source, "the scores cannot be read", "complete and of the format", path=str(tmp_path / "b.parquet"))
    whole = write_table(tmp_path / "c.parquet", {"example_id": IDS * 500, "logit_click": SCORES * 500})
    bytes_ = bytearray(Path(whole).read_bytes())
    bytes_[8:200] = bytes(192)
    Path(whole).write_bytes(bytes_)
    refused(source, "the scores cannot be read", path=whole)


def test_names_that_the_dataset_does_not_have_are_refused(source: ParquetSource, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"example_id": IDS, "u": IDS, "logit_click": SCORES})
    refused(
        source, "the dataset has no 'user' (did you mean", "setting key", kind=UsageError, path=path, key={"user": "u"}
    )
    what = "scores names the task 'clik', which there is not"
    refused(source, what, "setting scores", "name some of click", kind=UsageError, path=path, scores={"clik": "x"})
    settings_ = {"name": "scores_file", "path": path, "scale": "logit", "key": {"user_id": "u"}}
    with pytest.raises(UsageError) as error:
        make(installed(), "teacher", settings_, BuildContext(source.schema, ("click",)))
    words(
        error,
        "looks up user_id in the dataset, and was built without one",
        "BuildContext(source.schema, tasks, source)",
    )
    with pytest.raises(DataError, match="the source object keeps no raw ids"):
        make(installed(), "teacher", settings_, BuildContext(source.schema, ("click",), object()))  # type: ignore[arg-type]  # no source at all


def test_a_bad_memory_limit_is_named(source: ParquetSource, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"example_id": IDS, "logit_click": SCORES})
    refused(source, "memory_limit 'much' cannot be read", kind=UsageError, path=path, memory_limit="much")


def test_files_that_change_while_they_are_read_are_refused(source: ParquetSource, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"example_id": IDS, "logit_click": SCORES})
    teacher = teacher_of(source, "scores_file", path=path, scale="logit")
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="the files of scores were changed while they were read"):
        scores_of(teacher, source)


def test_the_fingerprint_follows_bytes_and_meaning(source: ParquetSource, tmp_path: Path) -> None:
    columns = {"example_id": IDS, "logit_click": SCORES, "other": SCORES}
    path = write_table(tmp_path / "a.csv", columns)
    copy = tmp_path / "elsewhere.csv"
    copy.write_bytes(Path(path).read_bytes())
    name = teacher_of(source, "scores_file", path=path, scale="logit").fingerprint()
    assert teacher_of(source, "scores_file", path=str(copy), scale="logit").fingerprint() == name
    copy.write_bytes(copy.read_bytes().replace(b"100", b"99", 1))
    others = [
        teacher_of(source, "scores_file", path=str(copy), scale="logit"),
        teacher_of(source, "scores_file", path=path, scale="logit", scores={"click": "other"}),
        teacher_of(source, "scores_file", path=path, scale="probability", scores={"click": "other"}),
    ]
    assert len({name, *(other.fingerprint() for other in others)}) == 4


def test_memory_does_not_grow_with_the_files(source: ParquetSource, tmp_path: Path) -> None:
    rows = 3_000_000
    order = np.random.default_rng(0).permutation(rows)
    pq.write_table(pa.table({"example_id": order, "logit_click": order % 64 / 16 - 2.0}), tmp_path / "a.parquet")
    teacher = teacher_of(source, "scores_file", path=str(tmp_path / "a.parquet"), scale="logit", memory_limit="150MB")
    batch = source.batch(np.arange(ROWS))
    assert teacher.score(batch).logits["click"].tolist() == [example % 64 / 16 - 2.0 for example in IDS]
    assert teacher.describe()["examples"] == rows
    assert isinstance(teacher._index.example_id, np.memmap)
