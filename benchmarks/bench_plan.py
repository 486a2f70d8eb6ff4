"""What `recdistill teacher plan` says of memory against what a training step takes, each in a fresh process.

python benchmarks/bench_plan.py [--json] [--case NAME | --ranks | --gpu]

The plan counts tensors. A process whose allocator gives freed blocks back at once takes what they take; with glibc's
defaults freed blocks stay in its heap, how many differs from run to run. Both are measured. Where there is a CUDA
device the same cases are measured on it, too, by the chunked backend and, with SiLU attention, by the Triton kernels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plan_ranks
import torch
from bench_teacher import SCHEMA, batch_of
from reporting import GIVE_BACK, attempt, in_fresh_process, parser, peak_bytes, show, why, without_gpu
from torch.nn import functional

from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_plan.memory import estimate
from recdistill_plan.sizes import PRECISIONS, Model, Workload

#: name -> settings of the teacher, histories, events of each, rows of each, precision, checkpointing.
CASES: dict[str, tuple[dict[str, Any], int, int, int, str, str]] = {
    "short, batch of 16": ({"layers": 4, "width": 128, "heads": 4}, 16, 256, 20, "32-true", "none"),
    "deep": ({"layers": 10, "width": 128, "heads": 4}, 4, 512, 20, "32-true", "none"),
    "wide": ({"layers": 4, "width": 512, "heads": 8}, 2, 1024, 20, "32-true", "none"),
    "wide, autocast": ({"layers": 4, "width": 512, "heads": 8}, 2, 1024, 20, "bf16-mixed", "none"),
    "long": ({"layers": 3, "width": 128, "heads": 4}, 1, 4096, 20, "32-true", "none"),
    "long, softmax": ({"layers": 3, "width": 128, "heads": 4, "attention": "softmax"}, 1, 4096, 20, "32-true", "none"),
    "longer, semi-local": (
        {"layers": 4, "width": 64, "heads": 2, "attend_recent": 1024, "attend_oldest": 128}, 2, 8192, 20,
        "32-true", "none",
    ),
    "long, truncated": (
        {"layers": 6, "width": 128, "heads": 4, "truncate_layers": 4, "truncate_length": 1024}, 1, 4096, 20,
        "32-true", "none",
    ),
    "many rows": ({"layers": 2, "width": 64, "heads": 2}, 16, 256, 200, "32-true", "none"),
    "deep, selective checkpointing": ({"layers": 10, "width": 128, "heads": 4}, 4, 512, 20, "32-true", "selective"),
    "wide, selective checkpointing": (
        {"layers": 4, "width": 512, "heads": 8}, 2, 1024, 20, "32-true", "selective",
    ),
    "long, selective, softmax": (
        {"layers": 8, "width": 128, "heads": 4, "attention": "softmax"}, 1, 4096, 20, "32-true", "selective",
    ),
    "deep, full checkpointing": ({"layers": 10, "width": 128, "heads": 4}, 4, 512, 20, "32-true", "full"),
    "wide, full checkpointing": ({"layers": 4, "width": 512, "heads": 8}, 2, 1024, 20, "32-true", "full"),
}  # fmt: skip
STEPS = 2


def step_of(
    config: HSTUConfig, histories: int, length: int, rows: int, precision: str, device: str = "cpu"
) -> Callable[[], None]:
    """One step as Lightning makes them: the gradients of a step go when the next one's forward pass is over."""
    torch.manual_seed(0)
    teacher = HSTUTeacher(config, SCHEMA, SCHEMA.tasks).to(device)
    optimiser = torch.optim.AdamW(teacher.parameters(), fused=True)
    owners = [owner for owner in range(histories) for _ in range(rows)]
    ends = list(range(length - rows + 1, length + 1)) * histories
    batch = batch_of([length] * histories, owners, ends).to(device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logit = teacher.training_scores(batch).logits["click"]
            loss = functional.binary_cross_entropy_with_logits(logit.float(), batch.labels["click"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def train(config: HSTUConfig, histories: int, length: int, rows: int, precision: str, device: str = "cpu") -> None:
    """A new teacher and some steps."""
    step = step_of(config, histories, length, rows, precision, device)
    for _ in range(STEPS):
        step()


def config_of(settings: dict[str, Any], length: int, backend: str = "chunked") -> HSTUConfig:
    """The teacher of a case."""
    return HSTUConfig(max_length=length, history_stride=length, backend=backend, **settings)


def measured(name: str, device: str = "cpu", backend: str = "chunked") -> float:
    """10^6 bytes that some steps of a case add to a process which has loaded its libraries; call it in a fresh one."""
    settings, histories, length, rows, precision, checkpointing = CASES[name]
    settings = {**settings, "checkpointing": checkpointing}
    config = config_of(settings, length, backend)
    if device == "cpu":
        small = {**settings, "layers": 2, "width": 8 * settings["heads"], "truncate_layers": 0, "truncate_length": 0}
        train(config_of(small, 32), 2, 32, 4, precision)
    else:  # at full size, as Triton tunes its kernels, with memory of its own, when it first sees such a batch
        train(config, histories, length, rows, precision, device)
    return peak_bytes(lambda: train(config, histories, length, rows, precision, device), device) / 1e6


def planned(name: str, *, on_cpu: bool, backend: str = "chunked") -> float:
    """10^6 bytes of a case's step by the plan."""
    settings, histories, length, rows, precision, checkpointing = CASES[name]
    model = Model(config_of(settings, length, backend), SCHEMA, SCHEMA.tasks)
    work = Workload(histories, length, rows, precision, on_cpu=on_cpu)
    return estimate(model, work, "ddp", checkpointing, gpus=1).peak / 1e6


def sizes(name: str) -> dict[str, object]:
    """The first columns of a case's row."""
    settings, histories, length, rows, _, _ = CASES[name]
    return {
        "case": name,
        "layers": settings["layers"],
        "width": settings["width"],
        "histories x events": f"{histories} x {length:,}",
        "rows": histories * rows,
    }


def compare(name: str) -> dict[str, object]:
    """One row of the table."""
    said = planned(name, on_cpu=True)
    defaults = in_fresh_process(__file__, name)
    peak = in_fresh_process(__file__, name, environment=GIVE_BACK)
    return {
        **sizes(name),
        "planned, MB": said,
        "measured, MB": peak,
        "planned / measured": said / peak,
        "glibc's defaults, MB": defaults,
    }


def compare_on(device: str, name: str, backend: str) -> dict[str, object]:
    """One row of the table of another device; a case that fails there says why."""
    said, found = planned(name, on_cpu=device == "cpu", backend=backend), attempt(__file__, name, device, backend)
    failed = found.get("failed") if isinstance(found, dict) else None
    return {
        **sizes(name),
        "backend": backend,
        "planned, MB": said,
        "measured, MB": f"not run: {failed}" if failed else found,
        "planned / measured": "" if failed else said / found,
    }


def on_gpu() -> list[dict[str, object]]:
    """The table of the CUDA device."""
    return [
        compare_on("cuda", name, backend)
        for name, (settings, *_) in CASES.items()
        for backend in ("chunked", "triton")
        if backend == "chunked" or settings.get("attention", "silu") == "silu"
    ]


def sharded(strategy: str, checkpointing: str, precision: str = "32-true") -> dict[str, object]:
    """One row of the table of two ranks."""
    model = Model(plan_ranks.config_of(plan_ranks.EVENTS, plan_ranks.SETTINGS), SCHEMA, SCHEMA.tasks)
    work = Workload(plan_ranks.HISTORIES, plan_ranks.EVENTS, plan_ranks.ROWS, precision, on_cpu=True)
    planned = estimate(model, work, strategy, checkpointing, plan_ranks.RANKS)
    peaks = plan_ranks.of_all_ranks(strategy, checkpointing, precision)
    return {
        "strategy": strategy,
        "checkpointing": checkpointing,
        "precision": precision,
        "planned, MB": planned.peak / 1e6,
        **{f"rank {rank}, MB": peak for rank, peak in enumerate(peaks)},
        "planned / measured": planned.peak / 1e6 / max(peaks),
    }


def cpu_tables() -> dict[str, list[dict[str, object]]]:
    """One process, and two ranks."""
    return {
        "Peak memory of a training step: planned and measured": [compare(name) for name in CASES],
        "Peak memory of each of two ranks: planned and measured": [
            sharded("ddp", "none"),
            sharded("fsdp2", "none"),
            sharded("fsdp2", "selective"),
            sharded("fsdp2", "full"),
            sharded("fsdp2", "none", "bf16-mixed"),
            sharded("fsdp2", "selective", "bf16-mixed"),
        ],
    }


def answer(asked: list[str]) -> float | dict[str, str]:
    """What a process of its own says of a case; on a CPU an error is the reader's to see."""
    if len(asked) == 1:
        return measured(asked[0])
    try:
        return measured(*asked)
    except Exception as error:  # whatever a driver or a compiler raises belongs to this row alone
        return {"failed": why(error)}


def main() -> None:
    known = parser(__doc__ or "")
    known.add_argument("--case", choices=CASES, help="one row alone, as JSON")
    known.add_argument("--ranks", choices=PRECISIONS[:2], help="FSDP2 over two ranks in this precision alone, as JSON")
    known.add_argument("--gpu", action="store_true", help="the table of the CUDA device alone")
    given = known.parse_args()
    if given.child:
        print(json.dumps(answer(given.child)))
        return
    if given.case:
        print(json.dumps(compare(given.case)))
        return
    if given.ranks:
        print(json.dumps(sharded("fsdp2", "full", given.ranks)))
        return
    tables = {} if given.gpu else cpu_tables()
    if torch.cuda.is_available():
        tables[f"Peak memory of a training step on {torch.cuda.get_device_name()}: planned and measured"] = on_gpu()
    show(tables, given.json)
    if not torch.cuda.is_available():
        without_gpu("The comparison of planned and measured memory on a GPU", given.json)


if __name__ == "__main__":
    main()
