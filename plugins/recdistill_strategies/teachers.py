"""Several teachers at once, each with a say of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recdistill_core.errors import DataError
from recdistill_core.interfaces import LossParts
from recdistill_strategies import TeachersConfig
from recdistill_strategies.heads import Soft


class MultiTeacher(Soft):
    """``L = hard(main) + hard(auxiliary) + alpha * soft(auxiliary, z)`` with ``z = sum_k w_k z_k / sum_k w_k``.

    The sums go over the teachers that have a label of the row. Learnt weights are those whose mixture ``z`` fits fresh
    hard labels best: ``hard(z)`` trains them, and nothing else; to learn them through the soft loss would choose the
    teacher that is easiest to copy.
    """

    auxiliary = ("auxiliary",)

    def __init__(self, config: TeachersConfig) -> None:
        super().__init__(config)
        self.config = config
        self.weights: nn.Parameter | None = None
        if config.learned:
            self.weights = nn.Parameter(torch.tensor(config.weights, dtype=torch.float32).log())
            self.learning_rate = config.lr

    def mixed(self, teachers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """``(z [N], some [N] bool)`` of each teacher's ``(logit [N], valid [N])``; 0 where none with a say has a label.

        Raises:
            DataError: if there are not as many teachers as weights.
        """
        if self.config.weights and len(self.config.weights) != len(teachers):
            raise DataError(
                f"strategy 'multi_teacher' has {len(self.config.weights)} weights, and the labels are of "
                f"{len(teachers)} teachers",
                where="strategy.weights",
                fix="give one for each of labels.versions, 'own' being as many as the run has teachers (out of fold: "
                "copies of them), with labels.policy 'all_of'",
            )
        logits, valid = (torch.stack(parts, dim=1) for parts in zip(*teachers, strict=True))
        if self.weights is not None:
            each = self.weights.softmax(0)
        else:
            each = torch.tensor(self.config.weights or [1.0] * len(teachers), device=logits.device)
        said = each.to(logits.dtype) * valid
        total = said.sum(1)
        return (said * logits).sum(1) / torch.where(total > 0, total, 1.0), total > 0

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        mixed, some = self.mixed(parts.teachers())
        found = {
            "main/hard": parts.hard(heads["main"]),
            "auxiliary/hard": parts.hard(heads["auxiliary"]),
            "auxiliary/soft": self.soft(heads["auxiliary"], parts, mixed, some),
        }
        if self.weights is not None:
            found["weights/hard"] = torch.where(some, parts.hard(mixed), 0.0)
        return found
