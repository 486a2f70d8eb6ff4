"""Checks that a debiaser removes the bias that it is about, on simulated logs whose truth is known.

What is simulated follows from the component's ``needs``. Each estimate is compared with the truth in standard errors;
beyond :data:`LIMIT` the check fails. A right debiaser is that far off in 1 of 140,000 draws of one estimate (1 of
20,000 where six are looked at), and the draws are seeded, so that a check that passes goes on passing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.interfaces import Debiaser
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.samples import TASK, sample_batch
from recdistill_core.testing.worlds import Log, gap, gap_error, placed, sampled, shown_by_relevance

#: Standard errors.
LIMIT = 4.5


def _needs(case: Case, column: str) -> None:
    if column not in case.entry.component.needs_of(case.config):
        raise NotApplicable(f"does not declare that it needs {column}, so it does not claim to correct for it")


def _fitted(case: Case, log: Log) -> Debiaser:
    made: Debiaser = case.build().train()
    made.fit(log.parts(), TASK)
    return made


def _weights(made: Debiaser, log: Log) -> Tensor:
    """``[N]`` float64, batch by batch as in a run."""
    with torch.no_grad():
        return torch.cat([made.weight(part, TASK) for part in log.parts()]).double()


@check("debiaser")
def weights_undo_the_propensity(case: Case) -> None:
    """Where rows are shown by their relevance, the weighted mean of labels is the population's rate (z-test)."""
    _needs(case, "propensity")
    log = shown_by_relevance(case.schema)
    naive = _rate(torch.ones(len(log.batch)).double(), log)
    found, error = _rate(_weights(_fitted(case, log), log), log)
    assert abs(naive[0] - float(log.truth)) > 3 * LIMIT * naive[1], "the simulated log is not biased"
    off = (found - float(log.truth)) / error
    case.require(
        abs(off) <= LIMIT,
        f"is biased: on a log of {len(log.batch)} rows that were shown with propensities of 0.25 to 0.95, the weighted "
        f"rate is {found:.4f} and the population's {float(log.truth):.4f}, {off:+.1f} standard errors (plain mean: "
        f"{naive[0]:.4f}); weights go with 1 / propensity",
    )


def _rate(weight: Tensor, log: Log) -> tuple[float, float]:
    """The weighted mean of labels and its standard error (linearised; a little too large for Poisson sampling)."""
    label = log.label.double()
    rate = (weight * label).sum() / weight.sum()
    return float(rate), float((weight * (label - rate)).norm() / weight.sum())


@check("debiaser")
def corrections_undo_the_sampling(case: Case) -> None:
    """From rows that were kept with known rates, weights and corrections give the true logit of each item (z-test).

    Two logs are tried: each impression logged once, and every impression logged as a negative at first. One must do.
    """
    _needs(case, "keep_rates")
    misses = []
    for fake_negatives in (False, True):
        log = sampled(case.schema, TASK, fake_negatives=fake_negatives)
        naive, error = _log_odds(torch.ones(len(log.batch)).double(), log)
        assert float(((naive - log.truth) / error).abs().max()) > 3 * LIMIT, "the simulated log is not biased"
        made = _fitted(case, log)
        observed, error = _log_odds(_weights(made, log), log)
        found, slope = _corrected(case, made, observed)
        off = (found - log.truth) / (error * slope)
        if bool((off.abs() <= LIMIT).all()):
            return
        at = int(off.abs().nan_to_num(nan=torch.inf).argmax())
        misses.append(
            f"{'with every impression logged as a negative first' if fake_negatives else 'with each logged once'}, "
            f"an item's true logit {float(log.truth[at]):.2f} comes out as {float(found[at]):.2f} "
            f"({float(off[at]):+.1f} standard errors; uncorrected {float(naive[at]):.2f})"
        )
    rates = case.schema.keep_rates[TASK]
    case.fail(
        f"does not undo the sampling of positives with rate {rates.positive:g} and negatives with {rates.negative:g}: "
        f"{'; '.join(misses)}. Where each impression is logged once, the true logit is the sampled one + "
        "log(rate of negatives / rate of positives)"
    )


