"""Evaluation mode for a while."""

from __future__ import annotations

import torch
from torch import nn

from recdistill_core.modes import evaluation


def test_every_part_goes_back_into_the_mode_that_it_was_in() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    module.train()
    module[1][1].eval()  # type: ignore[index]  # a Sequential in a Sequential
    before = [part.training for part in module.modules()]
    with evaluation(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in module.modules()] == before
    assert torch.is_grad_enabled()
