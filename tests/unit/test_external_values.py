"""What scores of somebody else are taken for, which are refused, and what is counted."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_cases import words
from external_cases import context_of, logit_of, source_in
from hypothesis import given
from hypothesis import strategies as st

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, DataError, UsageError
from recdistill_core.registry import installed
from recdistill_external import ExternalTeacher
from recdistill_external.config import HttpConfig, ScoresFileConfig, ValueRules
from recdistill_external.values import Tally

IDS = np.arange(4) + 10


def logits(rules: ValueRules, *scores: float, absent: Any = None) -> tuple[list[float], Tally]:
    tally = Tally(rules)
    ids = np.arange(len(scores)) + 10
    found = tally.logits("click", np.array(scores, np.float64), ids, None if absent is None else np.array(absent))
    return found.tolist(), tally


@given(st.lists(st.floats(-36, 15), min_size=1))
def test_a_probability_and_its_logit_are_one_label(wanted: list[float]) -> None:
    probability = 1 / (1 + np.exp(-np.array(wanted)))
    found = np.array(logits(ValueRules("probability"), *probability)[0])
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-6, atol=1e-6)
    assert logits(ValueRules("logit"), *wanted)[0] == np.array(wanted, np.float32).tolist()


def test_clipped_probabilities_are_counted() -> None:
    found, tally = logits(ValueRules("probability", clip=0.01), 0.0, 1.0, 0.5, 0.01)
    edge = float(np.log(0.01 / 0.99))
    assert found == pytest.approx([edge, -edge, 0.0, edge])
    assert tally.describe() == {"scored": {"click": 4}, "clipped": {"click": 2}, "skipped": {}}


@pytest.mark.parametrize(
    ("rules", "bad", "expected"),
    [
        (ValueRules("probability"), 0.0, "are 0 or 1, whose logit is infinite, the first one (0) of example 11"),
        (ValueRules("probability"), 1.0, "set clip, such as 1e-6, for probabilities of 0 and 1"),
        (ValueRules("probability"), 1.2, "lie outside [0, 1], the first one (1.2) of example 11"),
        (ValueRules("probability"), -3.0, "set scale: logit if these are values before the sigmoid"),
        (ValueRules("probability"), float("nan"), "are NaN or infinite, the first one (nan) of example 11"),
        (ValueRules("probability", clip=0.1), float("inf"), "are NaN or infinite, the first one (inf)"),
        (ValueRules("probability"), 1e-300, "have a logit beyond +-40, the first one (1e-300)"),
        (ValueRules("logit"), 41.0, "have a logit beyond +-40, the first one (41) of example 11"),
        (ValueRules("logit"), float("-inf"), "are NaN or infinite, the first one (-inf) of example 11"),
    ],
)
def test_what_is_no_score_is_refused_or_skipped(rules: ValueRules, bad: float, expected: str) -> None:
    found, tally = logits(rules, 0.5, bad, 0.5, bad)
    assert np.isnan(found).tolist() == [False, True, False, True]
    with pytest.raises(DataError) as error:
        tally.settle("scores.csv")
    words(error, "scores cannot be used: 2 of task 'click'", expected, "where: scores.csv", "set invalid: skip")
    found, tally = logits(ValueRules(rules.scale, rules.clip, "skip"), 0.5, bad, 0.5, bad)
    tally.settle("scores.csv")
    assert sum(tally.describe()["skipped"]["click"].values()) == 2
    assert tally.scored == {"click": 2}


def test_absent_scores_are_no_fault() -> None:
    found, tally = logits(ValueRules("logit"), 1.0, float("nan"), absent=[False, True])
    tally.settle("here")
    assert np.isnan(found).tolist() == [False, True]
    assert tally.scored == {"click": 1}


def test_counts_add_up() -> None:
    total = Tally(ValueRules("probability", 0.1, "skip"))
    for _ in range(2):
        part = Tally(total.rules)
        part.logits("click", np.array([0.0, 2.0, 0.5]), np.arange(3))
        total.merge(part)
    assert total.describe() == {
        "scored": {"click": 4},
        "clipped": {"click": 2},
        "skipped": {"click": {"lie outside [0, 1]": 2}},
    }
    assert part.faults[("click", "lie outside [0, 1]")].count == 1


@pytest.mark.parametrize(
    ("teacher", "settings", "expected"),
    [
        ("scores_file", {"path": "x.csv"}, "teacher.scale: is required"),
        ("scores_file", {"path": "x.csv", "scale": "percent"}, "scale must be probability or logit, got 'percent'"),
        ("scores_file", {"path": "x.csv", "scale": "probability", "clip": 0.5}, "clip must lie in [0, 0.5), got 0.5"),
        ("scores_file", {"path": "x.csv", "scale": "logit", "clip": 0.1}, "clip is about probabilities, and scale is"),
        ("scores_file", {"path": "x.csv", "scale": "logit", "invalid": "drop"}, "invalid must be refuse or skip"),
        ("scores_file", {"path": "", "scale": "logit"}, "path must name a file"),
        (
            "scores_file",
            {"path": "x.csv", "scale": "logit", "key": {"example_id": "a", "user_id": "b"}},
            "key: example_id identifies a row by itself",
        ),
        (
            "scores_file",
            {"path": "x.csv", "scale": "logit", "time_unit": "h"},
            "time_unit must be one of ms, us, s, iso",
        ),
        ("http", {"version": None}, "teacher.version: is required"),
        ("http", {"version": " "}, "version must name the model"),
        ("http", {"url": "ftp://a/b"}, "url must begin with https://HOST"),
        ("http", {"url": "https://a:b/"}, "url is not a URL"),
        ("http", {"url": "https://me:secret@a.b/c"}, "url must not hold a user or a password"),
        ("http", {"url": "http://a.b/c"}, "url: http to a.b sends rows and secrets unprotected"),
        ("http", {"fields": ["a", "a"]}, "fields must be different names"),
        ("http", {"fields": ["id"]}, "none of them id"),
        ("http", {"batch_rows": 0}, "batch_rows and attempts must be >= 1, got 0 and 6"),
        ("http", {"timeout_s": 0}, "timeout_s must be > 0, got 0"),
        ("http", {"pause_s": 100}, "pauses need 0 <= pause_s <= longest_pause_s, got 100.0 and 60.0"),
        ("http", {"requests_per_s": -1}, "requests_per_s must be >= 0, got -1"),
        (
            "http",
            {"token_env": "Bearer abc"},
            "token_env must be the name of an environment variable, never the secret",
        ),
    ],
)
def test_settings_out_of_range_are_refused(teacher: str, settings: dict[str, Any], expected: str) -> None:
    plain = {"url": "https://a.b/c", "version": "1", "scale": "logit"} if teacher == "http" else {}
    whole = {key: value for key, value in {**plain, **settings}.items() if value is not None}
    with pytest.raises(ConfigError, match=re.escape(expected)):
        make(installed(), "teacher", {"name": teacher, **whole})


def test_plain_http_is_allowed_here_and_where_it_is_asked_for() -> None:
    plain = {"name": "http", "version": "1", "scale": "logit", "fields": []}
    for place in (
        {"url": "http://localhost:1/"},
        {"url": "http://[::1]:1/"},
        {"url": "http://a.b/", "plain_http": True},
    ):
        make(installed(), "teacher", {**plain, **place}, BuildContext(tasks=("click",)))


def function(batch: Batch) -> Any:
    assert batch.labels == {}
    assert batch.observed == {}
    assert batch.teacher is None
    return {"click": [logit_of(example) for example in batch.example_id.tolist()]}


def test_a_function_scores_without_seeing_labels(tmp_path: Any) -> None:
    source = source_in(tmp_path / "dataset")
    teacher = ExternalTeacher(function, fingerprint="mine 1", scale="logit", context=context_of(source))
    batch = source.batch(np.array([3, 1, 7]))
    assert teacher.score(batch).logits["click"].tolist() == [logit_of(103), logit_of(101), logit_of(107)]
    single = ExternalTeacher(
        lambda batch: torch.full((len(batch),), 0.5, requires_grad=True),
        fingerprint="half",
        scale="probability",
        context=context_of(source),
    )
    scores = single.score(batch).logits["click"]
    assert scores.tolist() == [0.0, 0.0, 0.0]
    assert not scores.requires_grad
    assert single.describe() == {"fingerprint": "half", "scored": {"click": 3}, "clipped": {}, "skipped": {}}


def test_the_fingerprint_follows_what_makes_the_labels() -> None:
    def name_of(tasks: tuple[str, ...] = ("a", "b"), **changes: Any) -> str:
        settings = {"fingerprint": "mine 1", "scale": "probability", **changes}
        return ExternalTeacher(function, context=BuildContext(tasks=tasks), **settings).fingerprint()

    others = [name_of(fingerprint="mine 2"), name_of(scale="logit"), name_of(clip=0.1), name_of(("b", "a"))]
    assert len({name_of(), *others}) == 5
    assert name_of(invalid="skip") == name_of() == name_of()
    assert re.fullmatch("[0-9a-f]{32}", name_of())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"clik": [0, 0]}, "the function scored the tasks clik; asked for were click"),
        ({}, "the function scored the tasks none"),
        ([0.0], "the scores of task 'click' have shape [1] for 2 rows"),
        ({"click": [[0.0, 0.0]]}, "the scores of task 'click' have shape [1, 2] for 2 rows"),
        (["a", "b"], "the scores of task 'click' are no numbers"),
        ([0.0, None], "1 of task 'click' are NaN or infinite, the first one (nan) of example 101"),
    ],
)
def test_what_a_function_must_not_return(answer: Any, expected: str, tmp_path: Any) -> None:
    source = source_in(tmp_path / "dataset")
    teacher = ExternalTeacher(lambda batch: answer, fingerprint="m", scale="logit", context=context_of(source))
    with pytest.raises(DataError) as error:
        teacher.score(source.batch(np.arange(2)))
    words(error, expected, "external teacher 'm'")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fingerprint": ""}, "an external teacher needs a fingerprint: a function cannot be hashed"),
        ({"context": BuildContext()}, "an external teacher needs at least one task"),
        ({"scale": "odds"}, "the external teacher 'm' has a bad setting: scale must be probability or logit"),
    ],
)
def test_an_external_teacher_must_be_declared(settings: dict[str, Any], expected: str) -> None:
    plain = {"fingerprint": "m", "scale": "logit", "context": BuildContext(tasks=("click",))}
    with pytest.raises(UsageError, match=re.escape(expected)):
        ExternalTeacher(function, **{**plain, **settings})


@pytest.mark.parametrize("config", [ScoresFileConfig, HttpConfig])
def test_the_page_lists_every_setting_with_its_default(config: type[Any]) -> None:
    text = (Path(__file__).parents[2] / "docs/external-teachers.md").read_text()
    tables = [dict(re.findall(r"^\| `(\w+)` \| (\S.*?) \|", part, re.M)) for part in text.split("| key | default |")]
    assert {entry.name: default_of(entry) for entry in fields(config)} in tables


def default_of(entry: Any) -> str:
    """A setting's default as the page shows it."""
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    if default is MISSING:
        return "required"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    shown = f"[{', '.join(default)}]" if isinstance(default, list) else str(default)
    return f"`{shown}`" if shown else '`""`'
