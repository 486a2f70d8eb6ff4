"""A schema, batches and plugins on disk for the tests of the core and of the students."""

from __future__ import annotations

import importlib.metadata
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recdistill_core import Batch, BuildContext, History, Schema, TeacherSignal
from recdistill_core.config import make
from recdistill_core.registry import installed
from recdistill_core.schema import Categorical, EventField, KeepRates

SCHEMA = Schema(
    tasks=("click", "like"),
    categorical=(
        Categorical("item_id", "item_id", "item"),
        Categorical("author", "author", "item"),
        Categorical("last_author", "author", "user"),
        Categorical("tab", "tab"),
    ),
    numeric=("age", "price"),
    events=(EventField("item", "item_id"), EventField("author", "author")),
    actions=("click", "like"),
    vocabularies={"item_id": 20, "author": 7, "tab": 4},
    keep_rates={"click": KeepRates(0.8, 0.1)},
    gives=("position", "propensity"),
)
LENGTHS = (5, 0, 9)


def component(kind: str, name: str, **values: Any) -> Any:
    """An installed component of the schema, for the task click."""
    return make(installed(), kind, {"name": name, **values}, BuildContext(SCHEMA, ("click",)))


def make_batch(rows: int = 8, seed: int = 0) -> Batch:
    """Rows over three histories of 5, 0 and 9 events; teacher labels on two of three rows; one label unobserved."""
    draw = torch.Generator().manual_seed(seed)

    def ids(high: int, count: int = rows) -> Tensor:
        return torch.randint(0, high, (count,), generator=draw)

    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    total = int(offsets[-1])
    owner = torch.arange(rows) % len(LENGTHS)
    end = (torch.rand(rows, generator=draw) * (torch.tensor(LENGTHS)[owner] + 1)).long()
    categorical = torch.stack([ids(SCHEMA.vocabulary_size(entry.vocabulary)) for entry in SCHEMA.categorical], 1)
    valid = torch.arange(rows) % 3 != 0
    return Batch(
        example_id=torch.arange(rows),
        request_id=torch.arange(rows) // 2,
        user_id=owner,
        item_id=categorical[:, 0],
        event_time=torch.arange(rows) * 1000 + 10**12,
        categorical=categorical,
        numeric=torch.randn(rows, 2, generator=draw),
        labels={task: ids(2).float() for task in SCHEMA.tasks},
        observed={task: torch.arange(rows) != 1 for task in SCHEMA.tasks},
        history=History(
            events={
                "item": ids(20, total),
                "author": ids(7, total),
                "action": ids(4, total),
                "time": torch.arange(total) + 10**11,
            },
            offsets=offsets,
            row_to_history=owner,
            row_end=end,
        ),
        position=ids(10),
        propensity=0.05 + 0.9 * torch.rand(rows, generator=draw),
        keep_rates={"click": (0.8, 0.1), "like": (1.0, 1.0)},
        teacher=TeacherSignal(
            logits={task: torch.randn(rows, generator=draw) for task in SCHEMA.tasks},
            valid=dict.fromkeys(SCHEMA.tasks, valid),
            version="v1",
            scored_at=torch.arange(rows) + 10**12,
        ),
    )


PLUGIN_HEAD = """
import sys
from dataclasses import dataclass
import recdistill_core as rd

@dataclass(frozen=True)
class Config:
    margin: float = 1.0

def loss(name, **more):
    return rd.Component(name, Config, lambda config, context: None, "a loss", **{"api_version": 1, **more})
"""


def write_plugin(folder: Path, name: str, body: str, *, distribution: str = "", value: str = "") -> None:
    """A distribution in ``folder`` with one entry point ``name`` and a module ``fake_<name>`` that holds ``body``."""
    project = distribution or f"rd-{name}"
    (folder / f"fake_{name}.py").write_text(PLUGIN_HEAD + textwrap.dedent(body))
    info = folder / f"{project.replace('-', '_')}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
    with (info / "entry_points.txt").open("a") as stream:
        if stream.tell() == 0:
            stream.write("[recdistill]\n")
        stream.write(f"{name} = {value or f'fake_{name}'}\n")


def points(folder: Path) -> list[importlib.metadata.EntryPoint]:
    """The entry points of the distributions in ``folder``."""
    found = importlib.metadata.distributions(path=[str(folder)])
    return [point for distribution in found for point in distribution.entry_points]
