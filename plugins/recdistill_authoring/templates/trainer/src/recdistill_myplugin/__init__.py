"""Registers the trainer ``my-plugin``; Lightning is imported in ``build`` and not before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Trainer


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.trainer.MyPluginTrainer`.

    Attributes:
        clip: norm to which the gradient of a step is clipped, > 0 and finite.
        accelerator: as for ``lightning.Trainer``.
    """

    clip: float = 1.0
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be > 0 and finite, got {self.clip}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> Trainer:
    """The trainer :class:`recdistill_myplugin.trainer.MyPluginTrainer`."""
    from recdistill_myplugin.trainer import MyPluginTrainer

    return MyPluginTrainer(config)


@rd.hookimpl
def recdistill_trainers() -> list[rd.Component]:
    """The trainer ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "lightning.Trainer that clips gradients and leaves a profile",
            example={"clip": 0.5, "accelerator": "cpu"},
            api_version=1,
        )
    ]
