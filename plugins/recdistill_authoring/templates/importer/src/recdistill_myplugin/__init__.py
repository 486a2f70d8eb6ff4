"""Registers the importer ``my-plugin``; pyarrow is imported in ``build`` and not before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import Importer


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.importer.MyPluginImporter`.

    Attributes:
        path: a file of JSON lines.
        batch_rows: rows read at a time, >= 1.
    """

    path: str
    batch_rows: int = 10_000

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a file of JSON lines")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows must be >= 1, got {self.batch_rows}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> Importer:
    """The importer :class:`recdistill_myplugin.importer.MyPluginImporter`."""
    from recdistill_myplugin.importer import MyPluginImporter

    return MyPluginImporter(config)


def example(folder: Path) -> Mapping[str, object]:
    """Settings for the conformance kit, with a small log in the ``folder`` that the kit gives."""
    rows = [{"user": n % 5, "item": f"i{n % 7}", "ts": 1_700_000_000 + n, "click": n % 3 % 2} for n in range(60)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(folder / "log.jsonl"), "batch_rows": 25}


@rd.hookimpl
def recdistill_importers() -> list[rd.Component]:
    """The importer ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Impressions as JSON lines: user, item, ts, click",
            example=example,
            api_version=1,
        )
    ]
