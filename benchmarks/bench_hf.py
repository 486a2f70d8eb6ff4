"""``hf`` teacher: packed against padded encoding, time and memory of a training step.

python benchmarks/bench_hf.py [--json]
"""

from __future__ import annotations

import json

import torch
from bench_teacher import ROWS_PER_USER, SCHEMA, batch_of, step
from reporting import LIBRARIES, arguments, in_fresh_process, peak_megabytes, seconds, show

from recdistill_core.batch import Batch
from recdistill_hf.config import HFConfig
from recdistill_hf.teacher import HFTeacher

#: What a row of the memory table is: backend, activations computed again.
WAYS = {"packed": ("chunked", False), "packed, checkpointing": ("chunked", True), "padded": ("padded", False)}


def teacher_of(longest: int, way: str) -> HFTeacher:
    """A llama of two layers of width 64 with 4 heads."""
    torch.manual_seed(0)
    backend, checkpointing = WAYS[way]
    sizes = {"max_length": longest, "history_stride": longest, "hidden": (64,), "context_width": 8}
    return HFTeacher(HFConfig(backend=backend, checkpointing=checkpointing, **sizes), SCHEMA, SCHEMA.tasks).train()


def newest_rows(lengths: list[int]) -> Batch:
    """The last impressions of each history."""
    rows = [(user, length - back) for user, length in enumerate(lengths) for back in reversed(range(ROWS_PER_USER))]
    return batch_of(lengths, [user for user, _ in rows], [end for _, end in rows])


def against(name: str, lengths: list[int]) -> dict[str, object]:
    """A training step in both ways, whose logits must agree."""
    batch, longest = newest_rows(lengths), max(lengths)
    packed, padded = (teacher_of(longest, way) for way in ("packed", "padded"))
    torch.testing.assert_close(step(packed, batch), step(padded, batch), rtol=1e-4, atol=1e-5)
    first, second = (seconds(lambda model=model: step(model, batch)) for model in (packed, padded))
    return {
        "histories": name,
        "events": sum(lengths),
        "packed, s": first,
        "padded, s": second,
        "padded / packed": second / first,
    }


def memory(length: int, way: str) -> dict[str, object]:
    """Peak memory of a training step on one history; called in a process of its own."""
    teacher = teacher_of(length, way)
    step(teacher, newest_rows([ROWS_PER_USER] * 2))  # libraries load, threads start
    batch = newest_rows([length])
    return {"events": length, "way": way, "peak, MB": peak_megabytes(lambda: step(teacher, batch))}


def main() -> None:
    given = arguments(__doc__ or "")
    if given.child:
        length, way = given.child
        print(json.dumps(memory(int(length), way)))
        return
    draw = torch.Generator().manual_seed(0)
    uneven = [max(ROWS_PER_USER, int(50 * factor)) for factor in torch.exp(torch.randn(64, generator=draw)).tolist()]
    show(
        {
            "Training step, packed against padded": [
                against("64 of uneven length", uneven),
                *(against(f"1 of {length:,}", [length]) for length in (512, 2048, 8192)),
            ],
            "Peak memory of a training step": [
                in_fresh_process(__file__, length, way) for length in (2048, 8192) for way in WAYS
            ],
        },
        given.json,
        (*LIBRARIES, "transformers"),
    )


if __name__ == "__main__":
    main()
