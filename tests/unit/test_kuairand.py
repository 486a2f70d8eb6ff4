"""The KuaiRand importer on small hand-made directories in both layouts, and on the real slice where it is there."""

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow
from recdistill_kuairand import USER_FEATURES, KuaiRandConfig, build, recdistill_importers
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset

SLICE = Path(__file__).resolve().parents[2].parent / "shared/data/kuairand_pure_slice"
NOON = 1_650_859_200_000  # 2022-04-25 04:00 UTC, 12:00 in Beijing
IDS = ["user_id", "video_id", "date", "hourmin", "time_ms", "tab", "is_rand"]
LOG = [*IDS, "is_click", "is_like", "long_view", "is_follow", "play_time_ms", "duration_ms", "profile_stay_time"]
VIDEO = ["video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "music_type", "tag"]


def impression(user, video, time, long_view=0, click=0, like=0, tab=1, rand=0):
    filled = dict.fromkeys(LOG, 0) | {"user_id": user, "video_id": video, "time_ms": time, "tab": tab, "is_rand": rand}
    return filled | {"long_view": long_view, "is_click": click, "is_like": like, "play_time_ms": 9000}


def video(number, **other):
    plain = {"author_id": 100 + number, "video_type": "NORMAL", "upload_dt": "2022-04-10", "upload_type": "Web"}
    return {"video_id": number, **plain, "video_duration": 60000.0, "music_type": 9.0, "tag": "39", **other}


def write_csv(path, rows, columns):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_tables(folder, suffix=""):
    users = [dict.fromkeys(USER_FEATURES, 0) | {"user_id": user, "user_active_degree": "full"} for user in (2, 1)]
    users[1] |= {"onehot_feat4": "", "onehot_feat12": "1.0", "fans_user_num_range": "[1,10)"}
    write_csv(folder / f"user_features_pure.csv{suffix}", users, ["user_id", *USER_FEATURES])
    videos = [video(7, tag="20,43"), video(3), video(5, video_duration="", music_type="", tag="")]
    write_csv(folder / f"video_features_basic_pure.csv{suffix}", videos, VIDEO)


def write_slice(folder, stream, histories):
    folder.mkdir(exist_ok=True)
    write_tables(folder, ".gz")
    pq.write_table(pa.Table.from_pylist(stream[:-1]), folder / "val.parquet")
    pq.write_table(pa.Table.from_pylist(stream[-1:]), folder / "test.parquet")
    kinds = {"user_id": pa.int64(), "last_time_ms": pa.int64()}
    kinds |= dict.fromkeys(("watch_seq", "like_seq", "long_watch_seq"), pa.list_(pa.int64()))
    rows = [dict(zip(kinds, history, strict=True)) for history in histories]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), folder / "user_sequences.parquet")
    return folder


@pytest.fixture
def small_slice(tmp_path):
    stream = [
        impression(1, 7, NOON, long_view=1, click=1, like=1),
        impression(1, 7, NOON, long_view=1, click=1, like=1),  # an exact repeat
        impression(2, 3, NOON - 10, tab=4),
        impression(9, 5, NOON + 1),  # a user and a history without features
    ]
    histories = [
        (1, NOON, [3, 7, 3, 5, 7], [5], [3, 5, 7]),  # the last event is the stream's first row
        (2, NOON + 99, [5], [], []),  # ends after the user's first row
        (4, NOON, [], [], []),
    ]
    return write_slice(tmp_path / "slice", stream, histories)


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / "KuaiRand-Pure" / "data"
    folder.mkdir(parents=True)
    write_tables(folder)
    first, second = [impression(1, 7, NOON, 1, 1)] * 2, [impression(2, 3, NOON - 5, 0, 1), impression(1, 5, NOON + 9)]
    write_csv(folder / "log_standard_4_08_to_4_21_pure.csv", first, LOG)
    write_csv(folder / "log_standard_4_22_to_5_08_pure.csv", [*second, impression(1, 7, NOON, 0)], LOG)
    write_csv(folder / "log_random_4_22_to_5_08_pure.csv", [impression(2, 7, NOON + 3, 1, rand=1)], LOG)
    return folder


