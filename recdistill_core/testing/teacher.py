"""Checks for teachers; those of :mod:`leaks`, :mod:`rows`, :mod:`weights` and :mod:`fingerprints` are theirs too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.batch import ABSURD_LOGIT, Batch, Scores
from recdistill_core.interfaces import TrainableTeacher
from recdistill_core.testing.cases import Case, check, exercise
from recdistill_core.testing.compare import differences
from recdistill_core.testing.models import SEED, moved


@exercise("teacher")
def run_teacher(case: Case, made: Any) -> Mapping[str, Any]:
    """Scores, training scores where there are any, and the fingerprint."""
    batch = case.batch(made)
    answers = {"score": made.score(batch), "fingerprint": made.fingerprint()}
    if isinstance(made, TrainableTeacher):
        answers["training_scores"] = made.train().training_scores(batch)
    return answers


@check("teacher")
def scores_are_finite_logits_per_row(case: Case) -> None:
    """``score`` gives a finite float logit of every task for each row, within +-40, for many rows and for one."""
    made = case.build()
    batch = case.batch(made)
    for part in (batch, batch.rows(torch.tensor([5]))):
        scores = made.score(part)
        case.require(
            isinstance(scores, Scores), f"returns {type(scores).__name__} from score; return recdistill_core.Scores"
        )
        for task in case.context.tasks:
            _one_task(case, scores.logits, task, part)


def _one_task(case: Case, logits: Mapping[str, Any], task: str, batch: Batch) -> None:
    logit = logits.get(task)
    if not isinstance(logit, Tensor):
        case.fail(f"scores no task {task!r}, it has {', '.join(logits) or 'none'}; score every task of the context")
    case.require(logit.is_floating_point(), f"scores task {task!r} in {logit.dtype}; return float32 logits")
    case.require(
        logit.shape == (len(batch),),
        f"scores task {task!r} with shape {list(logit.shape)} for {len(batch)} rows; return [{len(batch)}]",
    )
    case.require(bool(torch.isfinite(logit).all()), f"scores task {task!r} with NaN or infinite logits")
    largest = float(logit.abs().max())
    case.require(
        largest <= ABSURD_LOGIT,
        f"scores task {task!r} with {largest:.3g}, and what is beyond +-{ABSURD_LOGIT:g} is taken for corrupt and left "
        "out; return logits, before the sigmoid",
    )


@check("teacher")
def score_has_no_gradient(case: Case) -> None:
    """What ``score`` returns has no gradient, even where gradients are on."""
    made = case.build()
    with torch.enable_grad():
        scores = made.score(case.batch(made))
    found = [name for part in (scores.logits, scores.hidden or {}) for name, v in part.items() if v.requires_grad]
    case.require(not found, f"scores with gradient: {', '.join(found)}; compute under torch.no_grad()")


@check("teacher")
def score_is_the_same_in_every_mode(case: Case) -> None:
    """``score`` gives the same logits, bit for bit, in training mode, in eval mode, and when it is called again."""
    made = case.build()
    batch = case.batch(made)
    before = dict(made.score(batch).logits)
    again = moved(before, dict(made.score(batch).logits))
    case.require(
        not again, f"scores one batch in two ways (it moves {again}); draw nothing at random and keep no state"
    )
    for mode in (False, True) if isinstance(made, nn.Module) else ():
        where = moved(before, dict(made.train(mode).score(batch).logits))
        case.require(
            not where,
            f"scores otherwise in {'training' if mode else 'eval'} mode (it moves {where}); score in eval mode "
            "whatever the mode was: no dropout, no batch statistics",
        )


@check("teacher")
def scoring_leaves_no_trace(case: Case) -> None:
    """``score`` leaves modes, weights, buffers, the fingerprint and torch's random state as they were."""
    made = case.build()
    batch = case.batch(made)
    print_before = made.fingerprint()
    modes, state = _modes(made), _state(made)
    torch.manual_seed(SEED)
    random = torch.get_rng_state()
    made.score(batch)
    case.require(
        torch.equal(random, torch.get_rng_state()),
        "draws from torch's global random state in score, so scoring would change what is trained; use a Generator of "
        "its own, or turn dropout off",
    )
    changed = sorted(name for name, mode in _modes(made).items() if modes.get(name) != mode)
    case.require(not changed, f"leaves parts in another mode after score: {', '.join(changed[:5])}; put the mode back")
    moved_state = differences(state, _state(made))
    case.require(
        not moved_state, f"changes its own state in score: {', '.join(moved_state[:5])}; scoring must not train"
    )
    case.require(made.fingerprint() == print_before, "has another fingerprint after score; scoring must not train")


def _modes(made: Any) -> dict[str, bool]:
    """Name of each part of a module -> whether it is in training mode; empty for anything else."""
    if not isinstance(made, nn.Module):
        return {}
    return {name or "itself": part.training for name, part in made.named_modules()}


def _state(made: Any) -> dict[str, Any]:
    """Copies of parameters and of all buffers, whether kept or not."""
    if not isinstance(made, nn.Module):
        return {}
    return {name: value.detach().clone() for name, value in [*made.named_parameters(), *made.named_buffers()]}
