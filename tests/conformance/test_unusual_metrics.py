"""Metrics that look unlike the shipped ones and keep the contract: no check may fail them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from wrong import Plain

from recdistill_core import Component
from recdistill_core.errors import DataError
from recdistill_core.registry import PluginRecord, Registered
from recdistill_core.testing import checks_for, run_check

Array = NDArray[Any]


class PerUser:
    """One number per user, averaged with one vote each; the log loss here."""

    higher_is_better = False

    def prepare(self, logit: Array, label: Array, user: Array) -> Callable[[Array], float]:
        if not len(logit) or not np.isfinite(logit).all() or not np.isin(label, (0, 1)).all():
            raise DataError("logits must be finite and labels 0 or 1")
        known = np.unique(user)
        of_user = np.array([self.one(logit[user == u], label[user == u]) for u in known])

        def evaluate(weights: Array) -> float:
            vote = weights[known] * np.isfinite(of_user)
            return float(vote @ np.nan_to_num(of_user) / vote.sum()) if vote.any() else math.nan

        return evaluate

    def one(self, logit: Array, label: Array) -> float:
        return float(np.mean(np.logaddexp(0, logit) - label * logit))


class Precision(PerUser):
    """Share of clicks among a user's rows above the median; 0 where there is no click, which is no gap but a value."""

    higher_is_better = True

    def one(self, logit: Array, label: Array) -> float:
        return float(label[logit >= np.median(logit)].mean())


class Recall(PerUser):
    """Share of a user's clicks above the median; not defined without one."""

    higher_is_better = True

    def one(self, logit: Array, label: Array) -> float:
        return float(label[logit >= np.median(logit)].sum() / label.sum()) if label.any() else math.nan


class BusyOnly(PerUser):
    """Leaves out users with fewer than five rows."""

    def one(self, logit: Array, label: Array) -> float:
        return super().one(logit, label) if len(logit) >= 5 else math.nan


class InFloat32(PerUser):
    """Works in torch and in single precision."""

    def one(self, logit: Array, label: Array) -> float:
        sides = torch.from_numpy(logit).float(), torch.from_numpy(label).float()
        return float(torch.nn.functional.binary_cross_entropy_with_logits(*sides))


class Accuracy(PerUser):
    """Share of rows on the right side of 0; defined for one class."""

    higher_is_better = True

    def one(self, logit: Array, label: Array) -> float:
        return float(((logit > 0) == (label > 0)).mean())


class Level(PerUser):
    """Distance of the mean prediction from 0.5: says nothing of the order of rows."""

    def one(self, logit: Array, label: Array) -> float:
        return float(abs(np.mean(1 / (1 + np.exp(-logit))) - 0.5))


class MeanLevel:
    """The mean prediction, against 0.4: the same however logits are exchanged between rows."""

    higher_is_better = False

    def prepare(self, logit: Array, label: Array, user: Array) -> Callable[[Array], float]:
        PerUser().prepare(logit, label, user)
        rows, total = np.bincount(user), np.bincount(user, weights=1 / (1 + np.exp(-logit)))
        return lambda weights: float(abs(weights @ total / (weights @ rows) - 0.4)) if weights.any() else math.nan


@pytest.mark.parametrize(
    "metric", [PerUser, Precision, Recall, BusyOnly, InFloat32, Accuracy, Level, MeanLevel], ids=lambda it: it.__name__
)
def test_a_legal_metric_passes(metric: type[Any]) -> None:
    def build(config: Any, context: Any) -> Any:
        return metric()

    component = Component("unusual", Plain, build, "Unusual", api_version=1)
    entry = Registered("metric", component, PluginRecord("unusual", "rd-unusual", "1.0", module="recdistill_metrics"))
    outcomes = [run_check(entry, check) for check in checks_for(entry)]
    assert {(found.check.name, found.detail) for found in outcomes if found.status == "failed"} == set()