def open_log(path, **config):
    return build(KuaiRandConfig(str(path), **config), BuildContext()).open()


def table(log):
    return pa.Table.from_batches(list(log.impressions()))


def rows_of(log):
    return table(log).to_pylist()


def test_registers_one_importer_that_touches_no_file_when_built(tmp_path):
    (component,) = recdistill_importers()
    assert component.name == "kuairand"
    example = component.example_in(tmp_path)
    shutil.rmtree(tmp_path)
    assert callable(component.build(component.config(**example), BuildContext()).open)


def test_slice_stream_rows_have_labels_context_and_joined_features(small_slice):
    row = rows_of(open_log(small_slice))[-3]
    assert (row["user_id"], row["video_id"], row["time_ms"]) == (1, 7, NOON)
    assert (row["label_long_view"], row["label_click"], row["label_like"]) == (1, 1, 1)
    assert (row["did_long_view"], row["did_like"], row["tab"], row["hour"]) == (1, 1, 1, 12)
    assert (row["author_id"], row["tag"], row["music_type"], row["duration_bucket"]) == (107, "20", 9, 11)
    assert row["age_bucket"] == 8  # 15 days
    assert (row["onehot_feat4"], row["onehot_feat12"], row["fans_user_num_range"]) == (None, 1, "[1,10)")
    # what is unknown is null, not a category
    row = rows_of(open_log(small_slice))[-1]
    for name in ("tag", "music_type", "duration_bucket", "log_duration", "user_active_degree", "onehot_feat0"):
        assert row[name] is None, name


def test_exact_repeats_are_dropped_and_counted_within_the_window(small_slice, official):
    log = open_log(small_slice)
    assert log.facts["repeated_rows_dropped"] == 1
    assert log.total == len(rows_of(log)) == 3 + log.facts["history_events"]
    assert open_log(official, batch_rows=1, duplicate_window=10).facts["repeated_rows_dropped"] == 2
    assert open_log(official, batch_rows=1, duplicate_window=2).facts["repeated_rows_dropped"] == 1


def test_history_rows_have_derived_labels_and_no_context(small_slice):
    history = [row for row in rows_of(open_log(small_slice)) if row["tab"] is None]
    assert [(row["user_id"], row["video_id"]) for row in history] == [(1, 3), (1, 7), (1, 3), (1, 5), (2, 5)]
    assert [row["label_long_view"] for row in history] == [None, None, None, 1, 0]
    assert [row["label_like"] for row in history] == [None, None, None, 1, 0]
    assert {row["label_click"] for row in history} == {row["hour"] for row in history} == {None}


def test_a_repeated_item_tells_its_outcome_only_at_its_last_event(small_slice):
    history = [row for row in rows_of(open_log(small_slice)) if row["tab"] is None]
    # video 7 comes twice; its second event is the stream's row, so the first must not tell how that ended
    assert [row["did_long_view"] for row in history] == [0, 0, 1, 1, 0]


def test_an_event_that_the_stream_holds_too_is_dropped_from_the_history(small_slice):
    log = open_log(small_slice)
    names = ("history_events_shared_with_stream_dropped", "history_events", "history_events_without_label")
    assert [log.facts[name] for name in names] == [1, 5, 3]


def test_history_times_ascend_and_lie_before_the_stream(small_slice):
    history = [row for row in rows_of(open_log(small_slice)) if row["tab"] is None]
    assert [row["time_ms"] for row in history[:4]] == [NOON - 1 - back * 60_000 for back in (4, 3, 2, 1)]
    assert history[4]["time_ms"] == NOON - 11  # user 2's first row is at NOON - 10


