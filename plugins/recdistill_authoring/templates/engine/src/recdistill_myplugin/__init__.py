"""Registers the engine ``my-plugin``; what it needs is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Engine


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.engine.MyPluginEngine`.

    Attributes:
        workers: threads that do blocks, >= 1.
    """

    workers: int = 4

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> Engine:
    """The engine :class:`recdistill_myplugin.engine.MyPluginEngine`."""
    from recdistill_myplugin.engine import MyPluginEngine

    return MyPluginEngine(config)


@rd.hookimpl
def recdistill_engines() -> list[rd.Component]:
    """The engine ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "In threads of this process",
            example={"workers": 3},
            api_version=1,
        )
    ]
