"""The processes that train one model together: who this one is, and how small tensors get from one to another.

With one process every function is free and gives back what it was given. Otherwise all processes must call it, in the
same order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

_T = TypeVar("_T")


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; ``(0, 1)`` outside distributed training."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """``values`` of all processes added up, of the same shape, without gradient; a new tensor on the same device."""
    total = values.detach().clone()
    if rank_and_world()[1] > 1:
        moved = total.to(_device(total.device))
        distributed.all_reduce(moved)
        total = moved.to(total.device)
    return total


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """The rows of every process end to end, in the order of the processes.

    Args:
        rows: ``[n, C]`` on the CPU; ``n`` may differ between processes and may be 0, ``C`` and the type may not.

    Returns:
        ``[sum of n, C]`` on the CPU, in every process.
    """
    rank, world = rank_and_world()
    if world == 1:
        return rows
    counts = torch.zeros(world, dtype=torch.int64)
    counts[rank] = len(rows)
    counts = sum_over_ranks(counts)
    longest = int(counts.max())
    mine = rows.new_zeros(longest, rows.shape[1])
    mine[: len(rows)] = rows
    mine = mine.to(_device(rows.device))
    found = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(found, mine)
    return torch.cat([part[:count].to(rows.device) for part, count in zip(found, counts.tolist(), strict=True)])


def from_first(value: _T) -> _T:
    """The first process's ``value``, which must survive pickling, in every process."""
    if rank_and_world()[1] == 1:
        return value
    carrier = [value]
    distributed.broadcast_object_list(carrier, src=0)
    return carrier[0]


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` without gradient, gathered from all processes where each of them holds a part of it."""
    plain = tensor.detach()
    gather: Any = getattr(plain, "full_tensor", None)  # a DTensor; torch takes seconds to import its class
    gathered: Tensor = plain if gather is None else gather()
    return gathered


def _device(wanted: torch.device) -> torch.device:
    """Where the process group takes tensors: NCCL on the GPU alone."""
    if distributed.get_backend() == "nccl" and wanted.type == "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return wanted
