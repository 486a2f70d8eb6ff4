"""One cosine over the whole fit."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recdistill_lightning.modules import Optimisation


@dataclass(frozen=True)
class OneCosine(Optimisation):
    """Adam whose rate rises linearly over ``warmup_steps`` and falls as one half cosine to 0 at the last step.

    ``lr_t = lr * (1 + cos(pi * t / T)) / 2`` over all ``T`` steps of the fit: enlarged training, cuts and recovery
    share it, and the rate never rises again (IDEA Prune, arXiv 2503.05920).
    """

    decay: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decay:
            raise ValueError("decay must be true: a cosine is a decay")

    def configure(self, module: nn.Module, total_steps: int, kept: Collection[str] = ()) -> Any:
        """See :meth:`Optimisation.configure`."""
        made = super().configure(module, total_steps, kept)

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / total_steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(made["optimizer"], factor)
        return {**made, "lr_scheduler": {**made["lr_scheduler"], "scheduler": schedule}}
