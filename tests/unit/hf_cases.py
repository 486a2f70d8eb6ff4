"""Small teachers for the tests of the ``hf`` teacher; batches and the schema are those of hstu_cases."""

from __future__ import annotations

from typing import Any

import torch
from hstu_cases import SCHEMA

from recdistill_hf.config import HFConfig
from recdistill_hf.teacher import HFTeacher


def small_config(**changes: Any) -> HFConfig:
    """Small sizes, with ``changes``."""
    plain: dict[str, Any] = {
        "width": 16,
        "heads": 4,
        "intermediate": 24,
        "max_length": 40,
        "history_stride": 8,
        "context_width": 4,
        "hidden": (16, 8),
        "cross_rank": 8,
    }
    return HFConfig(**(plain | changes))


def make_teacher(config: HFConfig, seed: int = 0) -> HFTeacher:
    """A teacher whose embeddings and decoder are large enough to matter."""
    torch.manual_seed(seed)
    teacher = HFTeacher(config, SCHEMA, SCHEMA.tasks)
    with torch.no_grad():
        teacher.tokens.table.weight.mul_(20)
        if teacher.gap is not None:
            teacher.gap.weight.normal_()
        for name, weight in teacher.decoder.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.3)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)  # norms start at ones, biases at zeros
            assert weight.requires_grad is ("wte" not in name and "embed_" not in name)
    return teacher
