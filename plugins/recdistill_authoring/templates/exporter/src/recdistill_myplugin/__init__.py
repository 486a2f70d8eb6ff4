"""Registers the exporter ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Exporter


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.exporter.MyPluginExporter`.

    Attributes:
        tolerance: largest absolute difference of a logit from the module's own, > 0.
    """

    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {self.tolerance}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> Exporter:
    """The exporter :class:`recdistill_myplugin.exporter.MyPluginExporter`."""
    from recdistill_myplugin.exporter import MyPluginExporter

    return MyPluginExporter(config)


@rd.hookimpl
def recdistill_exporters() -> list[rd.Component]:
    """The exporter ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "A folder with a torch.export archive and a signature in JSON",
            example={"tolerance": 1e-4},
            api_version=1,
        )
    ]
