"""Exporter ``torch_export``: a served student as one ``.pt2`` file that torch reads without recdistill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl


@dataclass(frozen=True)
class TorchExportConfig:
    """Configuration of :class:`recdistill_export.torch_export.TorchExport`.

    Attributes:
        tolerance: largest absolute difference of a logit from the module's own, > 0.
    """

    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {self.tolerance}")


def build(config: TorchExportConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_export.torch_export.TorchExport`."""
    from recdistill_export.torch_export import TorchExport

    return TorchExport(config.tolerance)


@hookimpl
def recdistill_exporters() -> list[Component]:
    """``torch_export``."""
    summary = "One .pt2 file for torch.export.load"
    return [
        Component("torch_export", TorchExportConfig, build, summary, example={"tolerance": 1e-4}, api_version=1),
    ]
