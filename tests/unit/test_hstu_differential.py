"""Every torch backend against the reference in float64: jagged shapes, spans, dtypes, head widths, long histories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hstu_attention_cases import assert_equals_reference, inputs, layouts, outcome, rows_only, some_of
from hstu_cases import asked_only, make_batch, small_config
from hstu_xformers_kernels import DensePartial, dense_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_hstu.attention import Attend, installed, prepare
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.xformers_backend import XformersAttention

#: Largest error, relative to the greatest element, that a dtype may have.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2}
CASES = [("chunked", "silu"), ("chunked", "softmax"), ("sdpa", "softmax")]
if installed("xformers"):
    CASES.append(("xformers", "softmax"))


def maker(backend: str, attention: str, layout: Layout, *, heads: int, budget: int) -> Callable[[], Attend]:
    if backend == "xformers":
        return lambda: XformersAttention(layout, dense_kernel, DensePartial())
    config = small_config(attention=attention, heads=heads, score_budget=budget)
    return lambda: prepare(backend, layout, config)


@pytest.mark.parametrize(("backend", "attention"), CASES)
@settings(max_examples=15, deadline=None)
@given(
    layout=layouts(),
    dtype=some_of(list(TOLERANCE)),
    heads=some_of([1, 2]),
    width=st.integers(2, 32).map(lambda eighth: 8 * eighth),  # xformers takes multiples of 8
    position=st.booleans(),
    time=st.booleans(),
    budget=some_of([1, 100, 1 << 20]),
)
def test_backend_equals_reference(
    backend: str,
    attention: str,
    layout: Layout,
    dtype: torch.dtype,
    heads: int,
    width: int,
    position: bool,
    time: bool,
    budget: int,
) -> None:
    biased = backend != "xformers"
    known = inputs(layout, heads=heads, width=width, position=position and biased, time=time and biased)
    make = maker(backend, attention, layout, heads=heads, budget=budget)
    tolerance = TOLERANCE[dtype]
    assert_equals_reference(make, layout, known, softmax=attention == "softmax", dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(("backend", "attention"), CASES)
@pytest.mark.parametrize("width", [16, 24, 64, 128, 256])
def test_head_widths(backend: str, attention: str, width: int) -> None:
    layout = Layout.of(make_batch([33, 0, 1, 18], [(0, 33), (0, 7), (1, 0), (2, 1), (3, 9)]), Span(10, 3))
    biased = backend != "xformers"
    for dtype in (torch.float32, torch.bfloat16):
        known = inputs(layout, heads=2, width=width, position=biased, time=biased)
        make = maker(backend, attention, layout, heads=2, budget=500)
        tolerance = TOLERANCE[dtype]
        assert_equals_reference(make, layout, known, softmax=attention == "softmax", dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(("backend", "attention"), CASES)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1], [1, 0, 1]])
def test_empty_histories_and_those_of_one_event(backend: str, attention: str, lengths: list[int]) -> None:
    rows = [(history, end) for history, length in enumerate(lengths) for end in {0, length}]
    for layout in (Layout.of(make_batch(lengths, rows)), Layout.of(make_batch(lengths, rows), Span(1, 1))):
        for asked in (layout, rows_only(layout)):
            known = inputs(asked, heads=2, width=16, position=False, time=False)
            make = maker(backend, attention, asked, heads=2, budget=1 << 20)
            assert_equals_reference(
                make, asked, known, softmax=attention == "softmax", dtype=torch.float64, tolerance=1e-12
            )


@pytest.mark.parametrize(("backend", "attention"), CASES)
@pytest.mark.parametrize("span", [Span(), Span(recent=600, oldest=5)])
def test_rows_far_apart_in_a_long_history(backend: str, attention: str, span: Span) -> None:
    layout = rows_only(Layout.of(make_batch([1500], [(0, end) for end in (0, 3, 700, 700, 1500)]), span))
    biased = backend != "xformers"
    known = inputs(layout, heads=1, width=8, position=biased, time=biased)
    make = maker(backend, attention, layout, heads=1, budget=1 << 20)
    assert_equals_reference(make, layout, known, softmax=attention == "softmax", dtype=torch.float64, tolerance=1e-11)


def rounding(backend: str, dtype: torch.dtype) -> float:
    """How large a share of sums over 20,000 events may be lost to rounding.

    In float32 each term may be off by 2 ** -24 of itself, in either direction: a sum of 20,000 is off by about the root
    of 20,000 times that. In bfloat16 inputs are rounded alike on both sides and sums are float32, so two roundings of
    at most 2 ** -9 remain: of a weight before it meets a value, and of the result. sdpa rounds each bias too, by at
    most 2 ** -6 where it is below 8, and with it the weight; and torch's kernel for plain histories adds up gradients
    in bfloat16, over 40 blocks of keys: the root of 40 times 2 ** -9.
    """
    if dtype == torch.float32:
        return 20_000**0.5 * 2.0**-24
    return 2.0**-6 if backend == "sdpa" else 2.0**-8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("span", [Span(), Span(recent=1000, oldest=200)])
@pytest.mark.parametrize(("backend", "attention"), CASES[:3])
def test_a_history_of_20_000_events(backend: str, attention: str, span: Span, dtype: torch.dtype) -> None:
    """All tokens are computed, and output and gradients of some of them compared; the others' directions are 0.

    Those that see little are not among them, for their softmax gradients are thousands of times the others'.
    """
    length = 20_000
    layout = Layout.of(make_batch([length], [(0, length), (0, length // 2), (0, 0)]), span)
    biased = backend != "sdpa" or span.recent > 0  # sdpa has a kernel of its own for plain histories
    known = inputs(layout, heads=1, width=64, position=biased, time=biased)
    rounded = {name: x if x is None or name not in "qkv" else x.to(dtype).double() for name, x in known.items()}
    some = torch.cat([torch.arange(1999, length, 1999), torch.arange(length, length + 2)])
    make = maker(backend, attention, layout, heads=1, budget=small_config().score_budget)
    found = outcome(make(), rounded, dtype, some)
    few = prepare("reference", asked_only(layout, some), small_config(attention=attention, heads=1))
    expected = outcome(lambda q, *others: few(q[some], *others), rounded, some=some)
    for name, value in expected.items():
        error, size = ((x.flatten(1) if x.dim() > 1 else x[:, None]).norm(dim=1) for x in (found[name] - value, value))
        tolerance = rounding(backend, dtype)
        assert float(error.norm()) <= tolerance * float(size.norm()), name
        # a few keys have most of a gradient's length; what the others get must be right as well
        assert float((error / size)[size > 0].median()) <= tolerance, name
