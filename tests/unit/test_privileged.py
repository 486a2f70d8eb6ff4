"""How much one feature tells of a label by itself, and a schema without some features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from core_cases import SCHEMA
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import DataError
from recdistill_pipeline.privileged import auc_alone

USERS = np.arange(4000) % 50
LABEL = (np.random.default_rng(3).random(4000) < 0.3).astype(np.float64)
CHANCE = np.random.default_rng(4).normal(size=4000)


def alone(value: np.ndarray, *, numeric: bool, label: np.ndarray = LABEL) -> float:
    found = auc_alone(value, label, USERS, numeric=numeric)
    assert found is not None
    return found


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_number_that_orders_the_labels_is_found_in_either_direction(sign: float) -> None:
    assert alone(sign * (LABEL + 0.1 * CHANCE), numeric=True) > 0.999
    assert 0.7 < alone(sign * (LABEL + CHANCE), numeric=True) < 0.8


def test_a_number_that_tells_the_label_without_ordering_it_is_found() -> None:
    ends = np.where(LABEL == 1, np.where(CHANCE > 0, 2.0, -2.0), 0.0) + 0.1 * CHANCE
    assert alone(ends, numeric=True) > 0.99


def test_codes_that_are_stored_as_numbers_are_found() -> None:
    codes = 2.0 * np.random.default_rng(3).integers(0, 100, 4000) + LABEL  # odd ones are positives
    assert alone(codes, numeric=True) > 0.999


def test_a_category_is_measured_on_users_that_did_not_make_its_rates() -> None:
    assert alone(LABEL.astype(np.int64) + 3, numeric=False) == 1.0
    assert abs(alone(np.arange(4000), numeric=False) - 0.5) < 0.01  # a value of its own for every row tells nothing
    assert abs(alone(USERS, numeric=False) - 0.5) < 0.01  # nor does the user, to another one
    assert 0.45 < alone(np.random.default_rng(0).integers(0, 20, 4000), numeric=False) < 0.55


def test_what_cannot_be_told_is_none() -> None:
    assert auc_alone(CHANCE, np.ones(4000), USERS, numeric=True) is None
    assert auc_alone(CHANCE, np.full(4000, np.nan), USERS, numeric=True) is None
    assert auc_alone(LABEL.astype(np.int64), LABEL, np.zeros(4000, np.int64), numeric=False) is None
    assert auc_alone(LABEL, LABEL, np.zeros(4000, np.int64), numeric=True) == 1.0  # its order needs no second user


def test_rows_whose_outcome_is_not_known_do_not_count() -> None:
    label = LABEL.copy()
    label[::2] = np.nan
    value = np.where(np.isnan(label), 100.0 * CHANCE, LABEL)
    assert alone(value, numeric=True, label=label) == 1.0


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40),
    numeric=st.booleans(),
)
def test_it_lies_between_0_and_1_and_is_the_same_again(rows: list[tuple[int, int, int]], numeric: bool) -> None:
    value, label, user = (np.array(column) for column in zip(*rows, strict=True))
    found = auc_alone(value, label.astype(np.float64), user, numeric=numeric)
    assert found is None or 0.0 <= found <= 1.0
    assert found is None or not numeric or found >= 0.5
    assert auc_alone(value, label.astype(np.float64), user, numeric=numeric) == found


# ----------------------------------------------------------------------------------------------------------- the schema


def test_a_schema_without_features_keeps_what_others_use() -> None:
    schema = replace(SCHEMA, numeric_sides={"age": "user", "price": "item"})
    left = schema.without(["last_author", "tab", "price"])
    assert [entry.name for entry in left.categorical] == ["item_id", "author"]
    assert (left.numeric, dict(left.numeric_sides)) == (("age",), {"age": "user"})
    assert dict(left.vocabularies) == {"item_id": 20, "author": 7}
    assert left.without(["author"]).vocabularies["author"] == 7  # events have it
    assert left.without(["item_id"]).num_items == 20
    assert schema.without([]) == schema


def test_a_schema_without_an_unknown_feature_is_refused() -> None:
    with pytest.raises(DataError, match=r"the dataset has no feature 'prise' \(did you mean 'price'\?\)") as caught:
        SCHEMA.without(["prise"])
    assert "features: item_id, author, last_author, tab, age, price" in str(caught.value)
