"""The simulated feed: repeatable, true to its stated probabilities, and worth a long memory."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from recdistill_core.component import BuildContext
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.schema import KeepRates
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_simulator import SimulatorConfig, build, recdistill_importers
from recdistill_simulator.chance import Chance
from recdistill_simulator.feed import Feed, examination
from recdistill_simulator.world import DAY_MS, START_MS, solve_intercept

SMALL = SimulatorConfig(users=200, items=300, impressions=12_000, history_length=20, seed=3)
TASKS = ("click", "long_view", "like")


def open_log(config):
    return build(config, BuildContext()).open()


def as_table(batches):
    return pa.Table.from_batches(list(batches))


def columns(batches):
    table = as_table(batches)
    return {name: table[name].to_numpy() for name in table.column_names}


def z_score(labels, probabilities):
    """How many standard deviations the number of ones is from its expectation."""
    spread = np.sqrt((probabilities * (1 - probabilities)).sum())
    return float((labels.sum() - probabilities.sum()) / spread)


def auc(score, label):
    order = np.argsort(score, kind="stable")
    _, place, count = np.unique(score[order], return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    ones = label[order] == 1
    return (rank[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / (ones.sum() * (~ones).sum())


def test_registers_one_importer_with_an_example():
    (component,) = recdistill_importers()
    log = component.build(component.config(**component.example), BuildContext()).open()
    assert component.name == "simulator"
    assert sum(batch.num_rows for batch in log.impressions()) == log.total == 600


def test_same_seed_same_bytes_and_another_seed_another_log():
    first, again, other = open_log(SMALL), open_log(SMALL), open_log(replace(SMALL, seed=4))
    assert as_table(first.impressions()).equals(as_table(again.impressions()))
    assert as_table(first.impressions()).equals(as_table(first.impressions()))
    assert as_table(first.events()).equals(as_table(again.events()))
    assert not as_table(first.impressions()).equals(as_table(other.impressions()))


def test_batch_size_does_not_change_the_log():
    whole, cut = open_log(SMALL), open_log(replace(SMALL, batch_rows=1000))
    assert max(batch.num_rows for batch in cut.impressions()) <= 1000
    assert as_table(whole.impressions()).equals(as_table(cut.impressions()))
    assert as_table(whole.events()).equals(as_table(cut.events()))


def test_golden_first_request():
    """Pins the random numbers: a log of an earlier release can be drawn again."""
    log = columns(open_log(SMALL).impressions())
    assert log["user_id"][:6].tolist() == [192] * 6
    assert log["item_id"][:6].tolist() == [121, 96, 235, 140, 114, 2]


def test_schema_names_columns_that_are_there_and_no_outcome_is_a_feature():
    log = open_log(replace(SMALL, propensity="exposure", tasks=TASKS))
    names, event_names = (set(next(iter(stream())).schema.names) for stream in (log.impressions, log.events))
    raw = log.schema
    features = {entry.column or entry.name for entry in (*raw.categorical, *raw.numeric)}
    assert features | {raw.position, raw.propensity, raw.request_id, *raw.tasks.values(), *raw.truth.values()} <= names
    assert {"user_id", "item_id", "event_time", *raw.event_fields.values(), *raw.actions.values()} <= event_names
    assert not features & {*raw.outcomes, *raw.truth.values(), *raw.tasks.values()}


def test_dataset_holds_truth_groups_and_histories(tmp_path):
    log = open_log(replace(SMALL, propensity="exposure", keep_negative=0.5))
    write_dataset(log, tmp_path / "dataset")
    source, raw = ParquetSource(tmp_path / "dataset"), columns(log.impressions())
    assert source.schema.capabilities() >= {"history", "position", "propensity", "keep_rates", "request_groups"}
    assert source.truth("click") == pytest.approx(raw["truth_click"])
    assert source.column("label_click").tolist() == raw["click"].tolist()
    batch = source.batch(np.arange(2000), HistoryWindow(10, 1))
    events, seen = batch.history.last(1)
    assert seen.float().mean() > 0.9
    assert (events["time"] < batch.event_time[:, None])[seen].all()  # rows of one request do not see each other


def test_rows_come_in_time_order_and_requests_share_user_and_time():
    log = columns(open_log(SMALL).impressions())
    assert (np.diff(log["event_time"]) >= 0).all()
    assert log["event_time"][0] >= START_MS
    assert log["event_time"][-1] < START_MS + SMALL.days * DAY_MS
    assert (np.diff(log["request_id"]) >= 0).all()
    same = np.diff(log["request_id"]) == 0
    assert (np.diff(log["user_id"])[same] == 0).all()
    assert (np.diff(log["position"])[same] == 1).all()
    assert (log["position"][1:][~same] == 0).all()


def test_the_last_request_is_cut_to_the_number_of_impressions():
    log = columns(open_log(replace(SMALL, impressions=100)).impressions())
    assert np.bincount(log["request_id"])[-2:].tolist() == [6, 4]


def test_histories_lie_before_the_impressions_and_respect_the_cap():
    config = replace(SMALL, max_history=40)
    events = columns(open_log(config).events())
    assert events["event_time"].max() < START_MS
    assert events["event_time"].min() >= START_MS - 1 - config.history_days * DAY_MS
    counts = np.bincount(events["user_id"], minlength=config.users)
    assert counts.max() == 40
    assert len(events["user_id"]) == open_log(config).facts["history_events"]
    same = np.diff(events["user_id"]) == 0
    assert (np.diff(events["event_time"])[same] >= 0).all()
    assert open_log(replace(SMALL, history_length=0)).events is None


def test_twenty_thousand_event_histories_stream_in_bounded_batches():
    config = SimulatorConfig(users=20, items=50, impressions=60, history_length=60_000, max_history=20_000)
    sizes = [batch.num_rows for batch in open_log(config).events()]
    assert max(sizes) <= config.batch_rows
    assert sum(sizes) > 200_000


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_labels_match_truth_per_task_and_per_position(eta):
    log = columns(open_log(replace(SMALL, tasks=TASKS, position_bias=eta, impressions=40_000)).impressions())
    for task in TASKS:
        assert abs(z_score(log[task], log[f"truth_{task}"])) < 4
        for position in range(SMALL.slate):
            at = log["position"] == position
            assert abs(z_score(log[task][at], log[f"truth_{task}"][at])) < 4


def test_truth_is_calibrated_in_every_tenth():
    log = columns(open_log(replace(SMALL, impressions=40_000)).impressions())
    tenths = np.array_split(np.argsort(log["truth_click"]), 10)
    assert all(abs(z_score(log["click"][part], log["truth_click"][part])) < 4 for part in tenths)


def test_base_rates_and_bayes_auc_of_the_default_feed():
    log = columns(open_log(SimulatorConfig()).impressions())
    assert len(log["click"]) == 60_000
    assert 0.2 < log["click"].mean() < 0.3
    assert auc(log["truth_click"], log["click"]) > 0.8
    assert auc(log["truth_long_view"], log["long_view"]) > 0.8


def test_long_view_and_like_need_a_click():
    log = columns(open_log(replace(SMALL, tasks=TASKS)).impressions())
    assert log["click"][(log["long_view"] == 1) | (log["like"] == 1)].all()
    assert 0.05 < log["like"].sum() / log["click"].sum() < 0.2


def test_examination_by_position_is_known_exactly():
    assert examination(4, 1.0).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert examination(3, 0.0).tolist() == [1, 1, 1]
    biased = replace(SMALL, position_bias=1.0, impressions=60_000)
    shown = columns(open_log(replace(biased, propensity="examination", truth="relevance")).impressions())
    expected = shown["truth_click"] * shown["propensity"]
    for position in range(biased.slate):
        at = shown["position"] == position
        assert shown["propensity"][at] == pytest.approx(1 / (position + 1))
        assert abs(z_score(shown["click"][at], expected[at])) < 4
    observed = columns(open_log(biased).impressions())
    assert observed["truth_click"] == pytest.approx(expected)
    assert "propensity" not in observed


def test_position_bias_changes_who_looks_and_not_what_is_shown():
    plain, biased = (columns(open_log(replace(SMALL, position_bias=eta)).impressions()) for eta in (0.0, 1.0))
    assert (plain["item_id"] == biased["item_id"]).all()
    assert (biased["click"] <= plain["click"]).all()


def test_kept_rows_are_a_subset_at_the_known_rates():
    config = replace(SMALL, impressions=60_000, keep_positive=0.9, keep_negative=0.2)
    full, kept = columns(open_log(replace(SMALL, impressions=60_000)).impressions()), open_log(config)
    assert kept.schema.keep_rates == {"click": KeepRates(0.9, 0.2)}
    assert (open_log(SMALL).schema.keep_rates, kept.total, open_log(SMALL).total) == ({}, None, 12_000)
    left = columns(kept.impressions())
    key = full["request_id"] * SMALL.slate + full["position"]
    survived = np.isin(key, left["request_id"] * SMALL.slate + left["position"])
    assert survived.sum() == len(left["click"])
    assert (full["truth_click"][survived] == left["truth_click"]).all()
    for label, rate in ((1, 0.9), (0, 0.2)):
        of_label = survived[full["click"] == label]
        assert abs(z_score(of_label, np.full(len(of_label), rate))) < 4


def test_down_sampling_goes_by_the_first_task():
    config = replace(SMALL, tasks=("long_view", "click"), keep_negative=0.1)
    assert list(open_log(config).schema.keep_rates) == ["long_view"]
    assert columns(open_log(config).impressions())["long_view"].mean() > 0.4


def test_exposure_propensity_is_the_frequency_of_each_item():
    config = replace(SMALL, users=1, items=24, impressions=60_000, days=1, drift=0.0, propensity="exposure")
    log = columns(open_log(config).impressions())
    half = log["event_time"] < START_MS + DAY_MS // 2  # the feed dwells on one category for half a day
    item, propensity = log["item_id"][half], log["propensity"][half]
    for number in range(config.items):
        chance = propensity[item == number]
        assert len(set(chance.tolist())) == 1
        assert abs(z_score(item == number, np.full(len(item), chance[0]))) < 4


def per_category_score(log, events, last):
    """Each row's smoothed share of clicks among the user's newest ``last`` past events of the item's category."""
    past, score = {}, np.empty(len(log["click"]))
    for user, category, click in zip(events["user_id"], events["category"], events["click"], strict=True):
        past.setdefault(int(user), []).append((int(category), int(click)))
    edges = np.flatnonzero(np.r_[True, np.diff(log["request_id"]) > 0, True])
    for start, stop in pairwise(edges):
        seen = past.setdefault(int(log["user_id"][start]), [])
        window = np.array(seen[-last:], dtype=np.int64).reshape(-1, 2)
        rate = (window[:, 1].sum() + 5 * 0.25) / (len(window) + 5)
        shown, clicks = (np.bincount(window[:, 0], weight, 12) for weight in (None, window[:, 1]))
        category = log["category"][start:stop]
        score[start:stop] = ((clicks + 4 * rate) / (shown + 4))[category]
        seen += zip(category.tolist(), log["click"][start:stop].tolist(), strict=True)
    return score


