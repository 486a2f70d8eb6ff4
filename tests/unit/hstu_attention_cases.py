"""Layouts, inputs and outcomes for the tests that compare attention backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from hstu_cases import asked_only, make_batch, small_config
from hypothesis import strategies as st
from torch import Tensor

from recdistill_hstu.attention import Attend, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout, Span

LONGEST = 40
SPANS = st.builds(Span, st.sampled_from([0, 1, 3, 20]), st.sampled_from([0, 1, 4]))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Histories that may be empty, with no, one or many rows each; all tokens, those of a last layer, or rows alone."""
    lengths = draw(st.lists(st.integers(0, LONGEST), min_size=1, max_size=5))
    rows = [
        (history, draw(st.integers(0, length)))
        for history, length in enumerate(lengths)
        for _ in range(draw(st.integers(0, 3)))
    ]
    batch = make_batch(lengths, draw(st.permutations(rows)), seed=draw(st.integers(0, 99)))
    layout = Layout.of(batch, draw(SPANS))
    kind = draw(st.sampled_from(["all", "final", "rows"]))
    if kind == "final":
        return layout.final()[0]
    if kind == "rows":
        return rows_only(layout)
    return layout


def on_device(layout: Layout, device: str) -> Layout:
    """``layout`` with its tensors on ``device``."""
    names = [field.name for field in fields(layout) if isinstance(getattr(layout, field.name), Tensor)]
    return replace(layout, **{name: getattr(layout, name).to(device) for name in names})


def rows_only(layout: Layout) -> Layout:
    """Candidates alone are asked for, as where keys and values of the events come from a cache."""
    return asked_only(layout, torch.arange(layout.asked_events, layout.num_asked))


def inputs(
    layout: Layout, *, heads: int, width: int, position: bool, time: bool, seed: int = 0
) -> dict[str, Tensor | None]:
    """Queries, keys and values, such that scores are of the order of 1, and the weights of the bias; float64."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=draw)

    tokens = layout.num_events + layout.num_rows
    return {
        "q": leaf(layout.num_asked, heads, width) / width**0.5,
        "k": leaf(tokens, heads, width),
        "v": leaf(tokens, heads, width),
        "position": leaf(max(LONGEST, layout.longest) + 1) if position else None,
        "time": leaf(129) if time else None,
    }


def outcome(
    attend: Attend,
    given: dict[str, Tensor | None],
    dtype: torch.dtype = torch.float64,
    some: Tensor | None = None,
) -> dict[str, Tensor]:
    """The output and the gradient of every input for one fixed direction, computed in ``dtype``; weights stay wide.

    ``some``: tokens ``[M]`` whose output is looked at; ``attend`` gives those alone, or all.
    """
    kinds = {name: dtype if name in "qkv" else torch.promote_types(dtype, torch.float32) for name in given}
    known = {name: x.to(kinds[name]).requires_grad_() for name, x in given.items() if x is not None}
    out = attend(known["q"], known["k"], known["v"], Bias(known.get("position"), known.get("time")))
    out = out if some is None or len(out) == len(some) else out[some]
    direction = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    grads = torch.autograd.grad((out * direction).sum(), list(known.values()), materialize_grads=True)
    return {"out": out.detach(), **dict(zip(known, grads, strict=True))}


def assert_equals_reference(
    make: Callable[[], Attend],
    layout: Layout,
    given: dict[str, Tensor | None],
    *,
    softmax: bool,
    dtype: torch.dtype,
    tolerance: float,
    device: str = "cpu",
) -> None:
    """The backend's outcome in ``dtype`` on ``device`` is the reference's in float64, from the same rounded inputs.

    ``tolerance`` is relative to the greatest element of each tensor.
    """
    rounded = {name: x if x is None else x.to(dtype).double() if name in "qkv" else x for name, x in given.items()}
    config = small_config(attention="softmax" if softmax else "silu")
    expected = outcome(prepare("reference", layout, config), rounded)
    moved = {name: x if x is None else x.to(device) for name, x in rounded.items()}
    found = {name: x.cpu() for name, x in outcome(make(), moved, dtype).items()}
    for name, value in expected.items():
        assert found[name].dtype == (dtype if name in "outqkv" else torch.promote_types(dtype, torch.float32)), name
        # a softmax's score gradients sum to 0 for each token: a small sum has the rounding errors of its parts
        scale = max(float(value.abs().max()), 0.5) if value.numel() else 1.0
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=tolerance * scale, msg=_named(name))


def _named(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def some_of(choices: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of ``choices``."""
    return st.sampled_from(choices)
