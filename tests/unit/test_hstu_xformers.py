"""The parts and masks that xformers is given: who sees whom, and how much memory they take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hstu_attention_cases import LONGEST, SPANS, assert_equals_reference, inputs, layouts, rows_only
from hstu_cases import make_batch, small_config
from hstu_xformers_kernels import DensePartial, HollowPartial, dense_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hstu_chunked import Largest
from torch import Tensor

from recdistill_hstu import xformers_parts
from recdistill_hstu.attention import installed, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.merged import Part
from recdistill_hstu.steps import plan_steps
from recdistill_hstu.xformers_backend import XformersAttention

PLAIN = {"attention": "softmax", "position_bias": False, "time_bias": False}
pytestmark = pytest.mark.skipif(not installed("xformers"), reason="xformers is not installed")


@st.composite
def partial_layouts(draw: st.DrawFn) -> Layout:
    """Some events of each history, in one piece or not, and some rows, many of which see the same."""
    lengths = draw(st.lists(st.integers(0, 2 * LONGEST), min_size=1, max_size=4))
    rows = [
        (history, draw(st.integers(0, length)))
        for history, length in enumerate(lengths)
        for _ in range(draw(st.sampled_from([0, 1, 9])))
    ]
    layout = Layout.of(make_batch(lengths, draw(st.permutations(rows))), draw(SPANS))
    chosen = []
    for begin, length in zip(layout.offsets.tolist(), lengths, strict=False):
        first = begin + draw(st.integers(0, length))
        missing = draw(st.sets(st.integers(first, begin + length), max_size=3))
        chosen += [event for event in range(first, begin + length) if event not in missing]
    every_row = range(layout.num_events, layout.num_asked)
    return layout.asking(torch.tensor([*chosen, *every_row], dtype=torch.long))


def attention_of(layout: Layout) -> XformersAttention:
    return XformersAttention(layout, dense_kernel, DensePartial())


@settings(max_examples=60, deadline=None)
@given(layout=partial_layouts())
def test_parts_of_any_tokens_equal_reference(layout: Layout) -> None:
    known = inputs(layout, heads=2, width=8, position=False, time=False)
    assert_equals_reference(
        lambda: attention_of(layout), layout, known, softmax=True, dtype=torch.float64, tolerance=1e-11
    )


@pytest.mark.parametrize("lengths", [[5, 0, 1, 12], [0, 0], []])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("span", [Span(), Span(1), Span(3), Span(3, 2), Span(2, 5), Span(4, 30), Span(30, 1)])
def test_masks_describe_the_reference(lengths: list[int], final: bool, span: Span) -> None:
    rows = [(history, end) for history, length in enumerate(lengths) for end in {0, length // 2, length}]
    layout = Layout.of(make_batch(lengths, rows), span)
    layout = layout.final()[0] if final else layout
    known = inputs(layout, heads=2, width=8, position=False, time=False)
    assert_equals_reference(
        lambda: attention_of(layout), layout, known, softmax=True, dtype=torch.float64, tolerance=1e-12
    )


def pairs_of_masks(attend: XformersAttention) -> Tensor:
    """``[S, T]`` how often xformers' masks let each token asked for see each token."""
    layout = attend.layout
    events = torch.arange(layout.num_events)
    parts = [Part(part.query + attend.dense, part.key, part.mask) for part in attend.parts]
    if attend.causal is not None:
        parts.append(Part(events, events, attend.causal))
    count = torch.zeros(layout.num_asked, layout.num_events + layout.num_rows)
    if attend.own is not None:
        count[attend.own.query + attend.dense, attend.own.key] += 1
    for part in parts:
        assert len(part.query.unique()) == len(part.query)
        assert part.key.bincount().max() <= 2
        allowed = part.mask.materialize((len(part.query), len(part.key))).exp()
        assert bool((allowed.sum(1) > 0).all())
        for query, row in zip(part.query.tolist(), allowed, strict=True):
            count[query].index_add_(0, part.key, row)
    return count


def pairs_of_layout(layout: Layout) -> Tensor:
    """``[S, T]`` 1 where a token asked for sees a token, by the layout that all backends read."""
    count = torch.zeros(layout.num_asked, layout.num_events + layout.num_rows)
    for asked in range(layout.num_asked):
        begin, place = int(layout.offsets[layout.history[asked]]), torch.arange(layout.longest)
        count[asked, begin + place[layout.span.has(place, layout.visible[asked])]] = 1
    for row in range(layout.asked_events, layout.num_asked):
        count[row, layout.token[row]] = 1
    return count


@settings(max_examples=60, deadline=None)
@given(layout=st.one_of(layouts(), partial_layouts()))
def test_masks_hold_each_pair_that_a_layout_has_once(layout: Layout) -> None:
    assert torch.equal(pairs_of_masks(XformersAttention(layout)), pairs_of_layout(layout))


def names(attend: XformersAttention) -> list[str]:
    return [type(part.mask).__name__ for part in attend.parts]


