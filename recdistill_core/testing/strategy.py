"""Checks for head strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.interfaces import DistillationLoss, HeadStrategy, LossParts
from recdistill_core.objective import Objective
from recdistill_core.testing import answers
from recdistill_core.testing.cases import Case, NotApplicable, check, exercise
from recdistill_core.testing.models import ROUNDING, moved
from recdistill_core.testing.samples import TASK

ROWS = 24


class Squares(DistillationLoss):
    """A distillation loss for checks: ``weight * (z_S - z_T)^2``."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """``[N]``."""
        return weight * (student_logit - teacher_logit).square()


class Parts:
    """Losses whose size each row's coefficients set: ``hard [N]``, and ``soft [N]``, 0 where there is no teacher."""

    def __init__(self, hard: Tensor, soft: Tensor) -> None:
        self.weights = {"hard": hard, "soft": soft}
        self.asked: list[str] = []

    def hard(self, logit: Tensor) -> Tensor:
        """``[N]``; positive with a gradient everywhere, where the coefficient is not 0."""
        self.asked.append("hard")
        return self.weights["hard"] * functional.softplus(logit)

    def soft(self, logit: Tensor, *, target: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """``[N]``, as above."""
        self.asked.append("soft")
        aim = self.teacher()[0] if target is None else target.detach()
        loss = self.weights["soft"] * functional.softplus(1.5 + aim - logit)
        return loss if weight is None else loss * weight.detach()

    def teacher(self) -> tuple[Tensor, Tensor]:
        """The same logits however large the losses are."""
        valid = self.weights["soft"] != 0
        return torch.where(valid, torch.linspace(-1, 0.5, len(valid), device=valid.device), 0.0), valid

    def teachers(self) -> list[tuple[Tensor, Tensor]]:
        """One teacher."""
        return [self.teacher()]

    def label(self) -> tuple[Tensor, Tensor]:
        """Every third row is positive."""
        observed = self.weights["hard"] != 0
        return (torch.arange(len(observed), device=observed.device) % 3 == 0).float() * observed, observed


class Heads(dict[str, Tensor]):
    """Logits by head, with gradient; asking for one that the strategy did not announce is a fault."""

    def __init__(self, case: Case, made: HeadStrategy, shift: float | Tensor = 0.0) -> None:
        names = ("main", *made.auxiliary)
        logit = torch.linspace(-2, 2, ROWS, device=case.batch().event_time.device)
        super().__init__({name: (logit.roll(7 * i) + shift).requires_grad_() for i, name in enumerate(names)})
        self.case = case

    def plain(self) -> Heads:
        """These heads without gradient, so that a strategy may write to them and be found out by what it changed."""
        for name, logit in self.items():
            self[name] = logit.detach()
        return self

    def __missing__(self, name: str) -> Tensor:
        """Raise ConformanceError."""
        self.case.fail(f"reads the head {name!r}, and there are {', '.join(self)}; name every tower in auxiliary")


class Recorder(HeadStrategy):
    """Asks another strategy for its terms and keeps what it answers, whatever that is."""

    def __init__(self, asked: HeadStrategy) -> None:
        super().__init__()
        self.asked, self.auxiliary = asked, asked.auxiliary
        self.answer: Any = None

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """No term."""
        self.answer = self.asked.terms(heads, parts)
        return {}


@exercise("strategy")
def run_strategy(case: Case, made: Any) -> Mapping[str, Any]:
    """The terms of one task, by way of Objective, with a squared distance as the distillation loss."""
    recorder = Recorder(made)
    Objective(TASK, recorder, Squares()).terms(Heads(case, made).plain(), case.batch(made))
    return {"terms": recorder.answer}


@check("strategy")
def auxiliary_names_are_distinct(case: Case) -> None:
    """``auxiliary`` is a tuple of distinct names for towers, ``main`` not among them."""
    names = case.build().auxiliary
    plain = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    case.require(plain, f"has auxiliary = {names!r}; it must be a tuple of names, ('aux',) with its comma for one")
    twice = sorted({name for name in names if [*names, "main"].count(name) > 1})
    case.require(not twice, f"names {', '.join(twice)} more than once among main and auxiliary; main is always there")
    try:
        nn.ModuleDict({name: nn.Identity() for name in names})
    except KeyError as error:
        case.fail(f"names a tower as no module can be named: {error.args[0]}; take letters, digits and '_'")


@check("strategy")
def only_its_own_heads_are_read(case: Case) -> None:
    """``terms`` reads the heads ``main`` and those in ``auxiliary``, and no other."""
    terms_of(case, unit_parts())


@check("strategy")
def terms_are_finite_losses_per_row(case: Case) -> None:
    """``terms`` gives at least one named term, each of them a finite float per row."""
    terms = terms_of(case, unit_parts())
    case.require(isinstance(terms, dict) and bool(terms), f"returns {terms!r} from terms; return {{name: [N]}}")
    for name, values in terms.items():
        case.require(isinstance(name, str) and bool(name), f"names a term {name!r}; curves in the logs are named so")
        case.require(isinstance(values, Tensor), f"has a term {name!r} of type {type(values).__name__}; give [N]")
        case.require(
            values.shape == (ROWS,),
            f"has a term {name!r} of shape {list(values.shape)} for {ROWS} rows; give one loss per row",
        )
        case.require(
            values.is_floating_point() and bool(torch.isfinite(values).all()),
            f"has a term {name!r} of {values.dtype} that is not finite for finite losses",
        )


@check("strategy")
def terms_are_linear_in_their_parts(case: Case) -> None:
    """Rows without loss have terms of 0, and twice the losses give twice the terms: weights keep their sense."""
    ones = torch.ones(ROWS)
    nothing = terms_of(case, Parts(0 * ones, 0 * ones))
    for name, values in nothing.items():
        case.require(
            not bool(values.detach().any()),
            f"has a term {name!r} of {float(values.detach().abs().max()):.3g} on rows without hard and soft loss; rows "
            "that are not labelled must count for nothing, so build terms from parts alone",
        )
    once, twice = terms_of(case, Parts(ones, 0.5 * ones)), terms_of(case, Parts(2 * ones, ones))
    doubled = {name: 2 * values.detach() for name, values in once.items()}
    where = moved(doubled, _plain(twice), tolerance=ROUNDING, of="term")
    case.require(
        not where,
        f"has terms that are not linear in the losses: twice the losses miss twice the terms at {where}; scale and add "
        "parts, no clamp, no power, no quotient: the weights of debiasers are inside them",
    )


@check("strategy")
def terms_of_a_row_are_its_own(case: Case) -> None:
    """Logits and losses of other rows change no term of a row, so that two half batches equal one."""
    odd = torch.arange(ROWS) % 2 == 1
    base = _plain(terms_of(case, unit_parts()))
    made = case.build()
    parts = Parts(torch.where(odd, 3.0, 1.0), torch.where(odd, 0.0, 1.0))
    other = _plain(made.terms(Heads(case, made, torch.where(odd, 1.0, 0.0)), parts))
    where = moved(base, other, rows=~odd, tolerance=ROUNDING, of="term")
    case.require(
        not where,
        f"mixes rows: {where}, when only other rows change; leave means, sums and counts over rows to recdistill",
    )


@check("strategy")
def every_auxiliary_tower_learns(case: Case) -> None:
    """Each auxiliary tower gets a gradient from some term."""
    made = case.build()
    if not made.auxiliary:
        raise NotApplicable("it has no auxiliary tower")
    heads = Heads(case, made)
    found = gradients(made.terms(heads, unit_parts()), heads)
    idle = [name for name in made.auxiliary if not bool(found[name].any())]
    case.require(
        not idle, f"builds towers that learn nothing: {', '.join(idle)}; give each a term, or take it out of auxiliary"
    )


@check("strategy")
def main_is_fed_as_it_is_served(case: Case) -> None:
    """``features`` gives every tower what has the shape of the backbone's answer, and ``main`` that answer itself."""
    made = case.build()
    backbone = torch.linspace(-1, 1, ROWS * 4).view(ROWS, 4)
    for name in ("main", *made.auxiliary):
        fed = made.features(name, backbone.clone().requires_grad_())
        case.require(
            isinstance(fed, Tensor) and fed.shape == backbone.shape,
            f"feeds the tower {name!r} features of {list(fed.shape) if isinstance(fed, Tensor) else type(fed).__name__}"
            f" in place of {list(backbone.shape)}",
        )
        case.require(
            name != "main" or torch.equal(fed.detach(), backbone),
            "feeds the main tower other features in training than the backbone's, on which it is served; change only "
            "the gradient, as recdistill_core.strategy.scale_gradient does",
        )


def unit_parts() -> Parts:
    """Parts whose coefficients are 1 in every row."""
    return Parts(torch.ones(ROWS), torch.ones(ROWS))


def terms_of(case: Case, parts: Parts) -> dict[str, Tensor]:
    """Terms of a new build, so that no count of calls matters."""
    made = case.build()
    with answers.in_torch(case, "terms"):
        terms: dict[str, Tensor] = made.terms(Heads(case, made), parts)
    return terms


def _plain(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.detach() for name, values in terms.items()}


def gradients(terms: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient ``{head: [N]}`` of the sum of all terms; zeros where a head is not read."""
    total = torch.stack([values.sum() for values in terms.values()]).sum()
    if not total.requires_grad:
        return {name: torch.zeros(ROWS) for name in heads}
    found = torch.autograd.grad(total, list(heads.values()), allow_unused=True)
    return {name: torch.zeros(ROWS) if g is None else g for name, g in zip(heads, found, strict=True)}