def _log_odds(weight: Tensor, log: Log) -> tuple[Tensor, Tensor]:
    """Weighted log odds of each item ``[items]`` and their standard errors."""
    sums = [
        torch.zeros(len(log.truth), dtype=torch.float64).index_add(0, log.item, weight**power * side)
        for side in (log.label.double(), 1 - log.label.double())
        for power in (1, 2)
    ]
    yes, yes_squares, no, no_squares = sums
    return (yes / no).log(), (yes_squares / yes**2 + no_squares / no**2).sqrt()


def _corrected(case: Case, made: Debiaser, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The logit that is served and corrected where a model has learnt ``observed [items]``, and its derivative."""
    rows = sample_batch(case.schema, rows=len(observed), seed=2)

    def answer(logit: Tensor) -> Tensor:
        with torch.no_grad():
            served = _inverse(lambda x: made.training_logit(x, rows, TASK), logit)
            return made.correct(served, rows, TASK).double()

    step = 0.01
    return answer(observed), (answer(observed + step) - answer(observed - step)) / (2 * step)


def _inverse(rising: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """Where a function that rises in each place equals ``wanted``; ``wanted`` itself where it is the identity."""
    if torch.equal(rising(wanted), wanted):
        return wanted
    low, high = torch.full_like(wanted, -30.0), torch.full_like(wanted, 30.0)
    for _ in range(50):
        middle = (low + high) / 2
        below = rising(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@check("debiaser")
def relevance_is_told_from_position(case: Case) -> None:
    """Where better items stand higher, items' logits trained through it are as far apart as in truth (z-test).

    Two logs are tried: the position adds to the logit, and P(click) = P(seen | position) P(liked). One must do. On both
    a fit that knows no position is more than 9 standard errors off: what leaves half the bias fails.
    """
    _needs(case, "position")
    misses = []
    for product in (False, True):
        log = placed(case.schema, product=product)
        error, wanted = gap_error(log, product), float(gap(log.truth))
        naive = float(gap(_log_odds(torch.ones(len(log.batch)).double(), log)[0]))
        assert abs(naive - wanted) > 2 * LIMIT * error, "the simulated log is not biased"
        found = float(gap(_learnt(_fitted(case, log), log)))
        off = (found - wanted) / error
        if abs(off) <= LIMIT:
            return
        misses.append(
            f"where {'position and relevance multiply' if product else 'the position adds to the logit'}, better and "
            f"worse items end up {found:.2f} apart and are {wanted:.2f} apart in truth ({off:+.1f} standard errors; "
            f"without a debiaser {naive:.2f})"
        )
    case.fail(
        f"does not tell relevance from position: {'; '.join(misses)}. The effect of the position belongs in "
        "training_offset or training_logit, with parameters that train along"
    )


def _learnt(made: Debiaser, log: Log) -> Tensor:
    """Logits ``[items]`` of a student that is one number per item, trained together with the debiaser."""
    served = torch.full(log.truth.shape, -1.0, requires_grad=True)
    trained = [served, *(parameter for parameter in made.parameters() if parameter.requires_grad)]
    optimiser = torch.optim.LBFGS(trained, max_iter=40, tolerance_grad=1e-6, line_search_fn="strong_wolfe")
    weight = _weights(made, log).float()

    def loss() -> Tensor:
        optimiser.zero_grad()
        torch.manual_seed(0)  # the same positions are dropped each time, so that the loss is a function
        logged = made.training_logit(served[log.item], log.batch, TASK)
        rows = functional.binary_cross_entropy_with_logits(logged, log.label.to(logged), reduction="none")
        value = (weight * rows).mean()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]  # as above
    return served.detach().double()
