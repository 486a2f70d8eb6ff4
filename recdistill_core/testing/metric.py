"""Checks for metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recdistill_core.errors import DataError
from recdistill_core.testing.cases import Case, NotApplicable, check, exercise
from recdistill_core.testing.samples import TASK

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Relative; float64 is finer, but a metric may do part of its work in float32.
TOLERANCE = 1e-5
USERS = 20


@dataclass(frozen=True)
class Log:
    """``logit [N]`` before the sigmoid with many ties, ``label [N]`` of 0 and 1, ``user [N]`` in ``[0, U)``."""

    logit: Tensor
    label: Tensor
    user: Tensor

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """New arrays of the types that ``prepare`` is given."""
        logit, label, user = (column.clone().cpu() for column in (self.logit.double(), self.label.double(), self.user))
        return logit.numpy(), label.numpy(), user.numpy()

    def at(self, rows: Tensor) -> Log:
        """The rows ``rows [M]``."""
        return Log(self.logit[rows], self.label[rows], self.user[rows])

    @property
    def users(self) -> int:
        """``U``, as a run counts them: every user has a row."""
        return int(self.user.max()) + 1


def sample_log(rows: int = 400, users: int = USERS) -> Log:
    """Clicks drawn from the logits themselves; some users are busy and some have a row or two."""
    draw = torch.Generator().manual_seed(8)
    logit = (4 * torch.randn(rows, generator=draw)).round() / 4
    label = (torch.rand(rows, generator=draw) < torch.sigmoid(logit)).double()
    user = (users * torch.rand(rows, generator=draw) ** 2).long()
    user[:users] = torch.arange(users)
    return Log(logit.double(), label, user)


def value(case: Case, log: Log, weights: Tensor | None = None) -> float:
    """The metric of a log for user weights ``[U]``, ones where None, by a new object."""
    evaluate = case.build().prepare(*log.arrays())
    weights = torch.ones(log.users) if weights is None else weights
    return float(evaluate(weights.double().clone().numpy()))


def same(one: float, other: float) -> bool:
    """Equal up to rounding; NaN equals NaN."""
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def multiplicities(users: int) -> Tensor:
    """How often a bootstrap draws each user ``[U]``, 0 to 3 times."""
    return torch.randint(4, (users,), generator=torch.Generator().manual_seed(9)).double()


@exercise("metric")
def run_metric(case: Case, made: Any) -> Mapping[str, Any]:
    """The plain value and one resample, on the sample batch."""
    batch = case.batch()
    assert batch.teacher is not None
    user = torch.unique(batch.user_id, return_inverse=True)[1]
    log = Log(batch.teacher.logits[TASK], batch.labels[TASK], user)
    evaluate = made.prepare(*log.arrays())
    draws = (torch.ones(log.users), multiplicities(log.users))
    return {name: evaluate(draw.double().numpy()) for name, draw in zip(("plain", "resampled"), draws, strict=True)}


@check("metric")
def it_gives_a_float(case: Case) -> None:
    """The answer is a Python float, also for one user and for one row, and no array given is changed."""
    for log in (sample_log(), sample_log(rows=30, users=1), sample_log(rows=1, users=1)):
        made, given, kept = case.build(), log.arrays(), log.arrays()
        try:
            evaluate, weights = made.prepare(*given), torch.ones(log.users).double().numpy()
            found = evaluate(weights)
        except Exception as error:
            rows = len(log.logit)
            case.fail(
                f"fails on {rows} rows of {log.users} users ({type(error).__name__}: {error}); NaN says undefined"
            )
        kind = f"{type(found).__module__}.{type(found).__name__}".removeprefix("builtins.")
        case.require(type(found) is float, f"returns a {kind}; return float(value), which YAML and JSON can write")
        for name, before, after in zip(("logit", "label", "user"), kept, given, strict=True):
            case.require(bool((before == after).all()), f"changes the array {name} that it is given; work on a copy")
        case.require(bool((weights == 1).all()), "changes the weights that it is given; work on a copy")


@check("metric")
def the_order_of_rows_does_not_matter(case: Case) -> None:
    """Shuffled rows and renumbered users give the same value, with ties among the logits."""
    log, weights = sample_log(), multiplicities(USERS)
    wanted = value(case, log, weights)
    draw = torch.Generator().manual_seed(10)
    for _ in range(5):
        shuffled = value(case, log.at(torch.randperm(len(log.logit), generator=draw)), weights)
        case.require(
            same(shuffled, wanted),
            f"gives {shuffled:.6g} for shuffled rows and {wanted:.6g} before; count ties half, or average over them",
        )
    number = torch.randperm(USERS, generator=draw)
    renumbered = value(
        case, replace(log, user=number[log.user]), torch.empty(USERS).scatter(0, number, weights.float())
    )
    case.require(
        same(renumbered, wanted),
        f"gives {renumbered:.6g} when users are numbered otherwise and {wanted:.6g} before; weights[u] is user u's",
    )


@check("metric")
def weights_are_repeated_users(case: Case) -> None:
    """An integer weight is so many copies of the user: evaluating with it equals preparing the log with the copies."""
    log, weights = sample_log(), multiplicities(USERS)
    copies = [
        replace(log.at(torch.where(log.user == user)[0]), user=torch.full((int((log.user == user).sum()),), number))
        for number, user in enumerate(torch.arange(USERS).repeat_interleave(weights.long()).tolist())
    ]
    drawn = Log(*(torch.cat([getattr(copy, name) for copy in copies]) for name in ("logit", "label", "user")))
    wanted, found = value(case, drawn), value(case, log, weights)
    case.require(
        same(found, wanted),
        f"gives {found:.6g} for user weights of 0 to 3 and {wanted:.6g} for a log with so many copies of each user; "
        "intervals by bootstrap rest on the two being equal: every sum over rows takes the weights of the rows' users",
    )


@check("metric")
def only_ratios_of_weights_count(case: Case) -> None:
    """Weights three times as large, for all users alike, give the same value."""
    log, weights = sample_log(), multiplicities(USERS)
    once, thrice = value(case, log, weights), value(case, log, 3 * weights)
    case.require(
        same(once, thrice),
        f"gives {thrice:.6g} for weights three times as large and {once:.6g} before; divide by the sum of the weights, "
        "not by the number of rows",
    )


@check("metric")
def undefined_is_nan(case: Case) -> None:
    """Where no user has a weight, and where clicks or non-clicks alone say nothing, the value is NaN, no number."""
    log = sample_log()
    nobody = _tried(case, log, torch.zeros(USERS), "where all weights are 0")
    case.require(
        math.isnan(nobody),
        f"gives {nobody:g} where all weights are 0; return NaN, which is left out of intervals",
    )
    other = replace(log, logit=1 - 2 * log.logit.roll(1))
    found = [
        _tried(case, replace(rows, label=torch.full_like(log.label, label)), None, f"where every label is {label}")
        for rows in (log, other)
        for label in (0, 1)
    ]
    for each in found:
        case.require(not math.isinf(each), f"gives {each} where all labels are alike; return NaN where it is undefined")
    # What is defined for one class (log loss, say) depends on the class or on the logits.
    case.require(
        math.isnan(found[0]) or not all(same(found[0], each) for each in found),
        f"gives {found[0]:g} for clicks alone, for non-clicks alone and whatever the logits; "
        "return NaN where it is undefined",
    )


def _tried(case: Case, log: Log, weights: Tensor | None, when: str) -> float:
    try:
        return value(case, log, weights)
    except Exception as error:
        case.fail(f"raises {type(error).__name__} {when} ({error}); return NaN where the metric is undefined")


@check("metric")
def bad_input_is_refused(case: Case) -> None:
    """Logits that are not finite, labels other than 0 and 1, and empty input are a DataError, each by itself."""
    log = sample_log()
    spoilt = {f"a logit of {bad}": replace(log, logit=_with(log.logit, bad)) for bad in (math.nan, math.inf, -math.inf)}
    spoilt |= {f"a label of {bad}": replace(log, label=_with(log.label, bad)) for bad in (0.5, 2.0, -1.0, math.nan)}
    spoilt |= {"no rows": log.at(torch.arange(0))}
    for what, rows in spoilt.items():
        advice = "raise recdistill_core.errors.DataError, which says what, where and what to do"
        made, arrays = case.build(), rows.arrays()
        try:
            made.prepare(*arrays)
        except DataError:
            continue
        except Exception as error:
            case.fail(f"raises {type(error).__name__} for {what} ({error}); {advice}")
        case.fail(f"takes {what}, and would give a plausible wrong number; in prepare, {advice}")


def _with(column: Tensor, bad: float) -> Tensor:
    changed = column.clone()
    changed[7] = bad
    return changed


@check("metric")
def its_direction_is_true(case: Case) -> None:
    """On clicks drawn from known logits, these are not worse than the same logits in random order, beyond chance.

    The logits are only exchanged between rows, so that a metric of their level alone has nothing to say here. Chance is
    the spread of the difference over resampled users.
    """
    made, truth = case.build(), sample_log(rows=2_000, users=200)
    better = made.higher_is_better
    case.require(isinstance(better, bool), f"has higher_is_better = {better!r}; set it to True or False")
    draw = torch.Generator().manual_seed(12)
    exchanged = replace(truth, logit=truth.logit[torch.randperm(len(truth.logit), generator=draw)])
    evaluate = [case.build().prepare(*log.arrays()) for log in (truth, exchanged)]
    draws = [torch.bincount(torch.randint(200, (200,), generator=draw), minlength=200).double() for _ in range(40)]
    differences = [evaluate[0](weights.numpy()) - evaluate[1](weights.numpy()) for weights in draws]
    gains = torch.tensor([each for each in differences if math.isfinite(each)]).double() * (1 if better else -1)
    gain, spread = (float(gains.mean()), float(gains.std())) if len(gains) > 1 else (0.0, 0.0)
    if abs(gain) <= 5 * spread:
        raise NotApplicable("it does not tell true logits from the same ones in random order")
    case.require(
        gain > 0,
        f"says higher_is_better = {better} and prefers random logits to the true ones by {-gain:.3g}; turn it round",
    )
