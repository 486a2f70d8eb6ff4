"""The data contract: refusals, row selection, histories, teacher labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from core_cases import SCHEMA, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill_core import Batch, History, TeacherSignal
from recdistill_core.errors import DataError


def at(tensor: Tensor, row: int, value: float) -> Tensor:
    changed = tensor.clone()
    changed[row] = value
    return changed


def feature(value: float) -> Tensor:
    numeric = BATCH.numeric.clone()
    numeric[4, 1] = value
    return numeric


def history(batch: Batch, **changes: Any) -> Batch:
    assert batch.history is not None
    return replace(batch, history=replace(batch.history, **changes))


BATCH = make_batch()
assert BATCH.propensity is not None
assert BATCH.history is not None
PAST = BATCH.history
SEEING = int((PAST.row_end > 0).nonzero()[0])
LABEL = BATCH.labels["click"]
OUTSIDE = "propensity is outside (0, 1]\n  where: b, row 2\n  to do: drop rows that could not have been shown"
NEITHER = "label of task 'click' is neither 0 nor 1\n  where: b, row 2\n  to do: soft targets belong in a logit store"
BEYOND = "row refers to events beyond the end of its history\n  where: b, row 3\n  to do: rebuild the batch"
NO_HISTORY = "row refers to no history\n  where: b, row 3\n  to do: rebuild the batch"
IMPUTE = "numeric feature is NaN or infinite\n  where: b, row 4, column 1\n  to do: impute it before import"
REFUSED = {
    "nan feature": (replace(BATCH, numeric=feature(math.nan)), IMPUTE),
    "inf feature": (replace(BATCH, numeric=feature(-math.inf)), IMPUTE),
    "label 0.5": (replace(BATCH, labels={"click": at(LABEL, 2, 0.5)}), NEITHER),
    "label nan": (replace(BATCH, labels={"click": at(LABEL, 2, math.nan)}), NEITHER),
    "label -1": (replace(BATCH, labels={"click": at(LABEL, 2, -1)}), NEITHER),
    "propensity 0": (replace(BATCH, propensity=at(BATCH.propensity, 2, 0.0)), OUTSIDE),
    "propensity > 1": (replace(BATCH, propensity=at(BATCH.propensity, 2, 1.001)), OUTSIDE),
    "propensity nan": (replace(BATCH, propensity=at(BATCH.propensity, 2, math.nan)), OUTSIDE),
    "row_end": (history(BATCH, row_end=at(PAST.row_end, 3, 6)), BEYOND),
    "row_end < 0": (history(BATCH, row_end=at(PAST.row_end, 3, -1)), BEYOND),
    "owner": (history(BATCH, row_to_history=at(PAST.row_to_history, 3, 3)), NO_HISTORY),
    "owner < 0": (history(BATCH, row_to_history=at(PAST.row_to_history, 3, -1)), NO_HISTORY),
    "time backwards": (
        history(BATCH, events={**PAST.events, "time": at(PAST.events["time"], 1, 0)}),
        "time goes backwards after an event\n  where: b.history, event 0\n"
        "  to do: sort each user's events by time before import",
    ),
    "sees itself": (
        replace(BATCH, event_time=at(BATCH.event_time, SEEING, int(PAST.events["time"].min()))),
        f"row sees an event that is not before it\n  where: b, row {SEEING}\n"
        "  to do: cut its row_end at its own event_time",
    ),
    "short column": (
        replace(BATCH, user_id=BATCH.user_id[:3]),
        "user_id has 3 rows, example_id has 8\n  where: b",
    ),
    "short label": (
        replace(BATCH, labels={"click": LABEL[:1]}),
        "label of task 'click' has 1 rows, example_id has 8\n  where: b",
    ),
    "short position": (
        replace(BATCH, position=torch.zeros(9)),
        "position has 9 rows, example_id has 8\n  where: b",
    ),
    "short row_end": (
        history(BATCH, row_end=PAST.row_end[:2]),
        "row_end has 2 rows, example_id has 8\n  where: b",
    ),
    "short teacher": (
        BATCH.with_teacher(TeacherSignal({"click": LABEL[:2]}, {"click": LABEL[:2] > 0}, "v")),
        "teacher logit of task 'click' has 2 rows, example_id has 8\n  where: b",
    ),
    "no mask": (replace(BATCH, observed={}), "task 'click' has labels but no observed mask\n  where: b"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_validate_names_the_first_fault(case: str) -> None:
    batch, message = REFUSED[case]
    with pytest.raises(DataError) as error:
        batch.validate("b")
    assert str(error.value) == message


def test_action_codes_are_those_of_the_schema() -> None:
    codes = 2 ** len(SCHEMA.actions)
    assert BATCH.validate("b", SCHEMA) is BATCH
    for code in (-1, codes):
        wrong = history(BATCH, events={**PAST.events, "action": at(PAST.events["action"], 3, code)})
        assert wrong.validate("b") is wrong
        with pytest.raises(DataError) as error:
            wrong.validate("b", SCHEMA)
        assert str(error.value).splitlines() == [
            f"action code outside [0, {codes}) of {', '.join(SCHEMA.actions)}",
            "  where: b.history, event 3",
            "  to do: give bit codes of the schema's actions; an action that it lacks is left out",
        ]


def test_validate_takes_what_the_contract_allows() -> None:
    assert BATCH.validate() is BATCH
    plain = replace(BATCH, history=None, position=None, propensity=None, teacher=None, labels={}, observed={})
    assert plain.validate() is plain
    unseen = replace(BATCH, labels={"click": at(LABEL, 1, math.nan)})  # row 1 is not observed
    assert unseen.validate() is unseen
    assert replace(BATCH, propensity=torch.ones(8)).validate()


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and scalar of a batch by its path."""
    if isinstance(value, Batch | History | TeacherSignal):
        value = vars(value)
    if isinstance(value, dict):
        return {key: leaf for name, entry in value.items() for key, leaf in flat(entry, f"{path}/{name}").items()}
    return {path: value}


