"""Debiasers that look unlike the shipped ones and keep the contract: no check may fail them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wrong import Plain

from recdistill_core import Batch, Component
from recdistill_core.interfaces import Debiaser
from recdistill_core.registry import PluginRecord, Registered
from recdistill_core.testing import checks_for, run_check


class Recency(Debiaser):
    """Older rows count less; the newest time is shared by the tasks, which are fitted on the same rows."""

    newest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("newest", torch.zeros((), dtype=torch.long))

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        for batch in batches:
            self.newest.fill_(max(int(self.newest), int(batch.event_time.max())))

    def weight(self, batch: Batch, task: str) -> Tensor:
        return torch.exp2((batch.event_time - self.newest).clamp(max=0) / 3_600_000)


class ClassWeights(Debiaser):
    """Weighs rows by the inverse keep rate of their class instead of correcting logits."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        assert batch.keep_rates is not None
        positive, negative = batch.keep_rates[task]
        return torch.where(batch.labels[task] == 1, 1 / positive, 1 / negative)


class LogitAdjustment(Debiaser):
    """Learns the labels as they were logged, from a served logit that is already one of the world."""

    def training_offset(self, batch: Batch, task: str) -> Tensor | None:
        assert batch.keep_rates is not None
        positive, negative = batch.keep_rates[task]
        return torch.full((len(batch),), math.log(positive / negative)) if self.training else None

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        offset = self.training_offset(batch, task)
        return logit if offset is None else logit + offset.to(logit)


class DeepTower(Debiaser):
    """A small network of the position, with dropout, from a random start."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(8, 4)
        self.top = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        if not self.training:
            return logit
        assert batch.position is not None
        return logit + self.top(self.places(batch.position.clamp(max=7)))[:, 0].to(logit)


class Running(Debiaser):
    """Divides by a mean weight that goes on moving in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def weight(self, batch: Batch, task: str) -> Tensor:
        assert batch.propensity is not None
        weight = 1 / batch.propensity.clamp(min=0.02)
        if self.training:
            self.mean.lerp_(weight.mean(), 0.001)
        return weight / self.mean


class Capped(Debiaser):
    """Takes logits beyond 8 for 8, and lets the order there go."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return logit.clamp(-8, 8)


class Folded(Debiaser):
    """Corrects by a curve that falls, and says so."""

    monotone = False

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return -logit


CASES = [
    (Recency, ""),
    (ClassWeights, "keep_rates"),
    (LogitAdjustment, "keep_rates"),
    (DeepTower, "position"),
    (Running, "propensity"),
    (Capped, ""),
    (Folded, ""),
]


@pytest.mark.parametrize(("debiaser", "need"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_legal_debiaser_passes(debiaser: type[Debiaser], need: str) -> None:
    def build(config: Any, context: Any) -> Debiaser:
        return debiaser()

    needs = frozenset({need} if need else set())
    component = Component("unusual", Plain, build, "Unusual", needs=needs, api_version=1)
    entry = Registered("debiaser", component, PluginRecord("unusual", "rd-unusual", "1.0", module="recdistill_ipw"))
    outcomes = [run_check(entry, check) for check in checks_for(entry)]
    assert {(found.check.name, found.detail) for found in outcomes if found.status == "failed"} == set()
