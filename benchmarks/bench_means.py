"""HSTU teacher: what checkpointing, semi-local attention, truncation and stochastic length cost and save in training.

python benchmarks/bench_means.py [--json]
"""

from __future__ import annotations

import json
import math
import time

import torch
from bench_teacher import ROWS_PER_USER, SCHEMA, batch_of, step
from reporting import GIVE_BACK, arguments, in_fresh_process, peak_megabytes, seconds, show
from torch import Tensor

from recdistill_core.batch import Batch, History
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.stochastic import area_for, expected_area, known, stochastic_length, thin
from recdistill_hstu.teacher import HSTUTeacher

LENGTH, LAYERS = 4096, 6
MEANS: dict[str, dict[str, object]] = {
    "none": {},
    "checkpointing: selective": {"checkpointing": "selective"},
    "checkpointing: full": {"checkpointing": "full"},
    "attend_recent 512, attend_oldest 128": {"attend_recent": 512, "attend_oldest": 128},
    "3 of 6 layers truncated to 512": {"truncate_layers": 3, "truncate_length": 512},
    "stochastic_length 1.7": {"stochastic_length": 1.7},
    "semi-local, truncated, selective": {
        "attend_recent": 512,
        "attend_oldest": 128,
        "truncate_layers": 3,
        "truncate_length": 512,
        "checkpointing": "selective",
    },
}
#: Simulated ranks of the table of loads, histories of each, and batches.
RANKS, USERS, BATCHES, LIMIT, ALPHA = 8, 16, 200, 8192, 1.7


def teacher_with(changes: dict[str, object]) -> HSTUTeacher:
    """Six layers of width 64 with 4 heads."""
    torch.manual_seed(0)
    sizes = {"max_length": LENGTH, "history_stride": LENGTH, "hidden": (64,), "context_width": 8, "layers": LAYERS}
    return HSTUTeacher(HSTUConfig(**(sizes | changes)), SCHEMA, SCHEMA.tasks).train()  # type: ignore[arg-type]  # a table of settings


def newest_rows() -> Batch:
    """One history with rows at its end."""
    return batch_of([LENGTH], [0] * ROWS_PER_USER, list(range(LENGTH - ROWS_PER_USER + 1, LENGTH + 1)))


def draws(teacher: HSTUTeacher, batch: Batch) -> list[tuple[float, int]]:
    """``(probability, seed)`` of what a step may draw: for stochastic length, a history left whole and one thinned."""
    alpha, history = teacher.config.stochastic_length, batch.history
    if not alpha or history is None:
        return [(1.0, 0)]
    seeds: dict[bool, int] = {}
    for seed in range(1000):
        torch.manual_seed(seed)
        found = stochastic_length(history, LENGTH, alpha)
        seeds.setdefault(int(found.lengths[0]) == LENGTH, seed)
    whole = LENGTH**alpha / int(known(history)[0]) ** 2
    return [(whole, seeds[True]), (1 - whole, seeds[False])]


def measured(name: str) -> dict[str, float]:
    """Expected CPU seconds and highest memory of a training step; called in a process of its own."""
    teacher = teacher_with(MEANS[name])
    step(teacher, batch_of([ROWS_PER_USER] * 2, [0, 1], [ROWS_PER_USER] * 2))  # libraries load, threads start
    batch = newest_rows()
    peak, total = 0.0, 0.0
    for share, seed in draws(teacher, batch):

        def once(seed: int = seed) -> None:
            torch.manual_seed(seed)
            step(teacher, batch)

        peak = max(peak, peak_megabytes(once))
        total += share * seconds(once, clock=time.process_time)
    return {"seconds": total, "peak": peak}


def loads() -> list[dict[str, object]]:
    """How far the most loaded rank is above the mean: the others wait for it. Loads are squares of lengths."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"none": [], "independent coins": [], "balanced": []}
    for batch in range(BATCHES):
        spread = torch.exp(math.log(1500) + torch.randn(RANKS, USERS, generator=draw))
        ranks = [row.long().clamp(min=20, max=LIMIT) for row in spread]
        torch.manual_seed(batch)
        area = LIMIT**ALPHA
        target = sum(expected_area(row, area) for row in ranks) / RANKS
        found["none"].append(imbalance([load(row) for row in ranks]))
        found["independent coins"].append(imbalance([load(thinned(row, area, balance=False)) for row in ranks]))
        even = [load(thinned(row, area_for(row, target), balance=True)) for row in ranks]
        found["balanced"].append(imbalance(even))
    mean = {name: sum(values) / BATCHES for name, values in found.items()}
    return [
        {"thinning": name, "largest load over mean": value, "throughput": mean["independent coins"] / value}
        for name, value in mean.items()
    ]


def thinned(lengths: Tensor, area: float, *, balance: bool) -> Tensor:
    """``[U]`` lengths after thinning."""
    none = torch.zeros(0, dtype=torch.long)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    time = torch.arange(int(offsets[-1]))
    return thin(History({"time": time}, offsets, none, none), area, balance=balance).lengths


def load(lengths: Tensor) -> float:
    """What attention over histories of ``lengths [U]`` costs."""
    return float(lengths.double().square().sum())


def imbalance(loads: list[float]) -> float:
    """Largest over mean."""
    return max(loads) * len(loads) / sum(loads)


def main() -> None:
    given = arguments(__doc__ or "")
    if given.child:
        print(json.dumps(measured(given.child[0])))
        return
    rows: list[dict[str, object]] = []
    first: dict[str, float] = {}
    for name in MEANS:
        found = in_fresh_process(__file__, name, environment=GIVE_BACK)
        first = first or found
        rows.append(
            {
                "means": name,
                "step, CPU s": found["seconds"],
                "peak, MB": found["peak"],
                "speed": first["seconds"] / found["seconds"],
                "memory": found["peak"] / first["peak"],
            }
        )
    tables = {
        f"Training step, one history of {LENGTH:,} events, rows at its end, {LAYERS} layers of width 64": rows,
        f"Load of {RANKS} ranks with {USERS} log-normal histories each (median 1,500, at most {LIMIT:,}), "
        f"stochastic length {ALPHA}, {BATCHES} batches": loads(),
    }
    show(tables, given.json)


if __name__ == "__main__":
    main()
