"""The head strategies of ExFM (arXiv 2502.17494): a tower on soft labels alone, and the student adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.interfaces import LossParts
from recdistill_core.strategy import scale_gradient
from recdistill_strategies import AdapterConfig, AuxiliaryConfig
from recdistill_strategies.heads import Soft

#: Stands for the logit of probability 1, whose sigmoid is 1 in float32 and float64 alike; within what losses take.
CERTAIN = 38.0


def scaled_labels(logit: Tensor, scale: float) -> Tensor:
    """Logit ``[N]`` of ``min(scale * p, 1)``, where ``p`` is the probability of ``logit [N]``."""
    if scale == 1.0:
        return logit
    # log(a p / (1 - a p)) = log a + log p - log(1 - a p), where a p < 1
    log_p = functional.logsigmoid(logit) + math.log(scale)
    inside = log_p.clamp(max=-1e-7)
    found = inside - torch.log(-torch.expm1(inside))
    return torch.where(log_p < -1e-7, found, CERTAIN).clamp(-CERTAIN, CERTAIN)


class SoftHead(Soft):
    """``L = hard(main) + alpha * soft(auxiliary, min(a * p_T, 1))``.

    The auxiliary tower sees no hard label. What it sends back into the backbone is multiplied by ``b``
    (``gradient_scale``); what it learns itself is not.
    """

    auxiliary: tuple[str, ...] = ("auxiliary",)

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        self.config = config

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        target = scaled_labels(parts.teacher()[0], self.config.label_scale)
        return {
            "main/hard": parts.hard(heads["main"]),
            "auxiliary/soft": self.soft(heads["auxiliary"], parts, target),
        }

    def features(self, head: str, features: Tensor) -> Tensor:
        """The backbone's features; of soft-label heads the gradient is scaled."""
        return features if head == "main" else scale_gradient(features, self.config.gradient_scale)


class StudentAdapter(SoftHead):
    """A small network follows the teacher to what it should say today, and teaches another tower that.

    ``z_A = z_T + MLP(z_T)`` learns from fresh hard labels, where the teacher has a label, at a learning rate of its
    own; the tower ``adapted`` learns ``sigmoid(z_A)``, from which no gradient returns. So a stale teacher's calibration
    is mended before it is taught. The MLP begins at 0: the adapter begins as the teacher. It reads the logit, where the
    paper's reads the probability: the same information on a scale that does not vanish for rare labels. It is one step
    behind the paper's, which updates the adapter before the student within each step.
    """

    auxiliary = ("auxiliary", "adapted")

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.beta, self.learning_rate = config.beta, config.lr
        self.adapter = nn.Sequential(nn.Linear(1, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))
        for parameter in self.adapter[2].parameters():
            nn.init.zeros_(parameter)

    def adapted(self, logit: Tensor) -> Tensor:
        """``z_A [N]`` of the teacher's ``z_T [N]``."""
        change: Tensor = self.adapter(logit.unsqueeze(1))
        return logit + change.squeeze(1)

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        teacher, valid = parts.teacher()
        adapted = self.adapted(teacher.to(heads["main"].dtype))
        return {
            **super().terms(heads, parts),
            "adapter/hard": torch.where(valid, parts.hard(adapted), 0.0),
            "adapted/soft": self.beta * parts.soft(heads["adapted"], target=adapted),
        }
