"""Components that break what every kind must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wrong import wrong

from recdistill_core import Batch, BuildContext
from recdistill_core.interfaces import Debiaser, DistillationLoss


class Loss(DistillationLoss):
    """Squared difference of logits."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return weight * (student_logit - teacher_logit).square()


class Undescribed(Loss):
    pass


class Noisy(Debiaser):
    """Weights that hang on a random number that no seed reaches."""

    drawn = 0

    def weight(self, batch: Batch, task: str) -> Tensor:
        Noisy.drawn += 1
        return torch.full((len(batch),), float(Noisy.drawn))


class Unseeded(Loss):
    """Starts from weights that no seed reaches."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Unseeded.made += 1
        self.scale = torch.nn.Parameter(torch.full((), float(Unseeded.made)))


class Mutating(Loss):
    """Scales the features in place, in the batch itself."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        batch.numeric.mul_(2.0)
        return super().forward(student_logit, teacher_logit, batch, weight)


class Moving(Loss):
    """Answers on another device."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight).to("meta")


class Forgets(Loss):
    """Adds zeros that are on the CPU."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight) + torch.zeros(len(batch))


class OnTheCPU(Debiaser):
    """Takes positions to the CPU, where the logit is not."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return logit + batch.position.cpu() if batch.position is not None else logit


class FromNumpy(Debiaser):
    """Weights that numpy made."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return torch.from_numpy(np.full(len(batch), 0.5)).to(torch.float32)


class ThroughNumpy(Debiaser):
    """Weights that numpy computed from a tensor wherever that is."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return torch.from_numpy(np.exp(-(batch.numeric.numpy()[:, 0] ** 2))).to(batch.numeric)


@dataclass(frozen=True)
class NeverEqual:
    """Settings that change each time they are read."""

    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {**self.names, f"read_{len(self.names)}": 1})


@dataclass(frozen=True)
class Undocumented:
    margin: float = 1.0


@dataclass(frozen=True)
class TakesAnything:
    """Settings with a field for the key that nobody has."""

    no_such_setting: int = 0


def build(config: Any, context: BuildContext) -> Any:
    return Loss()


def raises(config: Any, context: BuildContext) -> Any:
    raise RuntimeError("no weights at hand")


def wants_a_schema(config: Any, context: BuildContext) -> Any:
    return context.require_schema()


def not_a_loss(config: Any, context: BuildContext) -> Any:
    return torch.nn.Identity()


WRONG = [
    wrong("it_builds_from_its_example", "loss", raises, "RuntimeError: no weights at hand"),
    wrong("it_builds_from_its_example", "loss", not_a_loss, "lacks DistillationLoss"),
    wrong("it_builds_from_its_example", "metric", wants_a_schema, "this component needs a dataset's schema"),
    wrong("it_builds_from_its_example", "loss", build, "unknown key", example={"margn": 1.0}),
    wrong("it_says_what_it_is", "loss", build, "has no summary", summary=" "),
    wrong("it_says_what_it_is", "loss", build, "more than one line", summary="one\ntwo"),
    wrong("it_says_what_it_is", "loss", build, "has no docstring on Undocumented", config=Undocumented),
    wrong("it_says_what_it_is", "loss", lambda config, context: Undescribed(), "has no docstring on Undescribed"),
    wrong("config_survives_yaml", "loss", build, "has a config that YAML changes", config=NeverEqual),
    wrong("unknown_key_is_refused", "loss", build, "takes the unknown key", config=TakesAnything),
    wrong(
        "two_builds_under_one_seed_are_equal",
        "loss",
        lambda config, context: Unseeded(),
        "builds different weights under one seed: scale",
    ),
    wrong(
        "two_builds_under_one_seed_are_equal",
        "debiaser",
        lambda config, context: Noisy(),
        "answers differently under one seed",
    ),
    wrong(
        "the_batch_is_never_changed",
        "loss",
        lambda config, context: Mutating(),
        "changes the batch that it is given: numeric",
    ),
    wrong("data_stays_on_its_device", "loss", lambda config, context: Moving(), "answers on another device"),
    wrong(
        "data_stays_on_its_device",
        "loss",
        lambda config, context: Forgets(),
        "combines the batch's tensors with one on the CPU, from torch.zeros, in add; on a GPU",
    ),
    wrong(
        "data_stays_on_its_device",
        "debiaser",
        lambda config, context: OnTheCPU(),
        "combines the batch's tensors with one on the CPU, from Tensor.cpu, in add; on a GPU",
    ),
    wrong(
        "data_stays_on_its_device",
        "debiaser",
        lambda config, context: ThroughNumpy(),
        "turns a tensor of the batch into an array: numpy has no gradient and cannot read from a GPU",
    ),
    wrong(
        "data_stays_on_its_device",
        "debiaser",
        lambda config, context: FromNumpy(),
        "answers weight with a tensor on the CPU, from torch.from_numpy; on a GPU",
    ),
    wrong("importing_its_hooks_is_cheap", "loss", build, "which imports torch", module="torch.nn.functional"),
    wrong("importing_its_hooks_is_cheap", "loss", build, "ms; the limit is 50 ms", module="heavy_hooks"),
    wrong("importing_its_hooks_is_cheap", "loss", build, "comes from no entry point"),
]

#: name -> source of modules that must be importable while the checks run.
MODULES: Mapping[str, str] = {"heavy_hooks": "sum(i * i for i in range(3_000_000))\n"}
