"""The strategy itself: which towers there are in training, and what each of them learns from."""

from __future__ import annotations

from collections.abc import Mapping

import recdistill_core as rd
from recdistill_core.interfaces import LossParts
from torch import Tensor

from recdistill_myplugin import MyPluginConfig


class MyPluginStrategy(rd.HeadStrategy):
    """``L = hard(main) + weight * soft(auxiliary)``.

    The main tower's parameters get no gradient from the teacher, the auxiliary tower's none from the labels.

    Args:
        config: holds ``weight``.
    """

    auxiliary = ("auxiliary",)

    def __init__(self, config: MyPluginConfig) -> None:
        super().__init__()
        self.weight = config.weight

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """``{term: [N]}`` losses, which the wiring adds up and averages over rows.

        Args:
            heads: ``{"main": [N], "auxiliary": [N]}`` logits of one task, before the sigmoid.
            parts: hard and soft loss of one head ``[N] -> [N]``, with debiasing, masks and row weights inside.
        """
        return {
            "main/hard": parts.hard(heads["main"]),
            "auxiliary/soft": self.weight * parts.soft(heads["auxiliary"]),
        }
