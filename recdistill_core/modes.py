"""Modules in evaluation mode for a while, each part of them back afterwards in the mode that it was in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """``module`` in eval mode and without gradient; a part that was held in eval mode before stays in it."""
    trained = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in trained:
            part.training = True