def test_a_long_history_knows_more_than_the_last_ten_events():
    raw = open_log(SimulatorConfig(users=400, items=600, impressions=24_000, seed=1))
    log, events = columns(raw.impressions()), columns(raw.events())
    long, short = (auc(per_category_score(log, events, last), log["click"]) for last in (1_000_000, 10))
    assert long > short + 0.03


def test_likings_drift_and_come_back():
    feed = Feed(replace(SMALL, drift=1.0))
    context = next(feed.impressions()).context
    now = feed.world.probabilities(context)["click"]
    later = feed.world.probabilities(replace(context, time=context.time + 4 * DAY_MS))["click"]
    still = Feed(replace(SMALL, drift=0.0)).world
    same = [still.probabilities(replace(context, time=context.time + days * DAY_MS))["click"] for days in (0, 4)]
    assert np.abs(now - later).mean() > 0.05
    assert same[0] == pytest.approx(same[1])


def test_uniform_numbers_are_uniform_and_independent_of_their_neighbours():
    place = np.arange(100_000)
    draws = Chance(0).uniform("x", place)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.bincount((draws * 10).astype(int)) == pytest.approx(10_000, abs=400)
    others = (draws[1:], Chance(0).uniform("y", place)[:-1], Chance(1).uniform("x", place)[:-1])
    assert all(abs(np.corrcoef(draws[:-1], other)[0, 1]) < 0.015 for other in others)


