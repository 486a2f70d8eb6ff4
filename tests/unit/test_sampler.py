"""What is asked of a sampler, and what it answers, is looked at before anybody pays for labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recdistill_core.errors import PluginError, UsageError
from recdistill_core.sampler import Candidates, choose
from recdistill_core.testing.sampler import sample_candidates


class Answers:
    """A sampler with an answer of its own."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return self.answer


def test_a_choice_is_handed_on() -> None:
    found = choose(Answers(np.array([3, 0, 9])), sample_candidates(10), 3, seed=0)
    assert found.tolist() == [3, 0, 9]


@pytest.mark.parametrize(
    ("budget", "count", "text"),
    [
        (0, 10, "the budget is 0 examples, and there are 10 candidates\n  to do: ask for 1 or more, and for no more"),
        (11, 10, "the budget is 11 examples, and there are 10 candidates"),
        (1, 0, "the budget is 1 examples, and there are 0 candidates\n  to do: look for why there is none"),
    ],
)
def test_a_budget_out_of_range_is_refused(budget: int, count: int, text: str) -> None:
    with pytest.raises(UsageError) as error:
        choose(Answers(np.arange(budget)), sample_candidates(count), budget, seed=0)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([1, 2, 3], "returns a list, not an array of positions"),
        (np.array([1.0, 2.0, 3.0]), "returns float64 [3], not int64 [3]"),
        (np.array([[1, 2, 3]]), "returns int64 [1, 3], not int64 [3]"),
        (np.array([1, 2]), "returns int64 [2], not int64 [3]"),
        (np.array([1, 2, 10]), "returns positions from 1 to 10; there are 10 candidates, counted from 0"),
        (np.array([-1, 2, 3]), "returns positions from -1 to 3; there are 10 candidates, counted from 0"),
        (np.array([1, 2, 2]), "returns 2 distinct positions, not 3"),
    ],
)
def test_an_answer_that_is_no_choice_is_refused(answer: Any, text: str) -> None:
    with pytest.raises(PluginError) as error:
        choose(Answers(answer), sample_candidates(10), 3, seed=0)
    wanted = f"sampler Answers {text}\n  to do: report it to the sampler's author, or use another one"
    assert str(error.value) == wanted
