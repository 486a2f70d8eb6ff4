"""The Triton kernels in Triton's interpreter, against the reference in float64.

Run by test_hstu_triton.py, in a process in which TRITON_INTERPRET=1 was set before Triton was imported.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hstu_attention_cases import assert_equals_reference, inputs, layouts, outcome, rows_only, some_of
from hstu_cases import make_batch, make_teacher, small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_hstu import triton_backend
from recdistill_hstu.attention import choose_backend
from recdistill_hstu.bias import Bias, bucket_edges, time_bucket
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.triton_backend import TritonAttention
from recdistill_hstu.triton_kernels import _bucket
from recdistill_hstu.triton_plan import TritonPlan

#: Largest error, relative to the greatest element, that a dtype may have.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def check(layout: Layout, dtype: torch.dtype, *, heads: int, width: int, position: bool, time: bool) -> None:
    assert_equals_reference(
        lambda: TritonAttention(layout),
        layout,
        inputs(layout, heads=heads, width=width, position=position, time=time),
        softmax=False,
        dtype=dtype,
        tolerance=TOLERANCE[dtype],
    )


@settings(max_examples=12, deadline=None)
@given(
    layout=layouts(),
    dtype=some_of(list(TOLERANCE)),
    heads=some_of([1, 2]),
    position=st.booleans(),
    time=st.booleans(),
)
def test_kernels_equal_reference(layout: Layout, dtype: torch.dtype, heads: int, position: bool, time: bool) -> None:
    check(layout, dtype, heads=heads, width=16, position=position, time=time)


@pytest.mark.parametrize(("width", "dtype"), [(8, torch.float32), (24, torch.bfloat16), (64, torch.bfloat16)])
@pytest.mark.parametrize("span", [Span(), Span(recent=5, oldest=20)])
def test_head_widths(width: int, dtype: torch.dtype, span: Span) -> None:
    layout = Layout.of(make_batch([35, 0, 1], [(0, 35), (0, 7), (1, 0), (2, 1)]), span)
    check(layout, dtype, heads=1, width=width, position=True, time=True)


@pytest.mark.parametrize("width", [128, 256])
def test_wide_heads(width: int) -> None:
    layout = Layout.of(make_batch([18], [(0, 18), (0, 3)]))
    check(layout, torch.bfloat16, heads=1, width=width, position=True, time=True)


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [1, 0, 1]])
def test_empty_histories_and_those_of_one_event(lengths: list[int]) -> None:
    layout = Layout.of(make_batch(lengths, [(history, end) for history, end in enumerate(lengths)]))
    for asked in (layout, rows_only(layout)):
        check(asked, torch.float32, heads=2, width=16, position=True, time=True)


def test_times_that_run_backwards() -> None:
    batch = make_batch([40, 20], [(0, 40), (1, 20)])
    assert batch.history is not None
    batch.history.events["time"].copy_(batch.history.events["time"].flip(0))
    check(Layout.of(batch), torch.float32, heads=1, width=16, position=False, time=True)


def test_weights_without_gradient_get_none() -> None:
    layout = Layout.of(make_batch([20], [(0, 20)]))
    known = inputs(layout, heads=1, width=16, position=True, time=True)
    q, k, v, position, time = (None if x is None else x.float() for x in known.values())
    assert q is not None
    assert k is not None
    assert v is not None
    q.requires_grad_()
    TritonAttention(layout)(q, k, v, Bias(position, time)).sum().backward()
    expected = outcome(TritonAttention(layout), known, torch.float32)
    assert q.grad is not None
    assert q.grad.shape == expected["q"].shape


@triton.jit
def buckets(elapsed, edges, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, _bucket(tl.load(elapsed + at), edges))


def in_kernel(elapsed: torch.Tensor) -> torch.Tensor:
    """Time buckets of ``elapsed [*]`` ms by the kernels' function."""
    padded = torch.cat([elapsed, elapsed.new_zeros(-len(elapsed) % 64)])
    out = torch.empty(len(padded), dtype=torch.int32)
    buckets[(len(padded) // 64,)](padded, torch.tensor(bucket_edges()), out, BLOCK=64)
    return out[: len(elapsed)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=200))
def test_time_buckets_are_those_of_the_reference(elapsed: list[int]) -> None:
    given_times = torch.tensor(elapsed)
    assert torch.equal(in_kernel(given_times), time_bucket(given_times))


def test_time_buckets_are_exact_around_every_edge() -> None:
    edges = torch.tensor([edge for edge in bucket_edges() if edge < 2**62])
    steps = torch.tensor([-1000, -3, -2, -1, 0, 1, 2, 3, 1000])
    around = (edges[:, None] + steps).clamp(min=0).flatten()
    near = torch.cat([around, -around, edges // 2, (edges.double() * 1.0005).long(), (edges.double() * 0.9995).long()])
    assert torch.equal(in_kernel(near), time_bucket(near))


def test_key_blocks_that_no_query_sees_are_left_out() -> None:
    layout = Layout.of(make_batch([64], [(0, 10)]))
    plan = TritonPlan.of(rows_only(layout), 16, 16)
    assert plan.key_blocks.tolist() == [[0, 0, 16, 0, 1]]
    assert plan.query_blocks.tolist() == [[0, 1, 0, 0, 0, 10]]


def test_blocks_under_a_span_leave_the_middle_out() -> None:
    layout = rows_only(Layout.of(make_batch([64], [(0, 64)]), Span(recent=10, oldest=3)))
    plan = TritonPlan.of(layout, 16, 16)
    assert plan.query_blocks.tolist() == [[0, 1, 0, 3, 54, 64]]
    assert plan.key_blocks[:, :2].tolist() == [[0, 0], [0, 48]]


def test_a_teacher_trains_in_the_interpreter() -> None:
    assert triton_backend.interpreted()
    config = small_config(backend="triton", layers=2)
    assert choose_backend(config, torch.device("cpu"), torch.float32) == "triton"
    batch = make_batch([30, 0], [(0, 30), (0, 4), (1, 0)])
    grads = []
    for backend in ("triton", "chunked"):
        teacher = make_teacher(small_config(backend=backend), double=False)
        teacher.training_scores(batch).logits["click"].sum().backward()
        grads.append([weight.grad for weight in teacher.parameters() if weight.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + 1e-6)


def test_selective_checkpointing_changes_no_bit_and_attends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch([30, 0], [(0, 30), (0, 4), (1, 0)])
    launched: list[str] = []
    launch = triton_backend._launch
    monkeypatch.setattr(
        triton_backend, "_launch", lambda name, *rest, **named: launched.append(name) or launch(name, *rest, **named)
    )
    found, passes = [], []
    for checkpointing in ("none", "selective"):
        teacher = make_teacher(small_config(backend="triton", checkpointing=checkpointing), double=False)
        launched.clear()
        teacher.training_scores(batch).logits["click"].sum().backward()
        found.append([weight.grad for weight in teacher.parameters() if weight.grad is not None])
        passes.append(launched.count("forward"))
    assert passes == [2, 2]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
