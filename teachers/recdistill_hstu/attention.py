"""Attention of candidates and events over jagged histories: which backend computes it, and why.

A backend is made once per layout (index structures, masks, time buckets) and then called by every layer::

    attend = prepare("chunked", layout, config)
    out = attend(q, k, v, bias)

``silu``: ``out_t = sum_j SiLU(q_t . k_j + rab(t, j)) v_j`` over the visible ``j`` and ``t`` itself; the layer divides
this by n. ``softmax``: the weights are ``softmax_j(q_t . k_j / sqrt(d) + rab(t, j))`` over the same ``j``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from recdistill_core.errors import ConfigError, Problem, UsageError
from recdistill_hstu.bias import Bias
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout

logger = logging.getLogger(__name__)


class Memo:
    """What attention gave in a layer's forward pass, for the pass that a checkpoint makes again in backward.

    Attributes:
        kept: the tensors, or None before the first pass.
    """

    def __init__(self) -> None:
        self.kept: tuple[Tensor, ...] | None = None

    def recall(self, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``compute`` gave when this was first called."""
        if self.kept is None:
            self.kept = compute()
        return self.kept


class Attend(Protocol):
    """Attention of the tokens that a layout asks for."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``.

        Args:
            q: ``[S, H, d]``. k, v: ``[T, H, d]``. bias: of the layer.
            memo: where a backend may keep its result, so that a second call with it need not compute again.
        """
        ...


def prepare(backend: str, layout: Layout, config: HSTUConfig) -> Attend:
    """The attention of ``layout`` by ``backend``, one that :func:`choose_backend` returned."""
    softmax = config.attention == "softmax"
    if backend == "xformers":
        from recdistill_hstu.xformers_backend import XformersAttention

        return XformersAttention(layout)
    if backend == "reference":
        from recdistill_hstu.reference import ReferenceAttention

        return ReferenceAttention(layout, softmax=softmax)
    from recdistill_hstu.chunked import ChunkedAttention

    return ChunkedAttention(layout, softmax=softmax, heads=config.heads, budget=config.score_budget)


def choose_backend(config: HSTUConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The backend for tensors of ``device`` and ``dtype``.

    ``auto`` takes xformers where nothing speaks against it, else ``chunked``.

    Raises:
        UsageError: if the configuration names xformers and it cannot serve these tensors; lists every reason.
    """
    if config.backend in ("reference", "chunked"):
        return config.backend
    reasons = config_obstacles(config) + tensor_obstacles(device, dtype)
    if not reasons:
        return "xformers"
    if config.backend == "auto":
        return "chunked"
    raise UsageError(
        "the xformers backend cannot compute this: " + "; ".join(reasons),
        where="teacher.backend",
        fix="set backend to 'auto' or 'chunked', or move teacher and batch to a CUDA device",
    )


def check_config(config: HSTUConfig) -> None:
    """Refuse a backend that can never serve this configuration on this machine.

    Raises:
        ConfigError: lists every reason.
    """
    if config.backend != "xformers":
        return
    reasons = config_obstacles(config)
    if not torch.cuda.is_available():
        reasons.append("it needs a CUDA device, and this machine has none")
    if reasons:
        fix = "set backend to 'auto' or 'chunked'"
        raise ConfigError([Problem("teacher.backend", f"xformers: {reason} ({fix})") for reason in reasons])


def config_obstacles(config: HSTUConfig) -> list[str]:
    """What in the configuration or the installation speaks against xformers."""
    from recdistill_hstu.xformers_backend import installed

    reasons = []
    if config.attention != "softmax":
        reasons.append(f"it computes softmax attention, and attention is {config.attention!r}")
    if config.attend_recent:
        reasons.append("its masks are causal, and attend_recent is set")
    for name in ("position_bias", "time_bias"):
        if getattr(config, name):
            reasons.append(f"it is run without additive bias, and {name} is true")
    if config.width // config.heads % 8:
        reasons.append(
            f"it needs heads whose width is a multiple of 8, and width / heads is {config.width // config.heads}"
        )
    if not installed():
        reasons.append("the package xformers is not installed")
    return reasons


def tensor_obstacles(device: torch.device, dtype: torch.dtype) -> list[str]:
    """What in the tensors speaks against xformers."""
    reasons = []
    if device.type != "cuda":
        reasons.append(f"its kernels run on CUDA, and the tensors are on {device.type!r}")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"it computes in float32, float16 or bfloat16, and the tensors are {dtype}")
    return reasons
