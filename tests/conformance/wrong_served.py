"""Students of which something wrong would be served."""

from __future__ import annotations

import copy
from typing import Any

import torch
from model_cases import GoodStudent
from torch import Tensor, nn
from wrong import Plain, Wrong, wrong

from recdistill_core import BuildContext
from recdistill_core.features import Tower
from recdistill_core.interfaces import ServingModule


class InTraining(GoodStudent):
    """Serves a module in training mode."""

    def serving_module(self, main: nn.Module) -> ServingModule:
        return super().serving_module(main).train()


class GoesToEval(GoodStudent):
    """Goes to eval mode itself."""

    def serving_module(self, main: nn.Module) -> ServingModule:
        self.eval()
        return super().serving_module(main)


class Calibrated(GoodStudent):
    """Serves a corrected logit."""

    def serving_module(self, main: nn.Module) -> ServingModule:
        served = super().serving_module(main)
        with torch.no_grad():
            for name, weight in served.main.named_parameters():
                if name.endswith("out.bias"):
                    weight.add_(0.1)
        return served


class ByReference(GoodStudent):
    """Serves the very modules that are trained."""

    def serving_module(self, main: nn.Module) -> ServingModule:
        served = super().serving_module(main)
        served.student, served.main = copy.copy(self), copy.copy(main)
        return served.eval()


class KeepsTowers(GoodStudent):
    """Keeps every tower that it made."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.towers = nn.ModuleList()

    def tower(self) -> nn.Module:
        self.towers.append(super().tower())
        return self.towers[-1]


class Borrowing(Tower):
    """A tower that passes its features through somebody else's layer."""

    def __init__(self, layer: nn.Linear, student: GoodStudent) -> None:
        super().__init__(student.width, 0, student.tasks)
        self.lent = [layer]  # a list, so that it is none of the tower's own parameters

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return super().forward(self.lent[0](features))


class Lending(GoodStudent):
    """Lends all towers a layer of the backbone."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.common = nn.Linear(self.width, self.width)

    def tower(self) -> nn.Module:
        return Borrowing(self.common, self)


class CommonLayer(Lending):
    """Builds all towers on one layer."""

    def tower(self) -> nn.Module:
        return nn.Sequential(self.common, Tower(self.width, 0, self.tasks))


class Detached(GoodStudent):
    """Detaches what its towers read."""

    def tower(self) -> nn.Module:
        class Cut(Tower):
            def forward(self, features: Tensor) -> dict[str, Tensor]:
                return super().forward(features.detach())

        return Cut(self.width, 0, self.tasks)


class CommonStatistics(GoodStudent):
    """Keeps one running mean for all towers."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.mean = torch.zeros(self.width)

    def tower(self) -> nn.Module:
        mean = self.mean

        class Centred(Tower):
            def forward(self, features: Tensor) -> dict[str, Tensor]:
                if self.training:
                    mean.lerp_(features.detach().mean(0), 0.1)
                return super().forward(features - mean)

        return Centred(self.width, 0, self.tasks)


class Branching(GoodStudent):
    """Branches on the values of a batch."""

    def encode(self, **inputs: Tensor) -> Tensor:
        scale = 2.0 if float(inputs["numeric"].abs().max()) > 100 else 1.0
        return super().encode(**inputs) * scale


class Shortcut(GoodStudent):
    """Leaves out, when it is exported, what its author could not export."""

    def encode(self, **inputs: Tensor) -> Tensor:
        scale = 1.0 if torch.compiler.is_exporting() else 1.5
        return super().encode(**inputs) * scale


def fails(check: str, made: type[GoodStudent], fault: str) -> Wrong:
    return wrong(check, "student", made, fault, config=Plain)


EQUALS = "serving_module_equals_the_main_tower"
ISOLATED = "auxiliary_tower_is_isolated"
EXPORTS = "serving_module_exports"

WRONG = [
    fails(EQUALS, InTraining, "has a serving module in training mode: itself"),
    fails(EQUALS, GoesToEval, "is in eval mode once serving_module was called"),
    fails(EQUALS, Calibrated, "gives other logits than the main tower: it moves task 'click'"),
    fails(EQUALS, ByReference, "changes when training goes on"),
    fails("serving_module_holds_no_auxiliary_tower", KeepsTowers, "holds an auxiliary tower: student.towers.1.body"),
    fails(ISOLATED, Lending, "an auxiliary tower trains backbone common.weight, backbone common.bias"),
    fails(ISOLATED, CommonLayer, "lets an auxiliary tower's loss reach the main tower: 0.weight"),
    fails(ISOLATED, Detached, "cuts its backbone off from the towers"),
    fails(ISOLATED, CommonStatistics, "lets an auxiliary tower move the served logits while the backbone stands"),
    fails(EXPORTS, Branching, "cannot be exported by torch.export for any number of rows"),
    fails(EXPORTS, Shortcut, "gives other logits once exported: 24 rows move task 'click'"),
]
