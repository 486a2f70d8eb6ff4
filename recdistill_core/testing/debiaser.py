"""Checks for debiasers, whatever they correct; :mod:`recdistill_core.testing.debiaser_bias` asks whether they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.interfaces import Debiaser
from recdistill_core.testing import answers
from recdistill_core.testing.cases import Case, NotApplicable, check, exercise
from recdistill_core.testing.compare import differences, largest_gap
from recdistill_core.testing.samples import TASK, sample_batch, sample_schema

#: The needs of debiasers whose correction has settings at which there is nothing to correct.
BIASES = frozenset({"keep_rates", "propensity", "position"})
#: What is called on a logit; both must keep its shape, type and order.
ON_LOGITS = ("correct", "training_logit")


@exercise("debiaser")
def run_debiaser(case: Case, made: Any) -> Mapping[str, Any]:
    """Fit on two batches, then weights, corrections and training logits of another."""
    made.fit([case.batch(), case.batch(seed=1)], TASK)
    batch = case.batch(seed=2)
    logit = torch.linspace(-2, 0.5, len(batch), device=batch.event_time.device)
    return {
        "weight": made.weight(batch, TASK),
        "correct": made.correct(logit, batch, TASK),
        "training_logit": made.training_logit(logit, batch, TASK),
    }


def fitted(case: Case, task: str = TASK) -> Debiaser:
    """A new object in training mode, fitted on two sample batches."""
    made: Debiaser = case.build().train()
    made.fit([case.batch(), case.batch(seed=1)], task)
    return made


def on_logit(made: Debiaser, method: str, logit: Tensor, batch: Batch) -> Tensor:
    """``correct`` or ``training_logit`` under one seed, so that what is dropped at random is the same each time."""
    torch.manual_seed(1)
    answer: Tensor = getattr(made, method)(logit, batch, TASK)
    return answer


@check("debiaser")
def weights_are_finite_and_not_negative(case: Case) -> None:
    """Weights have the shape [N], also for one row, and are finite and >= 0, at small propensities too."""
    made = fitted(case)
    for count in (24, 1):
        batch = sample_batch(case.schema, rows=count, seed=2)
        rare = torch.where(torch.arange(count) % 5 == 0, 1e-6, torch.ones(count))
        weight = answers.tensor(case, made.weight(replace(batch, propensity=rare), TASK), "weight").detach()
        case.require(
            weight.shape == (count,),
            f"gives weights of shape {list(weight.shape)} for {count} rows; return one per row, shape [{count}]",
        )
        case.require(
            bool(torch.isfinite(weight).all()), "gives a weight that is NaN or infinite; clip what it divides by"
        )
        case.require(bool((weight >= 0).all()), f"gives the negative weight {float(weight.min()):g}; clamp it at 0")


@check("debiaser")
def corrected_logits_are_finite(case: Case) -> None:
    """Corrected and training logits have the shape [N], also for one row, and are finite for logits of +-30."""
    made = fitted(case)
    for count in (24, 1):
        batch = sample_batch(case.schema, rows=count, seed=2)
        for dtype in (torch.float32, torch.bfloat16):
            for method in ON_LOGITS:
                logit = torch.linspace(-30, 30, count).to(dtype)
                with answers.in_torch(case, method):
                    found = answers.tensor(case, on_logit(made, method, logit, batch), method).detach()
                case.require(
                    found.shape == (count,),
                    f"answers {method} with shape {list(found.shape)} for {count} rows; return shape [{count}]",
                )
                wrong = ~torch.isfinite(found)
                at = int(wrong.int().argmax())
                case.require(
                    not bool(wrong.any()),
                    f"answers {method} with {float(found[at])} to the logit {float(logit[at]):g} in "
                    f"{str(dtype).removeprefix('torch.')}; a model that has not learnt yet can say anything: "
                    "bound the correction, and use logsigmoid, softplus, log1p and expm1",
                )


@check("debiaser")
def corrections_keep_type_and_gradient(case: Case) -> None:
    """Float32 and float64 logits keep their type, and the gradient through a correction is finite and not 0."""
    made, batch = fitted(case), case.batch(seed=2)
    for dtype in (torch.float32, torch.float64):
        for method in ON_LOGITS:
            logit = torch.linspace(-3, 0.5, len(batch), dtype=dtype).requires_grad_()
            with answers.in_torch(case, method):
                found = on_logit(made, method, logit, batch)
            case.require(
                found.dtype == dtype,
                f"answers {method} in {str(found.dtype).removeprefix('torch.')} to logits in "
                f"{str(dtype).removeprefix('torch.')}; keep their type, widen half precision only",
            )
            gradient = None
            if found.requires_grad:
                (gradient,) = torch.autograd.grad(found.sum(), logit, allow_unused=True)
            case.require(
                gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any()),
                f"passes no usable gradient from {method} to the logit; the student learns through it: "
                "no detach(), .item() or numpy inside",
            )


@check("debiaser")
def logits_keep_their_order(case: Case) -> None:
    """``correct`` and ``training_logit`` increase with the logit of a row, unless the class says monotone = False."""
    made, batch = fitted(case), case.batch(seed=2)
    if not made.monotone:
        raise NotApplicable("says monotone = False")
    grid = torch.linspace(-30, 30, 61, dtype=torch.float64)
    for method in ON_LOGITS:
        answers = [on_logit(made, method, logit.repeat(len(batch)), batch).detach() for logit in grid]
        steps = torch.stack(answers).diff(dim=0)
        falls = (steps < -1e-4).any(dim=1)  # a step of the grid is 1; rounding in float32 is below 1e-5
        at = int(falls.int().argmax())
        case.require(
            not bool(falls.any()),
            f"reverses the order of logits: {method} falls between {float(grid[at]):g} and {float(grid[at + 1]):g}; "
            "mend it, or set the class attribute monotone = False",
        )
        case.require(
            bool((steps[28:32].sum(dim=0) > 1e-3).all()),
            f"answers {method} alike for the logits -2 and 2 of a row, so that their order is lost",
        )


@check("debiaser")
def correct_changes_nothing_where_there_is_no_bias(case: Case) -> None:
    """With keep rates and propensities of 1 and every row at the top, a correction is the identity."""
    if not BIASES & case.entry.component.needs_of(case.config):
        raise NotApplicable(f"declares none of {', '.join(sorted(BIASES))}")
    neutral = case.again("neutral", sample_schema((1.0, 1.0)))

    def without_bias(batch: Batch) -> Batch:
        return replace(batch, propensity=torch.ones(len(batch)), position=torch.zeros_like(batch.item_id))

    made = neutral.build()
    made.fit([without_bias(neutral.batch()), without_bias(neutral.batch(seed=1))], TASK)
    logit = torch.linspace(-8, 8, 24)
    found = on_logit(made, "correct", logit, without_bias(neutral.batch(seed=2)))
    case.require(
        largest_gap(found, logit) <= 1e-4,
        f"corrects logits by up to {largest_gap(found, logit):.3g} where keep rates and propensities are 1 and every "
        "row is at the top; there is nothing to correct",
    )


@check("debiaser")
def nothing_is_added_in_eval_mode(case: Case) -> None:
    """In eval mode a training logit is the served one, and rows without position and propensity are corrected too."""
    made, batch = fitted(case).eval(), case.batch(seed=2)
    logit = torch.linspace(-2, 2, len(batch))
    for rows, how in (
        (batch, ""),
        (replace(batch, position=None, propensity=None), " without position and propensity"),
    ):
        try:
            found = on_logit(made, "training_logit", logit, rows)
            corrected = on_logit(made, "correct", logit, rows)
            offset = made.training_offset(rows, TASK)
        except Exception as error:
            case.fail(
                f"fails in eval mode on a batch{how} ({type(error).__name__}: {error}); there are none in serving"
            )
        case.require(
            largest_gap(found, logit) == 0 and (offset is None or not bool(offset.any())),
            "adds to the logit in eval mode; what is served knows no position: return the logit itself (and None as "
            "training_offset) unless self.training",
        )
        case.require(corrected.shape == logit.shape, f"corrects to shape {list(corrected.shape)} in eval mode{how}")


@check("debiaser")
def fitted_state_survives_safetensors(case: Case) -> None:
    """``state_dict`` goes through safetensors into a new object, which then answers as the fitted one."""
    from safetensors.torch import load, save

    made = fitted(case)
    strange = [name for name, value in made.state_dict().items() if not isinstance(value, Tensor)]
    case.require(not strange, f"keeps what is no tensor in its state: {', '.join(strange)}; use buffers and parameters")
    stored = load(save({name: value.contiguous() for name, value in made.state_dict().items()}))
    restored = case.again("restored").build().train()
    try:
        restored.load_state_dict(stored)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        case.fail(
            f"cannot load its own state into a new object ({why}); give buffers their shape in __init__, not in fit"
        )
    wanted = _answers(made, case.batch(seed=2))
    try:
        found = _answers(restored, case.batch(seed=2))
    except Exception as error:
        case.fail(f"does not work with its state restored ({type(error).__name__}: {error}); {KEEP_IN_STATE}")
    lost = ", ".join(differences(wanted, found))
    case.require(not lost, f"answers {lost} differently with its state restored; {KEEP_IN_STATE}")


KEEP_IN_STATE = "what fit learns belongs in buffers (register_buffer) or parameters, not in plain attributes"


def _answers(made: Debiaser, batch: Batch) -> dict[str, Any]:
    """What a fitted object says of a batch."""
    logit = torch.linspace(-2, 0.5, len(batch))
    torch.manual_seed(1)
    return {"weight": made.weight(batch, TASK)} | {name: on_logit(made, name, logit, batch) for name in ON_LOGITS}


@check("debiaser")
def fit_reads_its_batches_once(case: Case) -> None:
    """``fit`` takes batches that can be gone through only once, and learns from them what it learns from a list."""
    listed, streamed = fitted(case), case.again("streamed").build().train()
    try:
        streamed.fit((case.batch(seed=seed) for seed in (0, 1)), TASK)
    except Exception as error:
        case.fail(f"fails on a generator of batches ({type(error).__name__}: {error}); {ONE_PASS}")
    changed = ", ".join(differences(_answers(listed, case.batch(seed=2)), _answers(streamed, case.batch(seed=2))))
    case.require(not changed, f"answers {changed} differently when fitted on a generator of batches; {ONE_PASS}")


ONE_PASS = "go through the batches once, and keep sums: a log does not fit in memory"


@check("debiaser")
def tasks_do_not_move_each_other(case: Case) -> None:
    """Fitting another task changes no answer for the first one."""
    made, both = fitted(case), fitted(case.again("both"))
    other = next(task for task in case.schema.tasks if task != TASK)
    both.fit([case.batch(), case.batch(seed=1)], other)
    changed = ", ".join(differences(_answers(made, case.batch(seed=2)), _answers(both, case.batch(seed=2))))
    case.require(
        not changed,
        f"answers {changed} differently for the task {TASK!r} once {other!r} is fitted on the same rows; "
        "keep what fit learns per task, by the tasks of the build context",
    )
