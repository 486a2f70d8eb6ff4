"""How to state that a check catches a component that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdistill_core import BuildContext, Component
from recdistill_core.registry import PluginRecord, Registered


@dataclass(frozen=True)
class Plain:
    """No settings."""


@dataclass(frozen=True)
class Wrong:
    """A component that breaks one check.

    Attributes:
        check: name of the check. entry: the component. fault: what the message must hold.
    """

    check: str
    entry: Registered
    fault: str


def wrong(
    check: str,
    kind: str,
    build: Callable[[Any, BuildContext], Any],
    fault: str,
    *,
    config: type[Any] = Plain,
    example: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None = None,
    summary: str = "Wrong on purpose",
    module: str = "",
    **more: Any,
) -> Wrong:
    """A component of ``kind`` named ``wrong`` that must fail ``check`` with ``fault`` in the message."""
    component = Component("wrong", config, build, summary, example or {}, api_version=1, **more)
    return Wrong(check, Registered(kind, component, PluginRecord("wrong", "rd-wrong", "1.0", module=module)), fault)
