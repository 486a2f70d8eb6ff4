"""Which backend computes the attention, what is said where it cannot, and the masks that xformers is given."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hstu_attention_cases import layouts
from hstu_cases import make_batch, make_teacher, small_config
from hstu_xformers_kernels import DensePartial, dense_kernel
from hypothesis import given, settings
from torch import Tensor

from recdistill_core.errors import ConfigError, UsageError
from recdistill_hstu import attention
from recdistill_hstu import teacher as teacher_module
from recdistill_hstu.attention import choose_backend, installed, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.merged import Part
from recdistill_hstu.xformers_backend import XformersAttention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = {"attention": "softmax", "position_bias": False, "time_bias": False}
needs_xformers = pytest.mark.skipif(not installed("xformers"), reason="xformers is not installed")


@needs_xformers
@pytest.mark.parametrize("lengths", [[5, 0, 1, 12], [0, 0], []])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("span", [Span(), Span(1), Span(3), Span(3, 2), Span(2, 5), Span(4, 30), Span(30, 1)])
def test_xformers_masks_describe_the_reference(lengths: list[int], final: bool, span: Span) -> None:
    rows = [(history, end) for history, length in enumerate(lengths) for end in {0, length // 2, length}]
    layout = Layout.of(make_batch(lengths, rows), span)
    layout = layout.final()[0] if final else layout
    torch.manual_seed(0)
    tokens = layout.num_events + layout.num_rows
    q = torch.randn(layout.num_asked, 2, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(tokens, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = XformersAttention(layout, dense_kernel, DensePartial())(q, k, v, Bias())
    expected = prepare("reference", layout, small_config(**PLAIN))(q, k, v, Bias())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v), materialize_grads=True) for out in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-10)


@needs_xformers
def test_xformers_uses_its_block_diagonal_masks() -> None:
    attend = prepare("xformers", Layout.of(make_batch([3, 2], [(0, 3), (1, 0)])), small_config(**PLAIN))
    assert isinstance(attend, XformersAttention)
    assert type(attend.causal).__name__ == "BlockDiagonalCausalMask"
    assert type(attend.single).__name__ == "BlockDiagonalMask"
    assert attend.keys.tolist() == [0, 1, 2, 5, 6]


def pairs_of_masks(attend: XformersAttention) -> Tensor:
    """``[S, T]`` how often xformers' masks let each token asked for see each token."""
    layout = attend.layout
    events = torch.arange(layout.num_events)
    parts = list(attend.parts)
    if attend.causal is not None:
        parts.append(Part(events, events, attend.causal))
    if attend.single is not None:
        parts.append(Part(torch.arange(attend.dense, layout.num_asked), attend.keys, attend.single))
    count = torch.zeros(layout.num_asked, layout.num_events + layout.num_rows)
    for part in parts:
        allowed = part.mask.materialize((len(part.query), len(part.key))).exp()
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


@needs_xformers
@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_xformers_masks_hold_each_pair_that_a_layout_has_once(layout: Layout) -> None:
    assert torch.equal(pairs_of_masks(XformersAttention(layout)), pairs_of_layout(layout))


@needs_xformers
def test_xformers_uses_its_local_masks_under_a_span() -> None:
    layout = Layout.of(make_batch([9, 2, 4], [(0, 9)]), Span(recent=3, oldest=2))
    attend = prepare("xformers", layout, small_config(**PLAIN))
    assert isinstance(attend, XformersAttention)
    assert attend.causal is None
    names = [type(part.mask).__name__ for part in attend.parts]
    assert names == ["BlockDiagonalCausalLocalAttentionMask", "BlockDiagonalCausalMask", "BlockDiagonalMask"]
    band, triangle, block = attend.parts
    assert band.query.tolist() == list(range(15))
    assert (triangle.query.tolist(), triangle.key.tolist()) == ([3, 4, 14], [0, 1, 11])
    assert (block.query.tolist(), block.key.tolist()) == ([5, 6, 7, 8], [0, 1])
    assert attend.keys.tolist() == [0, 1, 6, 7, 8, 15]


@needs_xformers
def test_xformers_refuses_a_bias() -> None:
    attend = XformersAttention(Layout.of(make_batch([3], [(0, 3)])), dense_kernel)
    with pytest.raises(ValueError, match="xformers attention has no additive bias"):
        attend(*(torch.zeros(4, 2, 8) for _ in range(3)), Bias(position=torch.zeros(9)))


