"""Chunked attention against the reference, forward and backward, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hstu_cases import asked_only, make_batch, small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recdistill_core.batch import Batch
from recdistill_hstu.attention import prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.chunked import ChunkedAttention
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.sdpa_backend import SdpaAttention


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Histories that may be empty, with no, one or many rows each."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    rows = [
        (history, draw(st.integers(0, length)))
        for history, length in enumerate(lengths)
        for _ in range(draw(st.integers(0, 5)))
    ]
    order = draw(st.permutations(rows))
    return make_batch(lengths, order, seed=draw(st.integers(0, 99)))


def inputs(layout: Layout, position: bool, time: bool) -> dict[str, Tensor | None]:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    asked, tokens = layout.num_asked, layout.num_events + layout.num_rows
    return {
        "q": leaf(asked, 2, 4),
        "k": leaf(tokens, 2, 4),
        "v": leaf(tokens, 2, 4),
        "position": leaf(41) if position else None,
        "time": leaf(129) if time else None,
    }


def outcome(
    backend: str, layout: Layout, config: HSTUConfig, given: dict[str, Any], some: Tensor | None = None
) -> dict[str, Tensor]:
    """The output and the gradient of every input, for one fixed direction; of ``some`` tokens where they are given."""
    q = given["q"] if some is None or len(given["q"]) == layout.num_asked else given["q"][some]
    out = prepare(backend, layout, config)(q, given["k"], given["v"], Bias(given["position"], given["time"]))
    out = out if some is None or len(out) == len(some) else out[some]
    direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    names = [name for name, value in given.items() if value is not None]
    grads = torch.autograd.grad((out * direction).sum(), [given[name] for name in names], materialize_grads=True)
    return {"out": out.detach(), **dict(zip(names, grads, strict=True))}


@settings(max_examples=40, deadline=None)
@given(
    batch=batches(),
    attention=st.sampled_from(["silu", "softmax"]),
    position=st.booleans(),
    time=st.booleans(),
    budget=st.sampled_from([1, 30, 400, 1 << 20]),
    final=st.booleans(),
    span=st.builds(Span, st.sampled_from([0, 1, 3, 10]), st.sampled_from([0, 1, 4])),
)
def test_chunked_equals_reference_forward_and_backward(
    batch: Batch, attention: str, position: bool, time: bool, budget: int, final: bool, span: Span
) -> None:
    config = small_config(attention=attention, score_budget=budget)
    layout = Layout.of(batch, span)
    layout = layout.final()[0] if final else layout
    torch.manual_seed(0)
    given_inputs = inputs(layout, position, time)
    expected = outcome("reference", layout, config, given_inputs)
    found = outcome("chunked", layout, config, given_inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text)


@settings(max_examples=40, deadline=None)
@given(
    batch=batches(),
    budget=st.sampled_from([1, 30, 400, 1 << 20]),
    span=st.builds(Span, st.sampled_from([0, 1, 3, 10]), st.sampled_from([0, 1, 4])),
)
def test_tiles_and_strips_cover_each_visible_pair_once_within_the_budget(batch: Batch, budget: int, span: Span) -> None:
    layout = Layout.of(batch, span)
    plan = ChunkedAttention(layout, softmax=False, heads=2, budget=budget)
    pairs: list[tuple[int, int]] = []

    def note(asked: Tensor, visible: Tensor, key: Tensor, place: Tensor) -> None:
        for query, seen in zip(asked.tolist(), span.has(place, visible[:, None]), strict=True):
            pairs.extend((query, event) for event in key[seen].tolist())

    for group in plan.groups:
        area = group.query.numel() * group.key.shape[1]
        assert 2 * area <= budget or group.query.numel() == 1
        for tile in zip(group.query, group.visible, group.key, group.place, strict=True):
            note(*tile)
    for strip in plan.strips:
        for piece in strip.pieces:
            place = piece.place + torch.arange(piece.stop - piece.first)
            assert 2 * len(strip.query) * len(place) <= max(budget, 2)
            assert not piece.whole or bool(span.has(place, strip.visible[:, None]).all())
            note(strip.query, strip.visible, torch.arange(piece.first, piece.stop), place)
    begin = layout.offsets[layout.history].tolist()
    places = torch.arange(layout.longest)
    expected = [
        (asked, begin[asked] + place)
        for asked, visible in enumerate(layout.visible)
        for place in places[span.has(places, visible)].tolist()
    ]
    # a padded token of a tile sees nothing, so that it notes nothing
    assert sorted(pairs) == expected


def test_thousands_of_short_histories_take_few_groups() -> None:
    lengths = torch.randint(20, 60, (2000,)).tolist()
    layout = Layout.of(make_batch(lengths, [(history, length) for history, length in enumerate(lengths)]))
    plan = ChunkedAttention(layout, softmax=False, heads=4, budget=1 << 20)
    useful = int(layout.visible.sum())
    padded = sum(group.query.numel() * group.key.shape[1] for group in plan.groups)
    assert not plan.strips
    assert len(plan.groups) < 60
    assert padded < 3 * useful


@pytest.mark.parametrize("span", [Span(), Span(recent=700, oldest=40)])
@pytest.mark.parametrize("attention", ["silu", "softmax"])
def test_strips_of_their_usual_size_equal_reference(attention: str, span: Span) -> None:
    config = small_config(attention=attention, max_length=2000, heads=1)
    layout = Layout.of(make_batch([2000, 9], [(0, 2000), (0, 2000), (0, 1000), (1, 5)]), span)
    plan = ChunkedAttention(layout, softmax=False, heads=1, budget=config.score_budget)
    assert {strip.steady for strip in plan.strips} == {True, False}
    some = torch.arange(0, layout.num_asked, 37)
    given_inputs = inputs(layout, True, True) | {"position": torch.randn(2001, dtype=torch.float64).requires_grad_()}
    found = outcome("chunked", layout, config, given_inputs, some)
    expected = outcome("reference", asked_only(layout, some), config, given_inputs, some)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: name + text)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns; of a view that repeats elements, what it looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        sizes = [min(leaf.numel(), leaf.untyped_storage().nbytes() // leaf.element_size()) for leaf in tensors]
        self.elements = max([self.elements, *sizes])
        return result


def run_long(length: int, attention: str, backend: str) -> tuple[int, int]:
    """``(elements of the largest tensor, elements saved for backward)`` of one history with two rows."""
    config = small_config(attention=attention, max_length=length, heads=1, score_budget=1 << 16)
    layout = Layout.of(make_batch([length], [(0, length), (0, length // 2)]))
    q, k, v = (torch.randn(length + 2, 1, 8, requires_grad=True) for _ in range(3))
    bias = Bias(torch.zeros(length + 1, requires_grad=True), torch.zeros(129, requires_grad=True))
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = prepare(backend, layout, config)(q, k, v, bias)
        out.square().sum().backward()
    assert q.grad is not None
    return largest.elements, saved


@pytest.mark.parametrize("attention", ["silu", "softmax"])
def test_memory_grows_linearly_with_length(attention: str) -> None:
    largest, saved = run_long(2048, attention, "chunked")
    assert largest < 2048 * 2048 / 4
    assert saved <= 2.1 * run_long(1024, attention, "chunked")[1]


def test_memory_test_can_see_a_quadratic_tensor() -> None:
    with Largest() as largest:
        torch.zeros(300, 300)
    assert largest.elements == 300 * 300


def test_time_buckets_are_computed_once_for_all_layers_unless_they_are_too_many() -> None:
    layout = Layout.of(make_batch([30, 40], [(0, 30)]))
    bias = Bias(torch.zeros(41), torch.zeros(129))
    roomy = ChunkedAttention(layout, softmax=False, heads=2, budget=1 << 20)
    assert roomy.codes(0, bias) is roomy.codes(0, bias)
    tight = ChunkedAttention(layout, softmax=False, heads=2, budget=80)
    assert tight.codes(0, bias) is not tight.codes(0, bias)


@pytest.mark.parametrize("attention", ["silu", "softmax"])
def test_bfloat16_tokens_are_weighed_in_float32(attention: str) -> None:
    config = small_config(attention=attention)
    layout = Layout.of(make_batch([30, 0, 9], [(0, 30), (1, 0), (2, 4)]))
    q, k, v = (torch.randn(layout.num_asked, 2, 4).bfloat16() for _ in range(3))
    bias = Bias(torch.randn(41), torch.randn(129))
    found = prepare("chunked", layout, config)(q, k, v, bias)
    wide = prepare("chunked", layout, config)(q.float(), k.float(), v.float(), bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wide, rtol=0.03, atol=0.03 * float(wide.abs().max()))


def test_a_span_is_the_newest_and_the_oldest_of_what_is_visible() -> None:
    place, visible = torch.arange(8), torch.tensor([[0], [2], [5], [8]])
    found = Span(recent=3, oldest=2).has(place, visible).int().tolist()
    assert found == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]
    assert torch.equal(Span().has(place, visible), place < visible)
    assert Span(recent=3).first(visible.flatten()).tolist() == [0, 0, 2, 5]
    assert Span().first(visible.flatten()).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("recent", [64, 600])
def test_scores_under_a_span_grow_linearly_with_length(recent: int) -> None:
    def pairs(length: int, recent: int) -> int:
        layout = Layout.of(make_batch([length], [(0, length)]), Span(recent, oldest=16))
        plan = ChunkedAttention(layout, softmax=False, heads=2, budget=1 << 16)
        assert bool(plan.groups) != bool(plan.strips)
        in_groups = sum(group.query.numel() * group.key.shape[1] for group in plan.groups)
        strips = ((strip.query.numel(), piece.stop - piece.first) for strip in plan.strips for piece in strip.pieces)
        return in_groups + sum(tokens * events for tokens, events in strips)

    short, long = pairs(4000, recent), pairs(32_000, recent)
    assert 7 < long / short < 9
    assert long < 32_000 * (recent + 16 + 128) * 1.3


@pytest.mark.parametrize("span", [Span(), Span(recent=1, oldest=512), Span(recent=700, oldest=40)])
def test_neighbouring_tokens_fill_their_strips(span: Span) -> None:
    layout = Layout.of(make_batch([2000], [(0, 2000)]), span)
    plan = ChunkedAttention(layout, softmax=False, heads=1, budget=1 << 18)
    assert not plan.groups
    assert len(plan.strips) == 16  # of 128 tokens


@pytest.mark.parametrize("span", [Span(recent=64, oldest=16), Span(recent=700, oldest=40)])
def test_tokens_scattered_over_a_long_history_share_no_window(span: Span) -> None:
    """The last layer's rows: what lies between their windows is neither held nor computed."""
    heads, budget, ends = 4, 1 << 18, [int(end) for end in torch.linspace(0, 5000, 90)]
    layout = Layout.of(make_batch([5000], [(0, end) for end in ends]), span).final()[0]
    plan = ChunkedAttention(layout, softmax=False, heads=heads, budget=budget)
    areas = [group.query.numel() * group.key.shape[1] for group in plan.groups]
    areas += [sum(len(strip.query) * (piece.stop - piece.first) for piece in strip.pieces) for strip in plan.strips]
    assert bool(plan.groups) is (span.recent == 64)
    assert heads * max(areas[: len(plan.groups)], default=0) <= budget
    assert sum(areas) < 4 * float(layout.visible.clamp(max=span.recent + span.oldest).sum())
    config = small_config(max_length=5000, score_budget=budget)
    given_inputs = inputs(layout, True, True) | {"position": torch.randn(5001, dtype=torch.float64).requires_grad_()}
    found, expected = (outcome(backend, layout, config, given_inputs) for backend in ("chunked", "reference"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: name + text)
    softmax = SdpaAttention(layout, heads=heads, budget=budget)
    assert all(
        heads * group.query.numel() * group.key.shape[1] <= budget
        for of_rows in (True, False)
        for group in softmax._tiles(of_rows=of_rows)
    )
