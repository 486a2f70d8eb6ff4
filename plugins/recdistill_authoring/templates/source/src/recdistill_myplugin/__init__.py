"""Registers the source ``my-plugin``; torch and pyarrow are imported in ``build`` and not before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import recdistill_core as rd

if TYPE_CHECKING:
    from recdistill_core.interfaces import SampleSource


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.source.MyPluginSource`.

    Attributes:
        path: the dataset's folder, as ``recdistill data import`` made it.
        rows: number of rows from the start of the log, >= 1.
    """

    path: str
    rows: int = 100_000

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a dataset folder")
        if self.rows < 1:
            raise ValueError(f"rows must be >= 1, got {self.rows}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> SampleSource:
    """The source :class:`recdistill_myplugin.source.MyPluginSource`."""
    from recdistill_myplugin.source import MyPluginSource

    return MyPluginSource(config)


def example(folder: Path) -> Mapping[str, object]:
    """Settings for the conformance kit, with a simulated dataset in the ``folder`` that the kit gives."""
    from recdistill_parquet.dataset_writer import write_dataset

    feed = {"name": "simulator", "users": 20, "items": 30, "impressions": 240, "history_length": 5}
    write_dataset(rd.make(rd.installed(), "importer", feed).open(), folder / "dataset")
    return {"path": str(folder / "dataset"), "rows": 200}


@rd.hookimpl
def recdistill_sources() -> list[rd.Component]:
    """The source ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "The first rows of a dataset",
            example=example,
            api_version=1,
        )
    ]
