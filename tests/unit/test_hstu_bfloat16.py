"""Training under bfloat16 autocast: the same model to the precision of bfloat16, and float32 where it matters."""

from __future__ import annotations

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from torch import Tensor
from torch.nn import functional

BATCH = make_batch([30, 4, 0, 12], [(0, 30), (0, 17), (1, 0), (2, 0), (3, 9)])


def step(changes: dict[str, object], *, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of one training step."""
    torch.manual_seed(3)
    teacher = make_teacher(small_config(**changes), double=False).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logit = teacher.training_scores(BATCH).logits["click"]
    functional.binary_cross_entropy_with_logits(logit.float(), BATCH.labels["click"]).backward()
    return logit.detach().float(), {
        name: weight.grad for name, weight in teacher.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("attention", ["silu", "softmax"])
@pytest.mark.parametrize("changes", [{}, {"attend_recent": 5, "attend_oldest": 2}, {"layers": 3, "truncate_layers": 1}])
def test_autocast_gives_the_same_model_to_bfloat16(attention: str, changes: dict[str, object]) -> None:
    changes = {**changes, "attention": attention, "truncate_length": 8 if "truncate_layers" in changes else 0}
    exact, gradients = step(changes, autocast=False)
    found, rounded = step(changes, autocast=True)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    assert rounded.keys() == gradients.keys()
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32, name
        assert bool(torch.isfinite(gradient).all()), name
    together = [torch.cat([part.flatten() for part in side.values()]) for side in (rounded, gradients)]
    assert float(functional.cosine_similarity(*together, dim=0)) > 0.99


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointing_under_autocast_changes_no_bit(checkpointing: str) -> None:
    plain, kept = (step({"checkpointing": kind}, autocast=True) for kind in ("none", checkpointing))
    assert torch.equal(plain[0], kept[0])
    assert all(torch.equal(gradient, kept[1][name]) for name, gradient in plain[1].items())
