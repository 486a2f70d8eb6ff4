"""SiLU attention by Triton kernels: jagged, without padding, linear in memory; autotuned on CUDA.

On a machine without CUDA the kernels run in Triton's interpreter, where ``TRITON_INTERPRET=1`` was set before Triton
was imported. That is for tests: it is slow.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recdistill_hstu.attention import Memo
from recdistill_hstu.bias import TIME_BUCKETS, Bias, bucket_edges
from recdistill_hstu.layout import Layout
from recdistill_hstu.own import with_own_silu
from recdistill_hstu.triton_plan import TritonPlan

#: Queries of a query block, and events of a key block.
BLOCK = 128
#: Arguments of the kernels, where they have them, on which the fastest configuration depends.
TUNED_BY = ("length", "H", "D", "RECENT", "OLDEST", "HAS_POSITION", "HAS_TIME", "GRAD_BIAS")
#: Most elements of an inner block, tokens by width, that are tried; those of float32 count twice.
INNER_ELEMENTS = 8192
#: Kernels are tuned once for all batches whose longest history has at most this many events.
SHORTEST_TUNED = 512
#: In the interpreter: small, so that short histories have several blocks.
INTERPRETED_BLOCK = 16


def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter. Imports triton."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


class TritonAttention:
    """See :mod:`recdistill_hstu.attention`. SiLU attention, with or without relative bias, under any span.

    Args:
        layout: tokens asked for.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.edges = torch.tensor(bucket_edges(), device=layout.history.device)
        self.plans: dict[tuple[int, int], TritonPlan] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``."""
        bias.require(self.layout.longest)
        plan = self.plan(*block_sizes(q.shape[2], q.dtype))
        attend: Any = BlockedAttention.apply  # torch ships it without types
        out: Tensor = attend(q.contiguous(), k.contiguous(), v.contiguous(), *bias, self, plan, memo or Memo())
        return with_own_silu(self.layout, out, q, k, v, bias) if self.layout.num_rows else out

    def plan(self, queries: int, keys: int) -> TritonPlan:
        """The blocks of ``queries`` tokens and of ``keys`` events, made once."""
        if (queries, keys) not in self.plans:
            self.plans[queries, keys] = TritonPlan.of(self.layout, queries, keys)
        return self.plans[queries, keys]


def block_sizes(width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Queries of a query block and events of a key block: as many as a multiprocessor's registers hold."""
    if interpreted():
        return INTERPRETED_BLOCK, INTERPRETED_BLOCK
    shrink = 2 if dtype == torch.float32 else 1
    return (BLOCK if width <= 128 else BLOCK // 2) // shrink, (BLOCK if width <= 64 else BLOCK // 2) // shrink


def length_class(longest: int) -> int:
    """The least power of two, from :data:`SHORTEST_TUNED` on, that is not below ``longest``.

    What is fastest for a few short histories is not what is for thousands of events, so each class is tuned by itself;
    a run meets few of them.
    """
    return max(SHORTEST_TUNED, 1 << (longest - 1).bit_length())


def precision(dtype: torch.dtype) -> str | None:
    """How products of ``dtype`` are computed; tf32 would cost float32 inputs most of their digits."""
    if interpreted():
        return "widened"
    return "ieee" if dtype == torch.float32 else None


class BlockedAttention(torch.autograd.Function):
    """Attention to history events; saves no scores."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position: Tensor | None,
        time: Tensor | None,
        attention: TritonAttention,
        plan: TritonPlan,
        memo: Memo,
    ) -> Tensor:
        """``[S, H, d]``: sums over visible events.

        Args:
            ctx: autograd's context.
            q: ``[S, H, d]``. k, v: ``[T, H, d]``. All contiguous and of one dtype.
            position, time: weights of the bias, or None. attention: edges and span. plan: blocks.
            memo: holds the result of an earlier pass.
        """
        weights = [None if part is None else part.detach().contiguous() for part in (position, time)]
        ctx.save_for_backward(q, k, v, *weights)
        ctx.attention, ctx.plan = attention, plan

        def compute() -> tuple[Tensor]:
            out = torch.zeros_like(q)  # as it stays for a token that sees nothing
            if len(plan.query_blocks):
                _launch("forward", plan.query_blocks, (q, k, v, out), q, weights, attention, plan)
            return (out,)

        (out,) = memo.recall(compute)
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``q``, ``k``, ``v`` and the bias; scores are computed again."""
        q, k, v, *weights = ctx.saved_tensors
        plan: TritonPlan = ctx.plan
        grad_out = grad_out.to(q.dtype).contiguous()
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        position, time = weights
        grad_position = q.new_zeros(1 if position is None else len(position), dtype=torch.float32)
        grad_time = q.new_zeros(len(plan.query_blocks), TIME_BUCKETS, dtype=torch.float32)
        if len(plan.query_blocks):
            given = (q, k, v, grad_out, grad_q, grad_position, grad_time)
            wanted = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
            _launch("backward_query", plan.query_blocks, given, q, weights, ctx.attention, plan, GRAD_BIAS=wanted)
            _launch(
                "backward_key", plan.key_blocks, (q, k, v, grad_out, grad_k, grad_v), q, weights, ctx.attention, plan
            )
        return (
            grad_q,
            grad_k,
            grad_v,
            None if position is None else grad_position.to(position.dtype),
            None if time is None else grad_time.sum(0).to(time.dtype),
            None,
            None,
            None,
        )


def _launch(
    name: str,
    blocks: Tensor,
    tensors: tuple[Tensor, ...],
    q: Tensor,
    weights: list[Tensor | None],
    attention: TritonAttention,
    plan: TritonPlan,
    **flags: bool,
) -> None:
    """Run a kernel over ``blocks`` and the heads of ``q``."""
    _, heads, width = q.shape
    span, (queries, keys) = attention.layout.span, block_sizes(width, q.dtype)
    by_key = name == "backward_key"
    shapes = {
        "H": heads,
        "D": width,
        "RECENT": span.recent,
        "OLDEST": span.oldest,
        "HAS_POSITION": weights[0] is not None,
        "HAS_TIME": weights[1] is not None,
        "PRECISION": precision(q.dtype),
        "BLOCK_D": max(16, 1 << (width - 1).bit_length()),
        ("BLOCK_N" if by_key else "BLOCK_M"): keys if by_key else queries,
    }
    if interpreted():
        shapes["BLOCK_M" if by_key else "BLOCK_N"] = INTERPRETED_BLOCK
    else:
        shapes["enable_fp_fusion"] = True  # Triton 3.9 warns where it must guess
    absent = attention.edges  # a kernel is compiled without what it has no weights for, and never reads it
    bias = [absent if weight is None else weight for weight in weights]
    length = length_class(attention.layout.longest)
    layout = (plan.order, plan.visible, plan.position, plan.moment, plan.event_time)
    device_of: Any = torch.cuda.device_of  # torch ships it without types
    with device_of(q):  # Triton launches on the current device
        kernel(name)[(len(blocks), heads)](*tensors, blocks, *layout, *bias, attention.edges, length, **shapes, **flags)


@cache
def kernel(name: str) -> Any:
    """A kernel of :mod:`recdistill_hstu.triton_kernels`: tuned on a GPU, fixed in the interpreter.

    It is tuned at the first call with each combination of ``TUNED_BY`` and of dtypes. Code that was compiled for
    another length is used again: it does not depend on it.
    """
    import triton

    from recdistill_hstu import triton_kernels

    plain = getattr(triton_kernels, name)
    if interpreted():
        return plain
    inner = "BLOCK_M" if name == "backward_key" else "BLOCK_N"
    configs = [
        triton.Config({inner: size}, num_warps=warps, num_stages=stages)
        for size in (32, 64, 128)
        for warps in (8, 4)
        for stages in (2, 3)
    ]
    # each trial adds to the gradient of the bias again
    sums = ["grad_position", "grad_time"] if name == "backward_query" else None
    prune = {"early_config_prune": fitting}
    return triton.autotune(configs, key=list(TUNED_BY), reset_to_zero=sums, prune_configs_by=prune)(plain)


def fitting(configs: list[Any], named: dict[str, Any], **given: Any) -> list[Any]:
    """The configurations whose inner block fits beside the outer one: trying the others takes minutes for nothing."""
    width = given["BLOCK_D"] * (2 if given["PRECISION"] == "ieee" else 1)
    return [config for config in configs if max(config.kwargs.values()) * width <= INNER_ELEMENTS] or configs[:1]
