"""Registers the debiaser ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass

import recdistill_core as rd


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.debiaser.MyPluginDebiaser`.

    Attributes:
        clip: propensities below it count as it, in (0, 1]; no weight is larger than ``1 / clip``.
    """

    clip: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1:
            raise ValueError(f"clip must lie in (0, 1], got {self.clip}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> rd.Debiaser:
    """The debiaser :class:`recdistill_myplugin.debiaser.MyPluginDebiaser`."""
    from recdistill_myplugin.debiaser import MyPluginDebiaser

    return MyPluginDebiaser(config)


@rd.hookimpl
def recdistill_debiasers() -> list[rd.Component]:
    """The debiaser ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Weights rows by 1 / propensity, clipped",
            example={"clip": 0.02},
            needs=frozenset({"propensity"}),
            api_version=1,
        )
    ]
