"""The schema: a round trip, every refusal, and the hash that names the feature view."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from core_cases import SCHEMA

from recdistill_core import Schema
from recdistill_core.errors import DataError
from recdistill_core.schema import Categorical, EventField, KeepRates

WHERE = "\n  where: schema.yaml\n  to do: import the log again"


def test_round_trip_through_json() -> None:
    plain = json.loads(json.dumps(SCHEMA.to_dict()))
    assert Schema.from_dict(plain) == SCHEMA
    assert Schema.from_dict({"tasks": ["click"]}) == Schema(tasks=("click",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"categoricals": []},
            "unknown key 'categoricals' in a dataset schema (did you mean 'categorical'?)\n  where: ",
        ),
        (
            {"categorical": [{"name": "x", "vocabulary": "autor"}]},
            f"the dataset schema cannot be read: unknown vocabulary 'autor' (did you mean 'author'?){WHERE}",
        ),
        ({"categorical": [{"name": "x"}]}, "the dataset schema cannot be read: "),
        ({"keep_rates": [1]}, "the dataset schema cannot be read: "),
        ({"keep_rates": {"click": {"positive": 0, "negative": 1}}}, "the dataset schema cannot be read: keep rate of "),
        ({"vocabularies": None}, "the dataset schema cannot be read: "),
        ({"time_unit": "s"}, f"the dataset schema cannot be read: time_unit must be 'ms', got 's'{WHERE}"),
    ],
)
def test_a_damaged_schema_is_bad_data(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Schema.from_dict({**SCHEMA.to_dict(), **changes})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("plain", [{}, None, [], {"numeric": ["age"]}])
def test_a_schema_without_tasks_is_bad_data(plain: Any) -> None:
    with pytest.raises(DataError) as error:
        Schema.from_dict(plain)
    assert str(error.value) == f"the dataset schema has no 'tasks'{WHERE}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": (EventField("author", "author"),)}, "the first event field must be 'item', got 'author'"),
        ({"events": (EventField("item", "itm"),)}, "unknown vocabulary 'itm'"),
        ({"actions": tuple(f"a{i}" for i in range(17))}, "at most 16 actions fit the action code, got 17"),
        ({"numeric": ("age", "age")}, "'age' is there more than once"),
        ({"numeric": ("tab",)}, "'tab' is there more than once"),
        ({"tasks": ("click", "click")}, "'click' is there more than once"),
        ({"time_unit": "us"}, "time_unit must be 'ms', got 'us'"),
    ],
)
def test_a_schema_that_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCHEMA, **changes)


def test_parts_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"feature 'x': side 'both' is none of \('user', 'item', 'context'\)"):
        Categorical("x", "author", "both")
    with pytest.raises(ValueError, match=r"keep rate of positive rows must lie in \(0, 1\], got 1.5"):
        KeepRates(1.5, 1.0)
    with pytest.raises(ValueError, match=r"keep rate of negative rows must lie in \(0, 1\], got nan"):
        KeepRates(1.0, float("nan"))


def test_what_a_schema_says() -> None:
    assert (SCHEMA.num_items, SCHEMA.num_action_codes, SCHEMA.vocabulary_size("author")) == (20, 4, 7)
    assert SCHEMA.capabilities() == {"history", "keep_rates", "position", "propensity"}
    assert Schema(tasks=("click",)).capabilities() == frozenset()
    assert list(SCHEMA.feature_index())[1] == (1, SCHEMA.categorical[1])
    assert SCHEMA.require_task("like") == "like"
    with pytest.raises(DataError) as error:
        SCHEMA.require_task("clik")
    assert str(error.value) == (
        "the dataset has no task 'clik' (did you mean 'click'?)\n"
        "  where: schema tasks: click, like\n"
        "  to do: name one of these tasks, or import the log with that label column"
    )


def test_the_view_hash_changes_with_the_view_and_with_nothing_else() -> None:
    changed = [
        replace(SCHEMA, vocabularies={**SCHEMA.vocabularies, "tab": 5}),
        replace(SCHEMA, numeric=("price", "age")),
        replace(SCHEMA, numeric=("age",)),
        replace(SCHEMA, categorical=SCHEMA.categorical[::-1]),
        replace(SCHEMA, categorical=(replace(SCHEMA.categorical[0], side="user"), *SCHEMA.categorical[1:])),
        replace(SCHEMA, categorical=(*SCHEMA.categorical[:3], Categorical("tab", "author"))),
        replace(SCHEMA, events=SCHEMA.events[:1]),
        replace(SCHEMA, actions=("like", "click")),
    ]
    hashes = {schema.view_hash() for schema in [SCHEMA, *changed]}
    assert len(hashes) == len(changed) + 1
    assert {len(text) for text in hashes} == {16}
    for same in (
        replace(SCHEMA, tasks=("like",)),
        replace(SCHEMA, keep_rates={}),
        replace(SCHEMA, gives=()),
        replace(SCHEMA, vocabularies=dict(reversed(SCHEMA.vocabularies.items()))),
    ):
        assert same.view_hash() == SCHEMA.view_hash()
