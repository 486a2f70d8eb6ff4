"""Checks for samplers: the choice has the size asked for, and the seed and the candidates alone decide it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recdistill_core.interfaces import Candidates, Sampler
from recdistill_core.sampler import fault_of
from recdistill_core.testing.cases import Case, check, exercise
from recdistill_core.testing.compare import differences, leaves
from recdistill_core.testing.samples import sample_schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNT, WIDTH, BUDGET = 60, 5, 17


def sample_candidates(count: int = COUNT, width: int = WIDTH, seed: int = 0) -> Candidates:
    """``count`` candidates of a few users in time order, for the tasks of the kit's schema."""
    draw = np.random.default_rng(seed)
    return Candidates(
        example_id=1000 + draw.permutation(count).astype(np.int64),
        event_time=1_700_000_000_000 + np.sort(draw.integers(0, 10**7, count, dtype=np.int64)),
        user_id=draw.integers(0, 7, count, dtype=np.int64),
        embedding=draw.standard_normal((count, width)).astype(np.float32),
        logits={task: draw.standard_normal(count).astype(np.float32) for task in sample_schema().tasks},
    )


def chosen(case: Case, made: Sampler, candidates: Candidates, budget: int, seed: int, of: str = "") -> NDArray[Any]:
    """The choice; the case fails unless it is ``budget`` distinct positions."""
    __tracebackhide__ = True
    try:
        found = made.select(candidates, budget, seed)
    except Exception as error:
        case.fail(f"fails for {budget} of {len(candidates)} candidates{of} ({type(error).__name__}: {error})")
    fault = fault_of(found, budget, len(candidates))
    case.require(not fault, f"{fault} for a budget of {budget} of {len(candidates)} candidates{of}")
    return found


@exercise("sampler")
def run_sampler(case: Case, made: Sampler) -> Mapping[str, Any]:
    """One choice."""
    return {"chosen": chosen(case, made, sample_candidates(), BUDGET, seed=2)}


@check("sampler")
def it_chooses_as_many_as_asked(case: Case) -> None:
    """Any budget from 1 to N gives so many distinct int64 positions of candidates."""
    made = case.build()
    for budget in (1, 2, BUDGET, COUNT - 1, COUNT):
        chosen(case, made, sample_candidates(), budget, seed=0)


@check("sampler")
def odd_candidates_are_chosen_from(case: Case) -> None:
    """Equal, single and one-dimensional candidates, one user and extreme logits are candidates too."""
    made, plain = case.build(), sample_candidates()
    ones, large = np.ones(COUNT, np.float32), np.float32(80)
    odd = {
        " whose embeddings are all equal": replace(plain, embedding=np.ones_like(plain.embedding)),
        " whose embeddings are all 0": replace(plain, embedding=np.zeros_like(plain.embedding)),
        " whose embeddings come in pairs": replace(plain, embedding=plain.embedding[np.arange(COUNT) // 2]),
        " with embeddings of one number": sample_candidates(width=1),
        " of one user": replace(plain, user_id=np.zeros_like(plain.user_id)),
        " of one moment": replace(plain, event_time=np.full_like(plain.event_time, plain.event_time[0])),
        " with equal logits": replace(plain, logits=dict.fromkeys(plain.logits, ones)),
        " with logits of 80 and -80": replace(
            plain, logits={task: large * np.sign(logit) for task, logit in plain.logits.items()}
        ),
    }
    for of, candidates in odd.items():
        for budget in (1, BUDGET, COUNT):
            chosen(case, made, candidates, budget, 0, of)
    chosen(case, made, sample_candidates(count=1), 1, 0)


@check("sampler")
def the_seed_alone_decides(case: Case) -> None:
    """Equal seeds give equal choices, whatever has been drawn elsewhere; global generators stay as they were."""
    made, candidates = case.build(), sample_candidates()
    _seed_everything(0)
    first = chosen(case, made, candidates, BUDGET, seed=5)
    _seed_everything(1)
    before = _generators()
    again = chosen(case, made, candidates, BUDGET, seed=5)
    moved = differences(before, _generators())
    case.require(
        bool((first == again).all()),
        "chooses others when it is asked again with the same seed; draw from numpy.random.default_rng(seed) alone",
    )
    case.require(
        not moved,
        f"changes the global random generator of {', '.join(moved)}, which others draw from; make a generator",
    )


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global generator is what is looked at
    torch.manual_seed(seed)


def _generators() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  # as above
    numbers = state["state"]
    return {
        "random": random.getstate(),
        "numpy": np.append(numbers["key"], numbers["pos"]),
        "torch": torch.get_rng_state(),
    }


@check("sampler")
def candidates_are_never_changed(case: Case) -> None:
    """No array of the candidates is written to; read-only ones, such as of a mapped file, do as well."""
    made, candidates = case.build(), sample_candidates()
    before = {path: np.copy(value) for path, value in leaves(candidates).items()}
    chosen(case, made, candidates, BUDGET, seed=0)
    changed = differences(before, leaves(candidates))
    case.require(not changed, f"changes the candidates that it is given: {', '.join(changed)}; work on a copy")
    for value in leaves(candidates).values():
        value.setflags(write=False)
    chosen(case, made, candidates, BUDGET, 0, " in arrays that cannot be written to")
