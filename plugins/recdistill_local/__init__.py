"""Engine ``local``: does a job's blocks in this process, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl


@dataclass(frozen=True)
class LocalConfig:
    """Configuration of :class:`recdistill_local.engine.LocalEngine`: there is nothing to set."""


def build(config: LocalConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_local.engine.LocalEngine`."""
    from recdistill_local.engine import LocalEngine

    return LocalEngine()


@hookimpl
def recdistill_engines() -> list[Component]:
    """``local``."""
    summary = "In this process, one block after the other"
    return [Component("local", LocalConfig, build, summary, api_version=1)]
