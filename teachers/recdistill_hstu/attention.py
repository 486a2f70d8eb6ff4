"""Attention of candidates and events over jagged histories: which backend computes it, and why.

A backend is made once per layout (index structures, masks, time buckets) and then called by every layer::

    attend = prepare("chunked", layout, config)
    out = attend(q, k, v, bias)

``silu``: ``out_t = sum_j SiLU(q_t . k_j + rab(t, j)) v_j`` over the visible ``j`` and ``t`` itself; the layer divides
this by n. ``softmax``: the weights are ``softmax_j(q_t . k_j / sqrt(d) + rab(t, j))`` over the same ``j``.
"""

from __future__ import annotations

import functools
import importlib.util
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

#: Widest head that the Triton kernels hold in registers and shared memory.
WIDEST_TRITON_HEAD = 256


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
    if backend == "triton":
        from recdistill_hstu.triton_backend import TritonAttention

        return TritonAttention(layout)
    if backend == "xformers":
        from recdistill_hstu.xformers_backend import XformersAttention

        return XformersAttention(layout)
    if backend == "sdpa":
        from recdistill_hstu.sdpa_backend import SdpaAttention

        return SdpaAttention(layout, heads=config.heads, budget=config.score_budget)
    if backend == "reference":
        from recdistill_hstu.reference import ReferenceAttention

        return ReferenceAttention(layout, softmax=softmax)
    from recdistill_hstu.chunked import ChunkedAttention

    return ChunkedAttention(layout, softmax=softmax, heads=config.heads, budget=config.score_budget)


def choose_backend(config: HSTUConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The backend for tensors of ``device`` and ``dtype``; under autocast, of what its products are.

    ``auto`` takes ``triton`` for SiLU and ``xformers`` for softmax attention where nothing speaks against them,
    ``sdpa`` for softmax attention without bias and span, else ``chunked``; docs/decisions/attention-backends.md says
    why. On CUDA the log says what speaks against the first choice.

    Raises:
        UsageError: if the configuration names a backend that cannot serve these tensors; lists every reason.
    """
    if dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if config.backend != "auto":
        reasons = obstacles(config.backend, config, device, dtype)
        if not reasons:
            return config.backend
        raise UsageError(
            f"the {config.backend} backend cannot compute this: " + "; ".join(reasons),
            where="teacher.backend",
            fix="set backend to 'auto' or 'chunked', or move teacher and batch to a CUDA device",
        )
    best = "xformers" if config.attention == "softmax" else "triton"
    if device.type == "cuda":
        reasons = obstacles(best, config, device, dtype)
        if not reasons:
            return best
        _pass_over(best, "; ".join(reasons))
    plain = not (config.position_bias or config.time_bias or config.attend_recent)
    return "sdpa" if config.attention == "softmax" and plain else "chunked"


@functools.cache
def _pass_over(backend: str, reasons: str) -> None:
    """Say once in a process why ``auto`` does not take ``backend``."""
    logger.info("hstu does not use the %s backend: %s", backend, reasons)


def check_config(config: HSTUConfig) -> None:
    """Refuse a backend that can never serve this configuration on this machine.

    Raises:
        ConfigError: lists every reason.
    """
    backend = config.backend
    reasons = config_obstacles(backend, config)
    if backend in ("triton", "xformers") and not torch.cuda.is_available() and not _interpreted(backend):
        reasons.append("it needs a CUDA device, and this machine has none")
    if reasons:
        fix = "set backend to 'auto' or 'chunked'"
        raise ConfigError([Problem("teacher.backend", f"{backend}: {reason} ({fix})") for reason in reasons])


def obstacles(backend: str, config: HSTUConfig, device: torch.device, dtype: torch.dtype) -> list[str]:
    """What speaks against ``backend``; where nothing else does, whether its kernels run here at all."""
    reasons = config_obstacles(backend, config) + tensor_obstacles(backend, config, device, dtype)
    if backend == "xformers" and not reasons:
        width = config.width // config.heads
        failed = kernel_failure(dtype, width, config.attend_recent > 0, device)
        if failed:
            reasons.append(f"its kernels fail on {str(device)!r} in {dtype} with heads of width {width}: {failed}")
    return reasons


def kernel_failure(dtype: torch.dtype, width: int, span: bool, device: torch.device) -> str | None:
    """What xformers' kernels say against such tensors, or None: an installed package may lack kernels that fit."""
    from recdistill_hstu.xformers_backend import failure

    return failure(dtype, width, span, device)


def config_obstacles(backend: str, config: HSTUConfig) -> list[str]:
    """What in the configuration or the installation speaks against ``backend``."""
    reasons = []
    only = {"triton": "silu", "sdpa": "softmax", "xformers": "softmax"}.get(backend, config.attention)
    if config.attention != only:
        reasons.append(f"it computes {only} attention, and attention is {config.attention!r}")
    width = config.width // config.heads
    if backend == "xformers":
        for name in ("position_bias", "time_bias"):
            if getattr(config, name):
                reasons.append(f"it is run without additive bias, and {name} is true")
        if width % 8:
            reasons.append(f"it needs heads whose width is a multiple of 8, and width / heads is {width}")
    if backend == "triton" and width > WIDEST_TRITON_HEAD:
        reasons.append(f"it needs heads of width {WIDEST_TRITON_HEAD} or less, and width / heads is {width}")
    if backend in ("triton", "xformers") and not installed(backend):
        reasons.append(f"the package {backend} is not installed")
    return reasons


def tensor_obstacles(backend: str, config: HSTUConfig, device: torch.device, dtype: torch.dtype) -> list[str]:
    """What in the tensors speaks against ``backend``."""
    if backend not in ("triton", "xformers"):
        return []
    reasons = []
    if device.type != "cuda" and not _interpreted(backend):
        reasons.append(f"its kernels run on CUDA, and the tensors are on {device.type!r}")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"it computes in float32, float16 or bfloat16, and the tensors are {dtype}")
    elif backend == "xformers" and config.attend_recent and dtype == torch.float32:
        reasons.append(f"with attend_recent it computes in float16 or bfloat16, and the tensors are {dtype}")
    return reasons


def installed(package: str) -> bool:
    """Whether a package is there; does not import it."""
    return importlib.util.find_spec(package) is not None


def _interpreted(backend: str) -> bool:
    """Whether ``backend`` is Triton, to be run by its interpreter."""
    if backend != "triton" or not installed("triton"):
        return False
    from recdistill_hstu.triton_backend import interpreted

    return interpreted()
