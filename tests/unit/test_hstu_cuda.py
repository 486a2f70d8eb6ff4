"""What CI cannot show: the attention of a CUDA device against the reference in float64. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from hstu_attention_cases import assert_equals_reference, inputs, on_device, rows_only
from hstu_cases import make_batch, small_config

from recdistill_hstu.attention import installed, prepare
from recdistill_hstu.layout import Layout, Span

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

#: Largest error, relative to the greatest element, that a dtype may have.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
SPANS = [Span(), Span(recent=100, oldest=30), Span(recent=20, oldest=400)]


def check(backend: str, layout: Layout, dtype: torch.dtype, *, width: int, biased: bool) -> None:
    attention = "silu" if backend == "triton" else "softmax"
    config = small_config(attention=attention, heads=2, width=2 * width, max_length=600)
    there = on_device(layout, "cuda")
    assert_equals_reference(
        lambda: prepare(backend, there, config),
        layout,
        inputs(layout, heads=2, width=width, position=biased, time=biased),
        softmax=attention == "softmax",
        dtype=dtype,
        tolerance=TOLERANCE[dtype],
        device="cuda",
    )


def jagged(span: Span) -> Layout:
    rows = [(0, 500), (0, 3), (1, 0), (2, 1), (3, 130), (3, 129)]
    return Layout.of(make_batch([500, 0, 1, 131], rows), span)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("width", [16, 64, 128, 256])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_triton_kernels(span: Span, width: int, dtype: torch.dtype) -> None:
    layout = jagged(span)
    for asked in (layout, rows_only(layout)):
        check("triton", asked, dtype, width=width, biased=True)
    check("triton", layout, dtype, width=width, biased=False)


@pytest.mark.skipif(not installed("xformers"), reason="xformers is not installed")
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_xformers_kernels(span: Span, width: int, dtype: torch.dtype) -> None:
    check("xformers", jagged(span), dtype, width=width, biased=False)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_sdpa_kernels(span: Span, biased: bool, dtype: torch.dtype) -> None:
    check("sdpa", jagged(span), dtype, width=64, biased=biased)
