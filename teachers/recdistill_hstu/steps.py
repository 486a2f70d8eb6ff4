"""Which tokens each layer computes: all of them, those of the truncated windows, and at last those that the head reads.

A layer computes the tokens that the next one reads and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill_core.interfaces import HistoryWindow
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout


@dataclass(frozen=True)
class Step:
    """One layer's work.

    Attributes:
        layout: of the tokens that it computes.
        asked: ``[S]`` int64 places of these among its inputs; None: all.
        passed: ``[T']`` int64 places of the next layer's inputs among its results; None: all.
    """

    layout: Layout
    asked: Tensor | None = None
    passed: Tensor | None = None


def truncation(config: HSTUConfig) -> HistoryWindow | None:
    """What the truncated layers see: at most ``truncate_length`` events, at least half of them, from a start that is a
    function of the row alone."""
    if not config.truncate_layers:
        return None
    return HistoryWindow(config.truncate_length, max(1, config.truncate_length // 2))


def plan_steps(layout: Layout, config: HSTUConfig) -> tuple[list[Step], Tensor]:
    """The work of each layer, and where its result is read.

    Args:
        layout: of all tokens.
        config: how many layers, and how many of the last are truncated.

    Returns:
        one step per layer, and ``[N]`` int64 place of each row's newest event among the last step's results, or their
        number of events where a row sees none.
    """
    window, steps = truncation(config), []
    whole = config.layers - config.truncate_layers
    for number in range(config.layers - 1):
        step = Step(layout)
        if window is not None and number == whole - 1:
            shorter, chosen = layout.truncated(window)
            asked, passed = torch.unique(chosen, return_inverse=True)
            step = Step(layout.asking(asked), asked, passed)
            layout = shorter
        steps.append(step)
    final, place = layout.final()
    return [*steps, Step(final, final.token)], place