def test_rows_picks_every_column_and_shares_histories() -> None:
    index = torch.tensor([5, 0, 5])
    before, after = flat(BATCH), flat(BATCH.rows(index))
    assert before.keys() == after.keys()
    for path, value in before.items():
        if not isinstance(value, Tensor):
            assert after[path] == value
        elif path.startswith("/history/events") or path == "/history/offsets":
            assert after[path] is value
        else:
            assert torch.equal(after[path], value[index]), path
    assert len(BATCH.rows(index)) == 3
    assert len(BATCH.rows(torch.tensor([], dtype=torch.long))) == 0
    bare = replace(BATCH, history=None, teacher=None, position=None, propensity=None)
    assert bare.rows(index).history is bare.rows(index).teacher is bare.rows(index).position is None


@pytest.mark.parametrize("index", [[0, 8], [-1, 3]])
def test_rows_outside_the_batch(index: list[int]) -> None:
    with pytest.raises(IndexError, match=f"rows {min(index)} to {max(index)} of a batch with 8 rows"):
        BATCH.rows(torch.tensor(index))


def test_to_moves_every_tensor_and_keeps_the_rest() -> None:
    moved = flat(BATCH.to("meta"))
    assert {path for path, value in moved.items() if isinstance(value, Tensor) and value.device.type != "meta"} == set()
    assert moved.keys() == flat(BATCH).keys()
    assert (moved["/teacher/version"], moved["/keep_rates/click"]) == ("v1", (0.8, 0.1))
    assert BATCH.numeric.device.type == "cpu"


def naive_last(past: History, count: int) -> tuple[dict[str, list[list[int]]], list[list[bool]]]:
    events: dict[str, list[list[int]]] = {name: [] for name in past.events}
    seen = []
    for row, owner in enumerate(past.row_to_history.tolist()):
        start, end = int(past.offsets[owner]), int(past.row_end[row])
        newest = list(range(start, start + end))[::-1][:count]
        seen.append([True] * len(newest) + [False] * (count - len(newest)))
        for name, column in past.events.items():
            events[name].append([int(column[i]) for i in newest] + [0] * (count - len(newest)))
    return events, seen


@settings(deadline=None, max_examples=60)
@given(data=st.data(), lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), count=st.integers(0, 8))
def test_last_equals_a_plain_loop(data: st.DataObject, lengths: list[int], count: int) -> None:
    owner = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    end = [data.draw(st.integers(0, lengths[one])) for one in owner]
    total = sum(lengths)
    past = History(
        events={"item": torch.arange(total) + 1, "action": torch.arange(total) % 3, "time": torch.arange(total) + 50},
        offsets=torch.tensor(np.cumsum([0, *lengths])),
        row_to_history=torch.tensor(owner, dtype=torch.long),
        row_end=torch.tensor(end, dtype=torch.long),
    )
    assert past.lengths.tolist() == lengths
    events, seen = past.last(count)
    wanted, wanted_seen = naive_last(past, count)
    assert seen.shape == (len(owner), count)
    assert seen.tolist() == wanted_seen
    assert {name: column.tolist() for name, column in events.items()} == wanted


def test_clean_masks_what_no_model_says() -> None:
    logits = torch.tensor([1.5, math.nan, math.inf, -math.inf, 40.0, 40.1, 1e30, -2.0])
    valid = torch.tensor([True] * 7 + [False])
    logit, mask = TeacherSignal({"click": logits}, {"click": valid}, "v").clean("click")
    assert mask.tolist() == [True, False, False, False, True, False, False, False]
    assert logit.tolist() == [1.5, 0, 0, 0, 40.0, 0, 0, 0]
    assert torch.isnan(logits[1])
