"""Sampled softmax against its formula, and the draws of negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from recdistill_gpsd.negatives import Drawing, popularity, sampled_softmax, unit


def case(seed: int, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    query, table = torch.randn(count, 6, generator=draw), torch.randn(size, 6, generator=draw)
    return query, table, torch.randint(1, size, (count,), generator=draw)


def naive(query: np.ndarray, table: np.ndarray, target: int, negative: np.ndarray, log_q: np.ndarray) -> float:
    def score(item: int) -> float:
        cosine = query @ table[item] / np.linalg.norm(query) / np.linalg.norm(table[item])
        return float(cosine / 0.05 - log_q[item])

    others = [np.exp(score(int(item))) for item in negative if item != target]
    return float(-np.log(np.exp(score(target)) / (np.exp(score(target)) + sum(others))))


@given(st.integers(0, 100), st.integers(1, 4), st.sampled_from([3, 8, 40]), st.booleans(), st.booleans())
def test_losses_equal_the_formula(seed: int, count: int, size: int, popular: bool, each: bool) -> None:
    query, table, target = case(seed, count, size)
    drawing = popularity(torch.arange(size) + 1) if popular else Drawing(size)
    shape = (count, 5) if each else (5,)
    negative = drawing.draw(shape, torch.Generator().manual_seed(seed))
    found = sampled_softmax(query.double(), table.double(), target, negative, drawing, temperature=0.05)
    share = np.arange(1, size + 1) / np.arange(2, size + 1).sum()  # id 0 is never drawn
    log_q = np.log(share) if popular else np.zeros(size)
    for at in range(count):
        drawn = negative[at] if each else negative
        wanted = naive(query[at].numpy(), table.numpy(), int(target[at]), drawn.numpy(), log_q)
        assert float(found[at]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_with_every_value_it_is_the_full_softmax() -> None:
    query, table, target = case(1, 9, 12)
    drawing = Drawing(12, every=True)
    negative = drawing.draw((4,), torch.Generator())
    assert negative.tolist() == list(range(1, 12))
    found = sampled_softmax(query, table, target, negative, drawing, temperature=0.5, normalise=False)
    wanted = functional.cross_entropy(query @ table[1:].T / 0.5, target - 1, reduction="none")
    assert torch.allclose(found, wanted, atol=1e-5)


def test_many_uniform_draws_have_the_gradient_of_the_full_softmax() -> None:
    query, table, target = case(2, 3, 30)
    query.requires_grad_()
    drawing = Drawing(30)
    negative = drawing.draw((3, 30 * 4000), torch.Generator().manual_seed(0))
    # each of the 29 others is drawn about 4138 times: a common factor on the negatives, made up for in the target
    sampled = sampled_softmax(query, table, target, negative, drawing, normalise=False)
    hit = (query * table[target]).sum(1)
    weights = torch.full((3, 29), np.log(negative.shape[1] / 29))
    weights[torch.arange(3), target - 1] = 0.0
    full = torch.logsumexp(query @ table[1:].T + weights, dim=1) - hit
    one, two = (torch.autograd.grad(loss.sum(), query, retain_graph=True)[0] for loss in (sampled, full))
    assert torch.allclose(one, two, atol=0.02)


def test_a_target_is_no_negative_of_itself() -> None:
    query, table, target = case(3, 2, 6)
    target = torch.tensor([2, 3])
    with_it, without = torch.tensor([2, 4, 5]), torch.tensor([4, 5])
    drawing = Drawing(6)
    found = [sampled_softmax(query, table, target, drawn, drawing)[0] for drawn in (with_it, without)]
    assert found[0] == found[1]
    alone = sampled_softmax(query[:1], table, target[:1], torch.tensor([2, 2]), drawing)
    assert alone.tolist() == [0.0]  # nothing to tell it from


def test_draws_are_seeded_never_out_of_vocabulary_and_follow_the_counts() -> None:
    count = torch.tensor([50, 0, 1, 3, 4])
    drawing = popularity(count)
    found = drawing.draw((20_000,), torch.Generator().manual_seed(0))
    assert found.tolist() == drawing.draw((20_000,), torch.Generator().manual_seed(0)).tolist()
    share = torch.bincount(found, minlength=5) / 20_000
    assert share[:2].tolist() == [0.0, 0.0]
    assert share[2:].tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8], abs=0.015)
    log_q = drawing.log_probability(torch.tensor([2, 4]))
    assert isinstance(log_q, torch.Tensor)
    assert log_q.exp().tolist() == pytest.approx([1 / 8, 4 / 8])
    even = torch.bincount(Drawing(5).draw((20_000,), torch.Generator().manual_seed(0)), minlength=5) / 20_000
    assert even.tolist() == pytest.approx([0.0, 0.25, 0.25, 0.25, 0.25], abs=0.015)
    assert popularity(torch.tensor([9, 0, 0])) == Drawing(3)  # nothing to go by


def test_a_zero_vector_has_no_direction_and_no_nan() -> None:
    assert unit(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert unit(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8])