def test_whole_histories_attend_under_one_causal_mask_and_rows_share_keys() -> None:
    rows = [(0, 3), (1, 0), (0, 3), (1, 2), (0, 1)]
    attend = prepare("xformers", Layout.of(make_batch([3, 2], rows)), small_config(**PLAIN))
    assert isinstance(attend, XformersAttention)
    assert type(attend.causal).__name__ == "BlockDiagonalCausalMask"
    assert names(attend) == ["BlockDiagonalMask", "BlockDiagonalMask"]
    first, second = attend.parts
    assert (first.query.tolist(), first.key.tolist()) == ([4, 0, 2, 3], [0, 1, 2, 3, 4])
    assert first.mask.q_seqinfo.seqstart_py == [0, 1, 3, 4]
    assert first.mask.k_seqinfo.seqstart_py == [0, 1, 3, 5]
    assert (second.query.tolist(), second.key.tolist()) == ([0, 2], [0])
    assert attend.own is not None
    assert (attend.own.query.tolist(), attend.own.key.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])


def test_local_masks_under_a_span() -> None:
    layout = Layout.of(make_batch([9, 2, 4], [(0, 9)]), Span(recent=3, oldest=2))
    attend = prepare("xformers", layout, small_config(**PLAIN))
    assert isinstance(attend, XformersAttention)
    assert attend.causal is None
    kinds = ["BlockDiagonalCausalLocalAttentionMask", "BlockDiagonalCausalMask", "BlockDiagonalMask"]
    assert names(attend) == [*kinds, *["BlockDiagonalMask"] * 2]
    band, triangle, block, recent, oldest = attend.parts
    assert band.query.tolist() == list(range(15))
    assert (triangle.query.tolist(), triangle.key.tolist()) == ([3, 4, 14], [0, 1, 11])
    assert (block.query.tolist(), block.key.tolist()) == ([5, 6, 7, 8], [0, 1])
    assert (recent.query.tolist(), recent.key.tolist()) == ([15], [6, 7, 8])
    assert (oldest.query.tolist(), oldest.key.tolist()) == ([15], [0, 1])


def test_the_newest_events_attend_under_a_causal_mask_and_to_a_shared_prefix() -> None:
    layout = Layout.of(make_batch([50, 30], []))
    attend = XformersAttention(layout.asking(torch.cat([torch.arange(20, 50), torch.arange(79, 80)])))
    assert names(attend) == ["BlockDiagonalCausalMask", "BlockDiagonalMask"]
    causal, before = attend.parts
    assert causal.query.tolist() == list(range(30))
    assert causal.key.tolist() == list(range(20, 50))
    assert before.key.tolist() == [*range(20), *range(50, 80)]
    under_span = XformersAttention(
        Layout.of(make_batch([50], []), Span(recent=10, oldest=4)).asking(torch.arange(20, 50))
    )
    assert names(under_span) == ["BlockDiagonalCausalLocalAttentionFromBottomRightMask", "BlockDiagonalMask"]
    assert under_span.parts[0].key.tolist() == list(range(11, 50))


def test_parts_have_a_bounded_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers_parts, "BLOCKS", 3)
    layout = rows_only(Layout.of(make_batch([60, 40], [(end % 2, 3 * end) for end in range(14)])))
    attend = XformersAttention(layout)
    assert max(len(part.mask.q_seqinfo.seqstart_py) - 1 for part in attend.parts) == 3
    assert torch.equal(pairs_of_masks(attend), pairs_of_layout(layout))


def handoff() -> Layout:
    """What the last layer before truncation computes."""
    config = small_config(layers=2, truncate_layers=1, truncate_length=1000, max_length=4000)
    return plan_steps(Layout.of(make_batch([4000], [(0, 4000), (0, 3700)])), config)[0][0].layout


def many_ends() -> Layout:
    return rows_only(Layout.of(make_batch([4000], [(0, 4000 - 7 * row) for row in range(512)])))


def one_end() -> Layout:
    return rows_only(Layout.of(make_batch([4000], [(0, 4000)] * 4096)))


def extended() -> Layout:
    """One history is encoded again, another has a new event."""
    return Layout.of(make_batch([2000, 2000], [])).asking(torch.cat([torch.arange(2000), torch.tensor([3999])]))


def every_other_event() -> Layout:
    return Layout.of(make_batch([4000], []), Span(recent=512, oldest=64)).asking(torch.arange(0, 4000, 2))


@pytest.mark.parametrize("make", [handoff, many_ends, one_end, extended, every_other_event])
def test_no_tensor_is_larger_than_the_tokens(make: Callable[[], Layout]) -> None:
    layout = make()
    tokens = layout.num_events + layout.num_rows
    q, k, v = (torch.randn(count, 2, 8, requires_grad=True) for count in (layout.num_asked, tokens, tokens))
    hollow = HollowPartial()
    with Largest() as largest:
        out = XformersAttention(layout, dense_kernel, hollow)(q, k, v, Bias())
        out.square().sum().backward()
    assert largest.elements <= tokens * 2 * 8
    assert hollow.pairs >= int(layout.visible.sum()) if not layout.span.recent else hollow.pairs > 0
    assert len(XformersAttention(layout).parts) < 60


def test_many_rows_of_one_history_equal_reference() -> None:
    layout = rows_only(Layout.of(make_batch([300], [(0, (7 * row) % 301) for row in range(120)])))
    known = inputs(layout, heads=1, width=8, position=False, time=False)
    assert_equals_reference(
        lambda: attention_of(layout), layout, known, softmax=True, dtype=torch.float32, tolerance=2e-5
    )


def test_a_bias_is_refused() -> None:
    attend = attention_of(Layout.of(make_batch([3], [(0, 3)])))
    with pytest.raises(ValueError, match="xformers attention has no additive bias"):
        attend(*(torch.zeros(4, 2, 8) for _ in range(3)), Bias(position=torch.zeros(9)))