@pytest.mark.parametrize("backend", ["reference", "chunked", "sdpa", "triton"])
def test_position_weights_that_are_too_few_are_refused(backend: str) -> None:
    if backend == "triton" and not installed("triton"):
        pytest.skip("triton is not installed")
    attend = prepare(backend, Layout.of(make_batch([9], [(0, 9)])), small_config(attention="softmax"))
    with pytest.raises(UsageError) as caught:
        attend(*(torch.zeros(10, 2, 8) for _ in range(3)), Bias(position=torch.zeros(9)))
    assert str(caught.value).splitlines() == [
        "a bias with 9 position weights cannot serve a history of 9 events, which needs 10",
        "  where: teacher.max_length",
        "  to do: raise max_length, or ask the source for shorter histories with teacher.history",
    ]


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "expected"),
    [
        ({}, CPU, torch.float32, "chunked"),
        ({}, CUDA, torch.float32, "triton"),
        ({}, CUDA, torch.bfloat16, "triton"),
        ({}, CUDA, torch.float64, "chunked"),
        ({"attend_recent": 8}, CUDA, torch.bfloat16, "triton"),
        ({"width": 1024}, CUDA, torch.bfloat16, "chunked"),
        ({"attention": "softmax"}, CPU, torch.float32, "chunked"),
        (PLAIN, CPU, torch.float32, "sdpa"),
        (PLAIN, CPU, torch.float64, "sdpa"),
        (PLAIN | {"attend_recent": 8}, CPU, torch.float32, "chunked"),
        (PLAIN, CUDA, torch.float32, "xformers"),
        (PLAIN, CUDA, torch.float64, "sdpa"),
        (PLAIN | {"position_bias": True}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"heads": 4}, CUDA, torch.float32, "sdpa"),
        (PLAIN | {"attend_recent": 8}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"attend_recent": 8}, CUDA, torch.bfloat16, "xformers"),
        ({"attention": "softmax", "backend": "sdpa"}, CPU, torch.float64, "sdpa"),
        ({"backend": "triton"}, CUDA, torch.float16, "triton"),
        (PLAIN | {"backend": "reference"}, CUDA, torch.float32, "reference"),
        (PLAIN | {"backend": "chunked"}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"backend": "xformers"}, CUDA, torch.float32, "xformers"),
    ],
)
def test_choice_of_backend(
    changes: dict[str, Any], device: torch.device, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "installed", lambda package: True)
    assert choose_backend(small_config(**changes), device, dtype) == expected


def test_auto_works_where_packages_are_absent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attention._pass_over.cache_clear()
    monkeypatch.setattr(attention, "installed", lambda package: False)
    with caplog.at_level(logging.INFO, logger="recdistill_hstu"):
        for _ in range(2):
            assert choose_backend(small_config(**PLAIN), CUDA, torch.float32) == "sdpa"
            assert choose_backend(small_config(width=1024), CUDA, torch.float64) == "chunked"
    assert [record.getMessage() for record in caplog.records] == [
        "hstu does not use the xformers backend: the package xformers is not installed",
        "hstu does not use the triton backend: it needs heads of width 256 or less, and width / heads is 512; "
        "the package triton is not installed; "
        "it computes in float32, float16 or bfloat16, and the tensors are torch.float64",
    ]
    attention._pass_over.cache_clear()


def test_autocast_decides_by_the_dtype_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "installed", lambda package: True)
    config = small_config(**PLAIN, attend_recent=8)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert choose_backend(config, CUDA, torch.float32) == "xformers"


FIX = "(set backend to 'auto' or 'chunked')"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"backend": "xformers", "heads": 4, "attend_recent": 8},
            [
                "xformers: it computes softmax attention, and attention is 'silu'",
                "xformers: it is run without additive bias, and position_bias is true",
                "xformers: it is run without additive bias, and time_bias is true",
                "xformers: it needs heads whose width is a multiple of 8, and width / heads is 4",
                "xformers: the package xformers is not installed",
                "xformers: it needs a CUDA device, and this machine has none",
            ],
        ),
        (
            {"backend": "triton", "attention": "softmax", "width": 520, "heads": 2},
            [
                "triton: it computes silu attention, and attention is 'softmax'",
                "triton: it needs heads of width 256 or less, and width / heads is 260",
                "triton: the package triton is not installed",
                "triton: it needs a CUDA device, and this machine has none",
            ],
        ),
        ({"backend": "sdpa"}, ["sdpa: it computes softmax attention, and attention is 'silu'"]),
    ],
)
def test_building_with_a_hopeless_backend_lists_every_reason(
    changes: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "installed", lambda package: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        make_teacher(small_config(**changes))
    assert list(caught.value.problems) == [f"teacher.backend: {reason} {FIX}" for reason in expected]


@pytest.mark.parametrize(
    ("changes", "double", "reasons"),
    [
        (
            PLAIN | {"backend": "xformers"},
            True,
            "its kernels run on CUDA, and the tensors are on 'cpu'; it computes in float32, float16 or bfloat16, "
            "and the tensors are torch.float64",
        ),
        (
            PLAIN | {"backend": "xformers", "attend_recent": 4},
            False,
            "its kernels run on CUDA, and the tensors are on 'cpu'; with attend_recent it computes in float16 or "
            "bfloat16, and the tensors are torch.float32",
        ),
        ({"backend": "triton"}, False, "its kernels run on CUDA, and the tensors are on 'cpu'"),
    ],
)
def test_first_call_on_the_wrong_tensors_lists_every_reason(
    changes: dict[str, Any], double: bool, reasons: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "installed", lambda package: True)
    monkeypatch.setattr(attention, "_interpreted", lambda backend: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    teacher = make_teacher(small_config(**changes), double=double)
    with pytest.raises(UsageError) as caught:
        teacher.score(make_batch([3], [(0, 3)]))
    assert str(caught.value).splitlines() == [
        f"the {changes['backend']} backend cannot compute this: {reasons}",
        "  where: teacher.backend",
        "  to do: set backend to 'auto' or 'chunked', or move teacher and batch to a CUDA device",
    ]


def test_choice_is_logged_once_and_described(caplog: pytest.LogCaptureFixture) -> None:
    teacher_module._announce.cache_clear()
    teacher = make_teacher(small_config(attention="softmax"))
    batch = make_batch([3], [(0, 3)])
    with caplog.at_level(logging.INFO, logger="recdistill_hstu"):
        teacher.score(batch)
        make_teacher(small_config(attention="softmax")).score(batch)
    assert [record.getMessage() for record in caplog.records] == [
        "hstu computes softmax attention with the chunked backend"
    ]
    assert teacher.describe() == {"attention": "softmax", "backend": "chunked"}
