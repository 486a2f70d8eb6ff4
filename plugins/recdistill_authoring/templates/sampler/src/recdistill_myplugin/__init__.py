"""Registers the sampler ``my-plugin``; numpy is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Sampler


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.sampler.MyPluginSampler`.

    Attributes:
        half_life_days: an example so much older than the newest one is half as likely to be drawn, > 0.
    """

    half_life_days: float = 7.0

    def __post_init__(self) -> None:
        if not self.half_life_days > 0:
            raise ValueError(f"half_life_days must be > 0, got {self.half_life_days}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> Sampler:
    """The sampler :class:`recdistill_myplugin.sampler.MyPluginSampler`."""
    from recdistill_myplugin.sampler import MyPluginSampler

    return MyPluginSampler(config)


@rd.hookimpl
def recdistill_samplers() -> list[rd.Component]:
    """The sampler ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Recent examples rather than old ones",
            example={"half_life_days": 0.05},
            api_version=1,
        )
    ]
