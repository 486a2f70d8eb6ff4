"""Schemas and batches for the tests of the HSTU teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recdistill_core.batch import Batch, History
from recdistill_core.schema import Categorical, EventField, Schema
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout
from recdistill_hstu.teacher import HSTUTeacher

START = 1_700_000_000_000
SCHEMA = Schema(
    tasks=("click", "like"),
    categorical=(
        Categorical("author_id", "author", "item"),
        Categorical("user_segment", "segment", "user"),
        Categorical("tab", "tab", "context"),
        Categorical("category", "category", "item"),
    ),
    numeric=("age", "ctr"),
    events=(EventField("item", "item_id"), EventField("author", "author"), EventField("tab", "tab")),
    actions=("click", "like", "share"),
    vocabularies={"item_id": 50, "author": 11, "tab": 4, "segment": 5, "category": 6},
)
SIZES = {"author": 11, "segment": 5, "tab": 4, "category": 6}


def make_batch(lengths: Sequence[int], rows: Sequence[tuple[int, int]], seed: int = 0) -> Batch:
    """A batch with histories of ``lengths`` and one row per ``(history, row_end)``."""
    draw = torch.Generator().manual_seed(seed)

    def ids(high: int, count: int) -> Tensor:
        return torch.randint(0, high, (count,), generator=draw)

    total, count = sum(lengths), len(rows)
    gaps = torch.exp(torch.rand(total, generator=draw) * 18).long()
    parts = [part.cumsum(0) for part in gaps.split(list(lengths))] if lengths else [gaps]
    time = START + torch.cat(parts)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    owner = torch.tensor([history for history, _ in rows], dtype=torch.long)
    end = torch.tensor([end for _, end in rows], dtype=torch.long)
    newest = (offsets[owner] + end - 1).clamp(min=0)
    last = torch.where(end > 0, time[newest], START) if total else torch.full((count,), START)
    return Batch(
        example_id=torch.arange(count),
        request_id=torch.arange(count),
        user_id=owner,
        item_id=ids(50, count),
        event_time=last + ids(10**8, count) + 1,
        categorical=torch.stack([ids(SIZES[entry.vocabulary], count) for entry in SCHEMA.categorical], 1),
        numeric=torch.randn(count, 2, generator=draw),
        labels={task: ids(2, count).float() for task in SCHEMA.tasks},
        observed={task: torch.ones(count, dtype=torch.bool) for task in SCHEMA.tasks},
        history=History(
            events={
                "item": ids(50, total),
                "author": ids(11, total),
                "tab": ids(4, total),
                "action": ids(8, total),
                "time": time,
            },
            offsets=offsets,
            row_to_history=owner,
            row_end=end,
        ),
    )


def asked_only(layout: Layout, chosen: Tensor) -> Layout:
    """``layout`` with only the tokens at ``chosen``, ascending places among those that it asks for."""
    kept = {name: getattr(layout, name)[chosen] for name in ("token", "history", "visible", "position", "time")}
    return replace(layout, **kept, num_rows=int((chosen >= layout.asked_events).sum()))


def small_config(**changes: object) -> HSTUConfig:
    """Small sizes, with ``changes``."""
    plain: dict[str, object] = {
        "width": 16,
        "heads": 2,
        "max_length": 40,
        "history_stride": 8,
        "context_width": 4,
        "hidden": (16, 8),
        "cross_rank": 8,
    }
    return HSTUConfig(**(plain | changes))  # type: ignore[arg-type]  # a table of test cases


def make_teacher(config: HSTUConfig, seed: int = 0, *, double: bool = True) -> HSTUTeacher:
    """A teacher whose biases and embeddings are large enough to matter; float64 unless told otherwise."""
    torch.manual_seed(seed)
    teacher = HSTUTeacher(config, SCHEMA, SCHEMA.tasks)
    with torch.no_grad():
        teacher.tokens.table.weight.mul_(20)
        for name, weight in teacher.named_parameters():
            if ".bias." in name:
                weight.normal_()
            if name.endswith("project.weight"):
                weight.uniform_(-0.3, 0.3)  # queries and keys start alike; a test must tell them apart
    return teacher.double() if double else teacher
