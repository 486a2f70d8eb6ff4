"""Registers the head strategy ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import recdistill_core as rd


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.strategy.MyPluginStrategy`.

    Attributes:
        weight: of the distillation loss beside the task loss, >= 0 and finite.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be >= 0 and finite, got {self.weight}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> rd.HeadStrategy:
    """The strategy :class:`recdistill_myplugin.strategy.MyPluginStrategy`."""
    from recdistill_myplugin.strategy import MyPluginStrategy

    return MyPluginStrategy(config)


@rd.hookimpl
def recdistill_strategies() -> list[rd.Component]:
    """The strategy ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Main tower on hard labels, auxiliary tower on soft labels alone",
            example={"weight": 2.0},
            needs=frozenset({"teacher"}),
            api_version=1,
        )
    ]
