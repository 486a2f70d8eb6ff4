"""Activation checkpointing: the same numbers to the last bit, with less kept for the backward pass."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from torch import Tensor

from recdistill_hstu import chunked
from recdistill_hstu.teacher import HSTUTeacher

BATCH = make_batch([30, 4, 0, 12], [(0, 30), (0, 17), (1, 0), (2, 0), (3, 9)])


def trained(teacher: HSTUTeacher) -> tuple[Tensor, list[Tensor], int]:
    """Logits and gradients of a training step in which dropout acts, and how often attention was computed."""
    torch.manual_seed(5)
    with mock.patch.object(chunked, "_attend", wraps=chunked._attend) as computed:
        logit = teacher.train().training_scores(BATCH).logits["click"]
        logit.square().sum().backward()
    return (
        logit.detach(),
        [weight.grad for weight in teacher.parameters() if weight.grad is not None],
        computed.call_count,
    )


@pytest.mark.parametrize("attention", ["silu", "softmax"])
@pytest.mark.parametrize(("checkpointing", "passes"), [("selective", 1), ("full", 2)])
@pytest.mark.parametrize("truncated", [0, 2])
def test_gradients_are_the_same_bit_for_bit(attention: str, checkpointing: str, passes: int, truncated: int) -> None:
    sizes = {"layers": 3, "dropout": 0.3, "attention": attention, "truncate_layers": truncated}
    if truncated:
        sizes["truncate_length"] = 8
    plain, kept = (
        trained(make_teacher(small_config(**sizes, checkpointing=kind), double=False))
        for kind in ("none", checkpointing)
    )
    assert torch.equal(plain[0], kept[0])
    assert len(plain[1]) == len(kept[1]) > 10
    assert all(torch.equal(*pair) for pair in zip(plain[1], kept[1], strict=True))
    assert (plain[2], kept[2]) == (3, 3 * passes)


def bytes_kept(checkpointing: str, layers: int) -> int:
    """Bytes of the distinct tensors that the forward pass leaves for the backward pass, memos included."""
    teacher = make_teacher(small_config(layers=layers, checkpointing=checkpointing), double=False)
    weights = {weight.untyped_storage().data_ptr() for weight in teacher.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    memo = chunked.Memo.recall

    def recall(self: chunked.Memo, compute: object) -> tuple[Tensor, ...]:
        found = memo(self, compute)  # type: ignore[arg-type]  # handed through
        alive.append(found)
        if checkpointing == "selective":
            note(found[0])
        return found

    with mock.patch.object(chunked.Memo, "recall", recall), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        scores = teacher.train().training_scores(BATCH)
    assert scores.logits["click"].requires_grad
    return sum(kept.values())


def test_a_layer_keeps_as_little_as_it_says() -> None:
    token = (46 + 5) * 16 * 4  # bytes of one activation of all tokens
    per_layer = {
        kind: (bytes_kept(kind, 6) - bytes_kept(kind, 2)) / 4 / token for kind in ("none", "selective", "full")
    }
    assert per_layer["full"] == pytest.approx(1, abs=0.1)  # the input
    assert per_layer["selective"] == pytest.approx(2, abs=0.2)  # and what attention gave
    assert per_layer["none"] > 10
