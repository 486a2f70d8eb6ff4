"""Peak memory of each of two ranks under DDP and FSDP2, on CPUs over gloo; bench_plan.py compares it with the plan.

The model is sharded as in training: a group per layer, gathered in bfloat16 where the precision is mixed, and one of
what belongs to no layer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist
from bench_teacher import SCHEMA, batch_of
from reporting import peak_megabytes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel

from recdistill_core.batch import Batch
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_lightning.sharding import shard

RANKS = 2
SETTINGS = {"layers": 6, "width": 512, "heads": 8, "backend": "chunked"}
HISTORIES, EVENTS, ROWS = 2, 1024, 20


class Logits(nn.Module):
    """The teacher's logits as a forward pass, which DDP wraps."""

    def __init__(self, teacher: HSTUTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Tensor:
        return self.teacher.training_scores(batch).logits["click"]


def train(config: HSTUConfig, histories: int, strategy: str, precision: str) -> None:
    """Two steps of this rank."""
    torch.manual_seed(0)
    teacher = HSTUTeacher(config, SCHEMA, SCHEMA.tasks)
    model: nn.Module = Logits(teacher)
    if strategy == "ddp":
        model = DistributedDataParallel(model)
    else:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        shard(teacher, init_device_mesh("cpu", (RANKS,)), policy if precision == "bf16-mixed" else None)
    optimiser = torch.optim.AdamW(model.parameters(), foreach=False)
    length = config.max_length
    owners = [owner for owner in range(histories) for _ in range(ROWS)]
    batch = batch_of([length] * histories, owners, list(range(length - ROWS + 1, length + 1)) * histories)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = model(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch.labels["click"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def config_of(length: int, settings: dict[str, Any]) -> HSTUConfig:
    """A teacher for histories of one length."""
    return HSTUConfig(max_length=length, history_stride=length, **settings)


def of_all_ranks(strategy: str, checkpointing: str, precision: str) -> list[float]:
    """10^6 bytes that steps add to each rank's process, freed blocks given back at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, strategy, checkpointing, precision, str(port)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(RANKS)
    ]
    answers = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"a rank of {strategy}, checkpointing {checkpointing}, {precision} failed")
    return [float(json.loads(answer.splitlines()[-1])) for answer in answers]


def main() -> None:
    strategy, checkpointing, precision, port, rank = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=RANKS)
    settings = {**SETTINGS, "checkpointing": checkpointing}
    train(config_of(32, {**settings, "layers": 2, "width": 64}), 2, strategy, precision)
    config = config_of(EVENTS, settings)
    peak = peak_megabytes(lambda: train(config, HISTORIES, strategy, precision))
    print(json.dumps(peak * 1.024**2))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
