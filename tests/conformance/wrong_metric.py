"""Metrics that break what a metric must keep, each as an author might."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from wrong import Wrong, wrong

from recdistill_core.errors import DataError

Array = NDArray[Any]
Evaluate = Callable[[Array], Any]


class Brier:
    """Mean squared error of the probability. Subclasses change one thing."""

    higher_is_better: Any = False

    def prepare(self, logit: Array, label: Array, user: Array) -> Evaluate:
        self.check(logit, label)
        return self.evaluate(self.each(logit, label), user)

    def check(self, logit: Array, label: Array) -> None:
        if not len(logit) or not np.isfinite(logit).all() or not np.isin(label, (0, 1)).all():
            raise DataError("logits must be finite and labels 0 or 1")

    def each(self, logit: Array, label: Array) -> Array:
        return (1 / (1 + np.exp(-logit)) - label) ** 2

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        rows, total = np.bincount(user), np.bincount(user, weights=each)
        return lambda weights: self.ratio(float(weights @ total), float(weights @ rows))

    def ratio(self, total: float, rows: float) -> Any:
        return total / rows if rows > 0 else math.nan


class NumpyScalar(Brier):
    """Leaves its answer in numpy."""

    def ratio(self, total: float, rows: float) -> Any:
        return np.float32(super().ratio(total, rows))


class InPlace(Brier):
    """Saves an array."""

    def each(self, logit: Array, label: Array) -> Array:
        logit *= -1
        return (1 / (1 + np.exp(logit)) - label) ** 2


class EatsWeights(Brier):
    """Normalises the weights where they are."""

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        inner = super().evaluate(each, user)

        def evaluate(weights: Array) -> float:
            weights /= len(weights) + 1
            return inner(weights)  # type: ignore[no-any-return]  # a float

        return evaluate


class Spread(Brier):
    """Needs two users to have a variance."""

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        inner = super().evaluate(each, user)
        if user.max() == 0:
            raise ZeroDivisionError("no degree of freedom")
        return inner


class Pairs(Brier):
    """P(click scored above non-click), with ties as wins of whichever comes later."""

    higher_is_better: Any = True

    def prepare(self, logit: Array, label: Array, user: Array) -> Evaluate:
        self.check(logit, label)
        order = np.argsort(logit, kind="stable")
        label, user = label[order], user[order]

        def evaluate(weights: Array) -> float:
            mass = weights[user] * (1 - label)
            clicks = weights[user] * label
            pairs = clicks.sum() * mass.sum()
            return float((clicks * np.cumsum(mass)).sum() / pairs) if pairs > 0 else self.undefined()

        return evaluate

    def undefined(self) -> float:
        return math.nan


class HalfIfUndefined(Pairs):
    """Takes chance for the value of what has none."""

    def undefined(self) -> float:
        return 0.5


class ChanceForOneClass(Pairs):
    """As above, but for a log in which somebody was drawn."""

    def prepare(self, logit: Array, label: Array, user: Array) -> Evaluate:
        inner = super().prepare(logit, label, user)
        return lambda weights: 0.5 if weights.any() and math.isnan(inner(weights)) else inner(weights)


class BusyUsers(Brier):
    """Takes the weights in the order of the users' rows."""

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        busiest = np.argsort(-np.bincount(user), kind="stable")
        return super().evaluate(each, np.argsort(busiest)[user])


class Unweighted(Brier):
    """Weighs the numerator and counts plain rows below."""

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        total = np.bincount(user, weights=each)
        return lambda weights: self.ratio(float(weights @ total), len(each) * float(np.mean(weights)))


class Presence(Brier):
    """Takes a weight for a sign that the user was drawn."""

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        inner = super().evaluate(each, user)
        return lambda weights: inner((weights > 0).astype(float))


class PerRow(Brier):
    """Divides by the rows of the log, not by those drawn."""

    def evaluate(self, each: Array, user: Array) -> Evaluate:
        total = np.bincount(user, weights=each)
        return lambda weights: self.ratio(float(weights @ total), len(each))


class Smoothed(Brier):
    """Keeps the denominator off 0 by a constant."""

    def ratio(self, total: float, rows: float) -> Any:
        return total / (rows + 1e-9)


class Dividing(Brier):
    """Divides by what may be 0."""

    def ratio(self, total: float, rows: float) -> Any:
        return total / rows


class Odds(Brier):
    """Sum of probabilities over clicks, infinite without a click."""

    def prepare(self, logit: Array, label: Array, user: Array) -> Evaluate:
        self.check(logit, label)
        clicks, total = np.bincount(user, weights=label), np.bincount(user, weights=1 / (1 + np.exp(-logit)))

        def evaluate(weights: Array) -> float:
            below = float(weights @ clicks)
            return float(weights @ total) / below if below else math.inf if weights.any() else math.nan

        return evaluate


class Gullible(Brier):
    """Checks nothing."""

    def check(self, logit: Array, label: Array) -> None:
        return


class TakesEmpty(Brier):
    """Checks the values of the rows, however many."""

    def check(self, logit: Array, label: Array) -> None:
        if len(logit):
            super().check(logit, label)


class Asserting(Brier):
    """Checks with an error of its own."""

    def check(self, logit: Array, label: Array) -> None:
        if not np.isfinite(logit).all():
            raise ValueError("not finite")
        super().check(logit, label)


class BackToFront(Brier):
    """Copied from a metric of the other direction."""

    higher_is_better: Any = True


class Directionless(Brier):
    """Leaves the direction for later."""

    higher_is_better: Any = None


def case(check: str, metric: Callable[[], Any], fault: str) -> Wrong:
    return wrong(check, "metric", lambda config, context: metric(), fault)


ORDER, REPEATED = "the_order_of_rows_does_not_matter", "weights_are_repeated_users"
WRONG = [
    case("it_gives_a_float", NumpyScalar, "returns a numpy.float32; return float(value)"),
    case("it_gives_a_float", InPlace, "changes the array logit"),
    case("it_gives_a_float", EatsWeights, "changes the weights that it is given"),
    case("it_gives_a_float", Spread, "fails on 30 rows of 1 users (ZeroDivisionError"),
    case(ORDER, Pairs, "for shuffled rows and"),
    case(ORDER, BusyUsers, "when users are numbered otherwise"),
    case(REPEATED, Unweighted, "for a log with so many copies of each user"),
    case(REPEATED, Presence, "for a log with so many copies of each user"),
    case("only_ratios_of_weights_count", PerRow, "for weights three times as large"),
    case("undefined_is_nan", Smoothed, "gives 0 where all weights are 0"),
    case("undefined_is_nan", Dividing, "raises ZeroDivisionError where all weights are 0"),
    case("undefined_is_nan", Odds, "gives inf where all labels are alike"),
    case("undefined_is_nan", HalfIfUndefined, "gives 0.5 where all weights are 0"),
    case(
        "undefined_is_nan",
        ChanceForOneClass,
        "gives 0.5 for clicks alone, for non-clicks alone and whatever the logits",
    ),
    case("bad_input_is_refused", Gullible, "takes a logit of nan"),
    case("bad_input_is_refused", TakesEmpty, "takes no rows"),
    case("bad_input_is_refused", Asserting, "raises ValueError for a logit of nan"),
    case("its_direction_is_true", BackToFront, "says higher_is_better = True and prefers random logits"),
    case("its_direction_is_true", Directionless, "has higher_is_better = None"),
]
