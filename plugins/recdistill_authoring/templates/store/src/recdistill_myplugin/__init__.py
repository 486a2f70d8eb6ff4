"""Registers the logit store ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import LogitStore


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.store.MyPluginStore`.

    Attributes:
        path: folder of the store; made when the first label is committed.
        timeout: seconds to wait for another process's commit, > 0.
    """

    path: str
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a folder for the store")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be > 0, got {self.timeout}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> LogitStore:
    """The store :class:`recdistill_myplugin.store.MyPluginStore`."""
    from recdistill_myplugin.store import MyPluginStore

    return MyPluginStore(config)


def example(folder: Path) -> Mapping[str, object]:
    """Settings for the conformance kit; the store lies in the ``folder`` that the kit gives."""
    return {"path": str(folder / "labels")}


@rd.hookimpl
def recdistill_stores() -> list[rd.Component]:
    """The store ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Teacher logits in one SQLite file, a commit being one transaction",
            example=example,
            api_version=1,
        )
    ]
