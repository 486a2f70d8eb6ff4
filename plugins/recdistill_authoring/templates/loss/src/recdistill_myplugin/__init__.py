"""Registers the loss ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import recdistill_core as rd


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.loss.MyPluginLoss`.

    Attributes:
        delta: distance of two logits up to which the loss is quadratic, > 0 and finite.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise ValueError(f"delta must be > 0 and finite, got {self.delta}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> rd.DistillationLoss:
    """The loss :class:`recdistill_myplugin.loss.MyPluginLoss`."""
    from recdistill_myplugin.loss import MyPluginLoss

    return MyPluginLoss(config)


@rd.hookimpl
def recdistill_losses() -> list[rd.Component]:
    """The loss ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Huber distance between the logits of student and teacher",
            example={"delta": 0.5},
            api_version=1,
        )
    ]
