"""A small model with the towers of an objective, and batches with the labels that a test wants."""

from __future__ import annotations

from typing import Any

import torch
from core_cases import component, make_batch
from torch import Tensor, nn

from recdistill_core import Batch, TeacherSignal
from recdistill_core.objective import Objective

ROWS = 40


def made(name: str, **values: Any) -> Objective:
    return Objective("click", component("strategy", name, **values), component("loss", "soft_ce"))


def taught(logit: Tensor, valid: Tensor | None = None) -> Batch:
    there = torch.ones(len(logit), dtype=torch.bool) if valid is None else valid
    return make_batch(len(logit)).with_teacher(TeacherSignal({"click": logit}, {"click": there}, "v"))


class Model(nn.Module):
    """A backbone with a tower for each head of an objective."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(2, 4)
        self.towers = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("main", *objective.auxiliary)})
        self.objective = objective

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        features = self.shared(batch.numeric).tanh()
        heads = {name: tower(self.objective.features(name, features))[:, 0] for name, tower in self.towers.items()}
        return self.objective.terms(heads, batch)


def slopes(value: Tensor, part: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(value, list(part.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros(1) if slope is None else slope for slope in found]
