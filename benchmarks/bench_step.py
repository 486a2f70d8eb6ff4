"""Training steps of an HSTU teacher at 20,000 events on one CUDA device: time, share of its peak, memory.

python benchmarks/bench_step.py [--json] [--only SIZE ...]

A step is forward, backward and AdamW on one history with 20 rows at its end, under bfloat16 autocast. Operations are
those of `recdistill teacher plan`; what checkpointing repeats is not counted. Measured memory is that of tensors, as
torch's allocator counts them (max_memory_allocated), without what libraries held before; reserved memory is what the
allocator takes of the card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from bench_plan import step_of, train
from bench_teacher import ROWS_PER_USER, SCHEMA
from reporting import attempt, device_seconds, matrix_peak, parser, peak_bytes, peak_of, show, why, without_gpu

from recdistill_hstu.attention import choose_backend, installed
from recdistill_hstu.config import HSTUConfig
from recdistill_plan.flops import count
from recdistill_plan.memory import estimate
from recdistill_plan.sizes import Model, Workload

LENGTH = 20_000
#: Heads are 64 wide, and 128 in the largest.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"layers": 8, "width": 256, "heads": 4},
    "medium": {"layers": 12, "width": 512, "heads": 8},
    "large": {"layers": 16, "width": 1024, "heads": 8},
}
CHECKPOINTING = ("none", "selective")
PRECISION = "bf16-mixed"
LIBRARIES = ("recdistill", "torch", "numpy", *(name for name in ("triton",) if installed(name)))


def config_of(settings: dict[str, Any], checkpointing: str, length: int) -> HSTUConfig:
    """A teacher that takes the best backend that it finds."""
    return HSTUConfig(max_length=length, history_stride=length, checkpointing=checkpointing, **settings)


def measured(
    settings: dict[str, Any], checkpointing: str, length: int = LENGTH, device: str = "cuda", calls: int = 5
) -> dict[str, Any]:
    """Seconds of a step, and bytes at its fullest moment; call it in a fresh process."""
    config = config_of(settings, checkpointing, length)
    given = config, 1, length, ROWS_PER_USER, PRECISION, device
    train(*given)  # kernels are tuned, with memory of their own, at the first step
    peak = peak_bytes(lambda: train(*given), device)
    reserved = torch.cuda.max_memory_reserved() if device == "cuda" else None
    with torch.autocast(device, torch.bfloat16):
        backend = choose_backend(config, torch.device(device), torch.float32)
    seconds = device_seconds(step_of(*given), device, calls)
    return {"seconds": seconds, "peak": peak, "reserved": reserved, "backend": backend}


def answer(size: str, checkpointing: str) -> dict[str, Any]:
    """What a process of its own says of a case, or why it says nothing."""
    try:
        return measured(SIZES[size], checkpointing)
    except Exception as error:  # a card that is too small, a kernel that does not compile: this row's alone
        return {"failed": why(error)}


def row_of(
    settings: dict[str, Any], checkpointing: str, found: dict[str, Any], peak: float | None, length: int = LENGTH
) -> dict[str, Any]:
    """One row of the table.

    Args:
        settings, checkpointing, length: of the case. found: what :func:`answer` said.
        peak: TFLOP/s of a matrix product, None where it was not measured.
    """
    model = Model(config_of(settings, checkpointing, length), SCHEMA, SCHEMA.tasks)
    work = Workload(1, length, ROWS_PER_USER, PRECISION)
    planned = estimate(model, work, "ddp", checkpointing, gpus=1).peak / 1e9
    cells: dict[str, Any] = settings | {"checkpointing": checkpointing, "planned, GB": planned}
    empty = ("measured, GB", "planned / measured", "reserved, GB", "events/s", "TFLOP/s", "share of peak", "backend")
    if "failed" in found:
        return cells | {"s per step": f"not run: {found['failed']}"} | dict.fromkeys(empty, "")
    taken, bytes_ = found["seconds"], found["peak"]
    rate = count(model, work).training / taken / 1e12
    reserved = "" if found["reserved"] is None else found["reserved"] / 1e9
    share = rate / peak if peak else ""
    values = (bytes_ / 1e9, planned / (bytes_ / 1e9), reserved, length / taken, rate, share, found["backend"])
    return cells | {"s per step": taken} | dict(zip(empty, values, strict=True))


def tables(sizes: list[str], ask: Callable[..., Any]) -> dict[str, list[dict[str, Any]]]:
    """The table; ``ask`` gives what a process of its own says, as :func:`answer` does."""
    limit = ask("peak")
    rows = [row_of(SIZES[size], kind, ask(size, kind), limit.get("peak")) for size in sizes for kind in CHECKPOINTING]
    return {f"Training step, one history of {LENGTH:,} events, bfloat16 autocast, AdamW, {peak_of(limit)}": rows}


def main() -> None:
    known = parser(__doc__ or "")
    known.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help="some of the rows")
    given = known.parse_args()
    if given.child:
        peak = given.child == ["peak"]
        print(json.dumps({"peak": matrix_peak("cuda")} if peak else answer(*given.child)))
        return
    if not torch.cuda.is_available():
        show({}, given.json, LIBRARIES)
        without_gpu(f"A training step at {LENGTH:,} events on a GPU", given.json)
        return
    show(tables(given.only, lambda *asked: attempt(__file__, *asked)), given.json, LIBRARIES)


if __name__ == "__main__":
    main()
