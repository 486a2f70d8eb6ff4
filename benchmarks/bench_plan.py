"""What `recdistill teacher plan` says of memory against what a training step takes, each in a fresh process.

python benchmarks/bench_plan.py [--json] [--case NAME | --ranks]

The plan counts tensors. A process whose allocator gives freed blocks back at once takes what they take; with glibc's
defaults freed blocks stay in its heap, how many differs from run to run. Both are measured.
"""

from __future__ import annotations

import json
from typing import Any

import plan_ranks
import torch
from bench_teacher import SCHEMA, batch_of
from reporting import GIVE_BACK, in_fresh_process, parser, peak_megabytes, show
from torch.nn import functional

from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_plan.memory import estimate
from recdistill_plan.sizes import Model, Workload

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


def train(config: HSTUConfig, histories: int, length: int, rows: int, precision: str) -> None:
    """Some steps as Lightning makes them: the gradients of a step go when the next one's forward pass is over."""
    torch.manual_seed(0)
    teacher = HSTUTeacher(config, SCHEMA, SCHEMA.tasks)
    optimiser = torch.optim.AdamW(teacher.parameters(), fused=True)
    owners = [owner for owner in range(histories) for _ in range(rows)]
    batch = batch_of([length] * histories, owners, list(range(length - rows + 1, length + 1)) * histories)
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logit = teacher.training_scores(batch).logits["click"]
            loss = functional.binary_cross_entropy_with_logits(logit.float(), batch.labels["click"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def config_of(settings: dict[str, Any], length: int) -> HSTUConfig:
    """The teacher of a case."""
    return HSTUConfig(max_length=length, history_stride=length, backend="chunked", **settings)


def measured(name: str) -> float:
    """10^6 bytes that some steps of a case add to a process which has loaded its libraries; call it in a fresh one."""
    settings, histories, length, rows, precision, checkpointing = CASES[name]
    settings = {**settings, "checkpointing": checkpointing}
    small = {**settings, "layers": 2, "width": 8 * settings["heads"], "truncate_layers": 0, "truncate_length": 0}
    train(config_of(small, 32), 2, 32, 4, precision)
    config = config_of(settings, length)
    return 1.024**2 * peak_megabytes(lambda: train(config, histories, length, rows, precision))


def compare(name: str) -> dict[str, object]:
    """One row of the table."""
    settings, histories, length, rows, precision, checkpointing = CASES[name]
    model = Model(config_of(settings, length), SCHEMA, SCHEMA.tasks)
    planned = estimate(model, Workload(histories, length, rows, precision, on_cpu=True), "ddp", checkpointing, gpus=1)
    defaults = in_fresh_process(__file__, name)
    peak = in_fresh_process(__file__, name, environment=GIVE_BACK)
    return {
        "case": name,
        "layers": settings["layers"],
        "width": settings["width"],
        "histories x events": f"{histories} x {length:,}",
        "rows": histories * rows,
        "planned, MB": planned.peak / 1e6,
        "measured, MB": peak,
        "planned / measured": planned.peak / 1e6 / peak,
        "glibc's defaults, MB": defaults,
    }


def sharded(strategy: str, checkpointing: str) -> dict[str, object]:
    """One row of the table of two ranks."""
    model = Model(plan_ranks.config_of(plan_ranks.EVENTS, plan_ranks.SETTINGS), SCHEMA, SCHEMA.tasks)
    work = Workload(plan_ranks.HISTORIES, plan_ranks.EVENTS, plan_ranks.ROWS, on_cpu=True)
    planned = estimate(model, work, strategy, checkpointing, plan_ranks.RANKS)
    peaks = plan_ranks.of_all_ranks(strategy, checkpointing)
    return {
        "strategy": strategy,
        "checkpointing": checkpointing,
        "planned, MB": planned.peak / 1e6,
        **{f"rank {rank}, MB": peak for rank, peak in enumerate(peaks)},
        "planned / measured": planned.peak / 1e6 / max(peaks),
    }


def main() -> None:
    known = parser(__doc__ or "")
    known.add_argument("--case", choices=CASES, help="one row alone, as JSON")
    known.add_argument("--ranks", action="store_true", help="FSDP2 over two ranks alone, as JSON")
    given = known.parse_args()
    if given.child:
        print(json.dumps(measured(given.child[0])))
        return
    if given.case:
        print(json.dumps(compare(given.case)))
        return
    if given.ranks:
        print(json.dumps(sharded("fsdp2", "full")))
        return
    show(
        {
            "Peak memory of a training step: planned and measured": [compare(name) for name in CASES],
            "Peak memory of each of two ranks: planned and measured": [
                sharded("ddp", "none"),
                sharded("fsdp2", "none"),
                sharded("fsdp2", "selective"),
                sharded("fsdp2", "full"),
            ],
        },
        given.json,
    )


if __name__ == "__main__":
    main()
