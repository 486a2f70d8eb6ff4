"""Relative attention bias of HSTU (arXiv 2402.17152): ``rab(i, j) = w_pos[distance] + w_time[bucket(elapsed)]``.

The elapsed time of an event is counted from its own time. (The retrieval model of the paper counts from the next
event's time; in a ranking model that would show a row something of an event that it may not see.) A candidate counts
from its ``event_time``. Times are in milliseconds in a batch and in seconds, with a fraction, inside ``bucket``.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recdistill_core.errors import UsageError

TIME_BUCKETS = 129
LOG_STEP = 0.301


def time_bucket(elapsed: Tensor) -> Tensor:
    """``[*]`` int64 ms -> ``[*]`` int32 ``clamp(floor(ln(max(|seconds|, 1)) / 0.301), 0, 128)`` (official code)."""
    seconds = elapsed.abs().double().mul_(1e-3).clamp_(min=1.0)
    return seconds.log_().div_(LOG_STEP).int().clamp_(max=TIME_BUCKETS - 1)


@cache
def bucket_edges() -> list[int]:
    """``[129]`` the least ms whose time bucket is at least ``b``; the largest int64 where there is none.

    Found by bisection with :func:`time_bucket` itself, which never falls as time grows: so comparing with an edge
    decides as it does, however a device rounds a logarithm.
    """
    most = torch.iinfo(torch.int64).max
    edges = [0]
    for bucket in range(1, TIME_BUCKETS):
        below, above = edges[-1], most
        if int(time_bucket(torch.tensor([above]))) < bucket:
            edges.append(most)
            continue
        while above - below > 1:
            middle = (below + above) // 2
            if int(time_bucket(torch.tensor([middle]))) < bucket:
                below = middle
            else:
                above = middle
        edges.append(above)
    return edges


class Bias(NamedTuple):
    """Weights of one layer's bias.

    Attributes:
        position: ``[max_length + 1]`` by distance, or None.
        time: ``[129]`` by time bucket, or None.
    """

    position: Tensor | None = None
    time: Tensor | None = None

    def require(self, longest: int) -> None:
        """Refuse a history that is longer than the position weights reach.

        Raises:
            UsageError: if ``longest`` events need more weights; some devices would read past the end of them.
        """
        if self.position is not None and len(self.position) <= longest:
            raise UsageError(
                f"a bias with {len(self.position)} position weights cannot serve a history of {longest} events, "
                f"which needs {longest + 1}",
                where="teacher.max_length",
                fix="raise max_length, or ask the source for shorter histories with teacher.history",
            )

    def at(self, distance: Tensor, elapsed: Tensor, like: Tensor) -> Tensor:
        """``[*]`` bias for ``distance [*]`` >= 0 and ``elapsed [*]`` ms, in the dtype of ``like``."""
        total = torch.zeros(distance.shape, dtype=like.dtype, device=like.device)
        if self.position is not None:
            total = total + self.position[distance]
        if self.time is not None:
            total = total + self.time[time_bucket(elapsed)]
        return total

    def own(self, like: Tensor) -> Tensor:
        """Scalar: the bias of a token towards itself."""
        here = torch.zeros((), dtype=torch.long, device=like.device)
        return self.at(here, here, like)

    def codes(self, distance: Tensor, elapsed: Tensor | None) -> Tensor:
        """``[*]`` int32 rows of :meth:`table`; ``elapsed`` may be None where there is no time bias."""
        code = distance.int() if self.position is not None else torch.zeros_like(distance, dtype=torch.int32)
        if self.time is not None and elapsed is not None:
            code = code * TIME_BUCKETS + time_bucket(elapsed)
        return code

    def table(self, longest: int, device: torch.device) -> Tensor:
        """``[R]`` every bias that distances up to ``longest`` can have, in the order of :meth:`codes`."""
        flat = torch.zeros(1, device=device)
        if self.position is not None:
            flat = self.position[: longest + 1]
        if self.time is not None:
            flat = (flat[:, None] + self.time).flatten()
        return flat

    def weight_gradients(self, grad_table: Tensor) -> Bias:
        """Gradients of the weights from ``grad_table [R]`` of :meth:`table`; of the position weights that it held."""
        buckets = 1 if self.time is None else TIME_BUCKETS
        grad = grad_table.view(len(grad_table) // buckets, buckets)
        return Bias(None if self.position is None else grad.sum(1), None if self.time is None else grad.sum(0))


class RelativeBias(nn.Module):
    """Zero-initialised bias weights of one layer, shared by its heads.

    Args:
        max_length: largest distance.
        position: whether distances have weights.
        time: whether time buckets have weights.
    """

    def __init__(self, max_length: int, *, position: bool, time: bool) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(max_length + 1)) if position else None
        self.time = nn.Parameter(torch.zeros(TIME_BUCKETS)) if time else None

    def forward(self) -> Bias:
        """The weights, as attention backends read them."""
        return Bias(self.position, self.time)
