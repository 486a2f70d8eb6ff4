"""Errors of recdistill come through a pickle whole: they may be raised in another process."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from recdistill_core import errors
from recdistill_core.errors import ConfigError, DataError, Problem, RecdistillError

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, RecdistillError) and kind is not ConfigError
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_through_a_pickle_whole(kind: type[RecdistillError]) -> None:
    error = kind("the log is torn", where="log.csv, row 7", fix="look at the row")
    error.add_note("worker 3")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "the log is torn\n  where: log.csv, row 7\n  to do: look at the row"
    assert (again.what, again.where, again.fix, again.__notes__) == (error.what, error.where, error.fix, ["worker 3"])
    assert str(pickle.loads(pickle.dumps(again))) == str(error)


def test_a_configuration_error_keeps_its_problems() -> None:
    error = ConfigError([Problem("loss.margin", "must be > 0"), Problem("", "is empty")])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert [(problem.path, problem.message) for problem in again.problems] == [
        ("loss.margin", "must be > 0"),
        ("", "is empty"),
    ]
    assert again.problems[0] == copy.copy(error.problems[0]) == "loss.margin: must be > 0"


def test_an_error_of_a_plugin_with_arguments_of_its_own_does_too() -> None:
    again = pickle.loads(pickle.dumps(Torn(7)))
    assert (again.row, again.what, str(again)) == (7, "row 7 is torn", "row 7 is torn\n  to do: look at it")


class Torn(DataError):
    """As a plugin may have it."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is torn", fix="look at it")
        self.row = row