def test_histories_as_events_only(small_slice):
    assert open_log(small_slice).events is None
    log = open_log(small_slice, history_as_impressions=False)
    events = pa.Table.from_batches(list(log.events())).to_pylist()
    assert len(rows_of(log)) == log.total == 3
    assert [event["did_long_view"] for event in events] == [0, 0, 1, 1, 0]
    assert set(events[0]) >= {"user_id", "video_id", "time_ms", *log.schema.event_fields.values()}


def test_no_outcome_is_a_feature_and_every_column_of_the_schema_is_there(small_slice, official):
    for log in (open_log(small_slice), open_log(official)):
        schema, batch = log.schema, next(iter(log.impressions()))
        features = {entry.column or entry.name for entry in (*schema.categorical, *schema.numeric)}
        assert not features & set(schema.outcomes)
        assert not features & set(schema.tasks.values())
        assert features | set(schema.tasks.values()) | set(schema.actions.values()) <= set(batch.schema.names)


def test_official_release_is_found_from_each_folder(official):
    for log in map(open_log, (official, *official.parents[:2])):
        assert [(row["user_id"], row["label_click"]) for row in rows_of(log)] == [(1, 1), (2, 1), (1, 0)]
        assert (log.facts["layout"], log.events) == ("official", None)


def test_random_exposure_rows_only_on_request(official):
    assert open_log(official).total == 3
    log = open_log(official, include_random=True)
    assert rows_of(log)[-1]["label_long_view"] == 1
    assert "is_rand" not in table(log).column_names
    write_csv(official / "log_standard_4_08_to_4_21_pure.csv", [impression(2, 7, NOON + 3, 1, rand=1)], LOG)
    (official / "log_random_4_22_to_5_08_pure.csv").unlink()
    assert open_log(official).facts["random_rows_dropped"] == 1
    with pytest.raises(DataError, match=r"the file log_random_4_22_to_5_08_pure.csv is missing"):
        open_log(official, include_random=True)


def test_user_features_are_selectable(official):
    features = open_log(official, user_features=("register_days_range",)).schema.categorical
    assert [entry.name for entry in features if entry.side == "user"] == ["user_id", "register_days_range"]


def test_dataset_shows_each_row_only_its_past(small_slice, tmp_path):
    write_dataset(open_log(small_slice), tmp_path / "dataset")
    source = ParquetSource(tmp_path / "dataset")
    (row,) = np.flatnonzero(source.column("event_time") == NOON)
    batch = source.batch(np.array([row]), HistoryWindow(9, 1))
    events, seen = batch.history.last(9)
    assert (int(seen.sum()), events["action"][0, :4].tolist()) == (4, [3, 1, 0, 0])  # bit 0 long_view, bit 1 like
    assert source.batch(np.arange(4)).observed["long_view"].tolist() == [False, False, False, True]


def test_streams_start_afresh_and_do_not_depend_on_the_batch_size(small_slice):
    log = open_log(small_slice)
    assert table(log).equals(table(log))
    assert table(log).equals(table(open_log(small_slice, batch_rows=1)))


def test_locate_names_file_and_row(small_slice):
    log = open_log(small_slice)
    assert log.locate(0) == f"{small_slice / 'user_sequences.parquet'}, row 0"
    assert log.locate(6) == f"{small_slice / 'val.parquet'}, row 2"  # row 1 was a repeat
    assert log.locate(7) == f"{small_slice / 'test.parquet'}, row 0"
    assert "fewer rows" in log.locate(8)


def test_missing_folder_and_foreign_folder(tmp_path):
    for path, what in ((tmp_path / "gone", "no folder .*gone"), (tmp_path, "no KuaiRand-Pure log in")):
        with pytest.raises(DataError, match=rf"{what}(.|\n)*official release(.|\n)*processed slice"):
            open_log(path)