def test_intercept_meets_the_rate():
    term = np.linspace(-3, 3, 101)
    assert (1 / (1 + np.exp(-term - solve_intercept(term, np.ones(101), 0.1)))).mean() == pytest.approx(0.1)


AT_LEAST_ONE = ["users", "categories", "impressions", "max_history", "days", "history_days", "slate", "batch_rows"]
BAD = [({name: 0}, f"{name} must be at least 1, got 0") for name in AT_LEAST_ONE]
BAD += [({name: -1}, f"{name} must be at least 0, got -1") for name in ("history_length", "seed", "signal")]
BAD += [({name: 0.0}, rf"{name} must lie in \(0, 1\], got 0.0") for name in ("keep_positive", "exploration")]
BAD += [
    ({"position_bias": float("nan")}, "position_bias must be at least 0, got nan"),
    ({"keep_negative": 1.5}, r"keep_negative must lie in \(0, 1\], got 1.5"),
    ({"items": 5}, r"items must be at least categories \(12\), got 5"),
    ({"click_rate": 1.0}, r"click_rate must lie in \(0, 1\), got 1.0"),
    ({"drift": 2.0}, r"drift must lie in \[0, 1\], got 2.0"),
    ({"tasks": ()}, r"tasks must name at least one task, each once, got \[\]"),
    ({"tasks": ("click", "click")}, "each once, got"),
    ({"tasks": ("clicks",)}, r"unknown task 'clicks' \(did you mean 'click'\?\); use one of click, long_view, like"),
    ({"propensity": "expo"}, r"unknown propensity 'expo' \(did you mean 'exposure'\?\)"),
    ({"truth": "relevant"}, r"unknown truth 'relevant' \(did you mean 'relevance'\?\)"),
]


@pytest.mark.parametrize(("config", "message"), BAD)
def test_config_errors(config, message):
    with pytest.raises(ValueError, match=message):
        SimulatorConfig(**config)
