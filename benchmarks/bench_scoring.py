"""HSTU teacher: candidates against an encoded history, and a history that grows, against encoding it again.

python benchmarks/bench_scoring.py [--json]
"""

from __future__ import annotations

from dataclasses import replace

import torch
from bench_teacher import ITEMS, SCHEMA, batch_of, teacher_of
from reporting import arguments, seconds, show
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_hstu.cache import EncodedHistories
from recdistill_hstu.teacher import HSTUTeacher

CANDIDATES = 1000
#: Candidates that are scored with an encoding of their own; the rate does not depend on how many there are.
ALONE = 4
LENGTHS = (512, 2048, 8192, 20_000)


def candidates(length: int, count: int) -> Batch:
    """``count`` candidates of one user after ``length`` events, each another item."""
    batch = batch_of([length], [0] * count, [length] * count)
    item = (torch.arange(count) * 7919 + 1) % ITEMS
    return replace(batch, item_id=item, categorical=item[:, None])


def scored(teacher: HSTUTeacher, encoded: EncodedHistories, rows: Batch) -> Tensor:
    """``[N]`` logits from the cache."""
    owner = torch.zeros(len(rows), dtype=torch.long)
    return teacher.score_candidates(encoded, rows, owner, micro_batch=256).logits["click"]


def compared(length: int) -> dict[str, object]:
    """Candidates per second: each with an encoding of its own, all in one batch with one, and against a cache."""
    teacher = teacher_of(length).eval()
    with torch.no_grad():
        for layer in teacher.layers:
            for bias in (layer.bias.position, layer.bias.time):
                bias.normal_(std=0.1)
    rows, few = candidates(length, CANDIDATES), candidates(length, ALONE)
    history = rows.history
    assert history is not None
    encoded = teacher.encode(history.events, history.offsets)
    alone = [few.rows(torch.tensor([row])) for row in range(ALONE)]
    expected = torch.cat([teacher.score(row).logits["click"] for row in alone])
    found = scored(teacher, encoded, rows)
    torch.testing.assert_close(found[:ALONE], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, teacher.score(rows).logits["click"], rtol=1e-5, atol=1e-5)
    each = seconds(lambda: [teacher.score(row) for row in alone], at_least=0.5) / ALONE
    together = seconds(lambda: teacher.score(rows), at_least=0.5) / CANDIDATES
    cached = seconds(lambda: scored(teacher, encoded, rows), at_least=0.5) / CANDIDATES
    return {
        "events": length,
        "encoded for each, candidates/s": 1 / each,
        "encoded once for the batch, candidates/s": 1 / together,
        "from the cache, candidates/s": 1 / cached,
        "cache against encoding for each": each / cached,
        "cache against once for the batch": together / cached,
    }


def grown(length: int, new: int = 16) -> dict[str, object]:
    """Seconds to append ``new`` events to a history of ``length``, and to encode all of them."""
    # a window that moves on late: what is measured is growth, not the encoding that a move asks for
    teacher = teacher_of(length + 64).eval()
    history = candidates(length + new, 1).history
    assert history is not None
    first = {name: column[:length] for name, column in history.events.items()}
    later = {name: column[length:] for name, column in history.events.items()}
    encoded = teacher.encode(first, torch.tensor([0, length]))
    added = torch.tensor([0, new])
    whole = teacher.encode(history.events, history.offsets)
    torch.testing.assert_close(teacher.extend(encoded, later, added).state, whole.state, rtol=1e-5, atol=1e-5)
    append = seconds(lambda: teacher.extend(encoded, later, added), at_least=0.5)
    again = seconds(lambda: teacher.encode(history.events, history.offsets), at_least=0.5)
    return {"events": length, "new": new, "append, s": append, "encode all, s": again, "ratio": again / append}


def main() -> None:
    given = arguments(__doc__ or "")
    assert SCHEMA.tasks == ("click",)
    tables = {
        f"Scoring {CANDIDATES:,} candidates of one user, two layers of width 64": [
            compared(length) for length in LENGTHS
        ],
        "A history that grows": [grown(length) for length in LENGTHS],
    }
    show(tables, given.json)


if __name__ == "__main__":
    main()
