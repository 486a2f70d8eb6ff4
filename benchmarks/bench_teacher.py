"""HSTU teacher on a CPU: one encoding per user against one per impression; chunked against reference attention; memory.

python benchmarks/bench_teacher.py [--json]

A step at 20,000 events on a GPU is measured by bench_step.py.
"""

from __future__ import annotations

import json

import torch
from reporting import GIVE_BACK, arguments, in_fresh_process, peak_megabytes, seconds, show

from recdistill_core.batch import Batch, History
from recdistill_core.schema import Categorical, EventField, Schema
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher

ITEMS, START, MINUTE = 10_000, 1_700_000_000_000, 60_000
ROWS_PER_USER = 20
SCHEMA = Schema(
    tasks=("click",),
    categorical=(Categorical("item_id", "item_id", "item"),),
    events=(EventField("item", "item_id"),),
    actions=("click",),
    vocabularies={"item_id": ITEMS},
)


def teacher_of(longest: int, backend: str = "chunked") -> HSTUTeacher:
    """Two layers of width 64 with 4 heads."""
    torch.manual_seed(0)
    config = HSTUConfig(max_length=longest, history_stride=longest, hidden=(64,), context_width=8, backend=backend)
    return HSTUTeacher(config, SCHEMA, SCHEMA.tasks)


def batch_of(lengths: list[int], owners: list[int], ends: list[int]) -> Batch:
    """Histories of ``lengths`` events a minute apart; one row per ``(owner, end)``.

    Item and action of an event depend on its place in the history alone, so equal prefixes are equal events.
    """
    place = torch.cat([torch.arange(length) for length in lengths])
    row_end = torch.tensor(ends)
    item = (row_end * 7919) % ITEMS
    events = {"item": (place * 31) % ITEMS, "action": place % 2, "time": START + place * MINUTE}
    history = History(events, torch.tensor([0, *lengths]).cumsum(0), torch.tensor(owners), row_end)
    ids = torch.arange(len(ends))
    seen = torch.ones(len(ends), dtype=torch.bool)
    return Batch(
        example_id=ids,
        request_id=ids,
        user_id=torch.tensor(owners),
        item_id=item,
        event_time=START + row_end * MINUTE,
        categorical=item[:, None],
        numeric=torch.zeros(len(ends), 0),
        labels={"click": (ids % 2).float()},
        observed={"click": seen},
        history=history,
    )


def step(teacher: HSTUTeacher, batch: Batch) -> torch.Tensor:
    """Forward and backward of one batch; returns the logits."""
    teacher.zero_grad(set_to_none=True)
    logit = teacher.training_scores(batch).logits["click"]
    torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.labels["click"]).backward()
    return logit.detach()


def amortised(median: int, users: int) -> dict[str, object]:
    """The last impressions of some users, with each history encoded once and with one encoding per impression."""
    draw = torch.Generator().manual_seed(median)
    spread = torch.exp(0.5 * torch.randn(users, generator=draw))
    lengths = [max(ROWS_PER_USER, int(median * factor / spread.median())) for factor in spread]
    rows = [(user, length - back) for user, length in enumerate(lengths) for back in reversed(range(ROWS_PER_USER))]
    owners, ends = [user for user, _ in rows], [end for _, end in rows]
    once = batch_of(lengths, owners, ends)
    each = batch_of(ends, list(range(len(ends))), ends)
    teacher = teacher_of(max(lengths))
    torch.testing.assert_close(step(teacher, once), step(teacher, each), rtol=1e-4, atol=1e-5)
    fast, slow = (seconds(lambda batch=batch: step(teacher, batch)) for batch in (once, each))
    return {
        "median history": median,
        "users": users,
        "impressions": len(rows),
        "once per user, rows/s": len(rows) / fast,
        "once per impression, rows/s": len(rows) / slow,
        "ratio": slow / fast,
    }


def backends(length: int) -> dict[str, object]:
    """Training step on one history of ``length`` events with 20 rows: chunked and reference attention."""
    batch = batch_of([length], [0] * ROWS_PER_USER, list(range(length - ROWS_PER_USER + 1, length + 1)))
    chunked, reference = teacher_of(length), teacher_of(length, "reference")
    torch.testing.assert_close(step(chunked, batch), step(reference, batch), rtol=1e-4, atol=1e-5)
    fast, slow = (seconds(lambda model=model: step(model, batch)) for model in (chunked, reference))
    return {"events": length, "chunked, s": fast, "reference, s": slow, "ratio": slow / fast}


def memory(length: int) -> dict[str, object]:
    """Peak memory of a chunked training step on one history; called in a process of its own."""
    teacher = teacher_of(length)
    step(teacher, batch_of([ROWS_PER_USER] * 2, [0, 1], [ROWS_PER_USER] * 2))  # libraries load, threads start
    batch = batch_of([length], [0] * ROWS_PER_USER, list(range(length - ROWS_PER_USER + 1, length + 1)))
    return {"events": length, "peak, MB": peak_megabytes(lambda: step(teacher, batch))}


def main() -> None:
    given = arguments(__doc__ or "")
    if given.child:
        print(json.dumps(memory(int(given.child[0]))))
        return
    peaks = [in_fresh_process(__file__, length, environment=GIVE_BACK) for length in (2048, 4096, 8192)]
    for row in peaks:
        row["MB per 1,000 events"] = row["peak, MB"] / row["events"] * 1000
    show(
        {
            "Training step: one encoding per user against one per impression": [
                amortised(50, users=32),
                amortised(1000, users=3),
            ],
            "Training step: chunked against reference attention": [backends(length) for length in (128, 512, 1024)],
            "Peak memory of a training step, chunked attention": peaks,
        },
        given.json,
    )


if __name__ == "__main__":
    main()