@pytest.mark.parametrize("name", ["test.parquet", "user_sequences.parquet", "user_features_pure.csv.gz"])
def test_missing_file_of_the_slice_is_named(small_slice, name):
    (small_slice / name).unlink()
    with pytest.raises(DataError, match=rf"the file {name.removesuffix('.gz')} is missing(.|\n)*official release"):
        open_log(small_slice)


def test_missing_column_is_named_with_file_and_suggestion(official):
    name = "log_standard_4_22_to_5_08_pure.csv"
    (official / name).write_text((official / name).read_text().replace("long_view", "long_views", 1))
    with pytest.raises(DataError, match=rf"no column 'long_view' \(did you mean 'long_views'\?\)(.|\n)*{name}"):
        open_log(official)


@pytest.mark.parametrize("content", ["user_id,video_id\n1,x,3\n", ""])
def test_unreadable_csv_is_named(official, content):
    (official / "video_features_basic_pure.csv").write_text(content)
    with pytest.raises(DataError, match=r"the file cannot be read(.|\n)*video_features_basic_pure.csv"):
        open_log(official)


def test_truncated_parquet_is_named(small_slice):
    path = small_slice / "val.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"the file cannot be read(.|\n)*val.parquet"):
        open_log(small_slice)


def test_empty_id_is_named_with_row(official):
    rows = [impression(1, 7, NOON), impression("", 7, NOON + 1)]
    write_csv(official / "log_standard_4_22_to_5_08_pure.csv", rows, LOG)
    with pytest.raises(DataError, match=r"user_id is empty(.|\n)*4_22_to_5_08_pure.csv, row 1"):
        open_log(official)


BAD = [
    ({"path": ""}, "path must name the folder"),
    ({"user_features": ("onehot_feat99",)}, r"unknown user feature 'onehot_feat99' \(did you mean 'onehot_feat9'"),
    ({"user_features": ("is_video_author",) * 2}, "user_features names a column twice"),
    ({"batch_rows": 0}, "batch_rows must be at least 1, got 0"),
    ({"duplicate_window": 5}, r"duplicate_window must be at least batch_rows \(65536\), got 5"),
]


@pytest.mark.parametrize(("config", "message"), BAD)
def test_config_errors(config, message):
    with pytest.raises(ValueError, match=message):
        KuaiRandConfig(**{"path": "x", **config})


@pytest.mark.realdata
@pytest.mark.skipif(not SLICE.is_dir(), reason="the KuaiRand slice is not in ../shared/data")
def test_real_slice_counts_rates_and_no_leak():
    files = [pq.read_table(SLICE / name, columns=["long_view"]) for name in ("val.parquet", "test.parquet")]
    assert pc.mean(pa.concat_tables(files)["long_view"]).as_py() == pytest.approx(0.3108, abs=1e-4)
    log = open_log(SLICE)
    rows, facts = table(log), log.facts
    assert facts["stream_rows"] + facts["repeated_rows_dropped"] == 228_329
    assert facts["repeated_rows_dropped"] == 5_885
    assert facts["history_events"] + facts["history_events_shared_with_stream_dropped"] == 817_187
    assert rows.num_rows == log.total
    history, stream = rows.slice(0, facts["history_events"]), rows.slice(facts["history_events"])
    assert pc.mean(stream["label_long_view"]).as_py() == pytest.approx(0.3169, abs=1e-4)
    assert pc.mean(history["label_long_view"]).as_py() == pytest.approx(0.3724, abs=1e-4)
    counted = history.group_by(["user_id", "video_id"]).aggregate([("label_long_view", "count"), ([], "count_all")])
    assert pc.max(counted.filter(pc.greater(counted["count_all"], 1))["label_long_view_count"]).as_py() == 0
    ends = history.group_by("user_id").aggregate([("time_ms", "max")])
    starts = stream.group_by("user_id").aggregate([("time_ms", "min")])
    both = ends.join(starts, "user_id", join_type="inner")
    assert pc.all(pc.less(both["time_ms_max"], both["time_ms_min"])).as_py()
