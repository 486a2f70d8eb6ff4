"""Registers the metric ``my-plugin``; numpy is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Metric


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.metric.MyPluginMetric`.

    Attributes:
        min_rows: users with fewer impressions are left out, >= 1.
    """

    min_rows: int = 1

    def __post_init__(self) -> None:
        if self.min_rows < 1:
            raise ValueError(f"min_rows must be >= 1, got {self.min_rows}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> Metric:
    """The metric :class:`recdistill_myplugin.metric.MyPluginMetric`."""
    from recdistill_myplugin.metric import MyPluginMetric

    return MyPluginMetric(config)


@rd.hookimpl
def recdistill_metrics() -> list[rd.Component]:
    """The metric ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Log loss in nats, one vote per user; lower is better",
            example={"min_rows": 1},
            api_version=1,
        )
    ]
