"""What CI cannot show: the attention of a CUDA device against the reference, and long histories against ``chunked``.

Skipped where there is none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hstu_attention_cases import assert_equals_reference, inputs, on_device, outcome, rows_only
from hstu_cases import make_batch, make_teacher, small_config
from torch import Tensor
from torch.nn import functional

from recdistill_hstu import xformers_backend
from recdistill_hstu.attention import choose_backend, installed, obstacles, prepare
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout, Span

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

#: Largest error, relative to the greatest element, that a dtype may have.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
SPANS = [Span(), Span(recent=100, oldest=30), Span(recent=20, oldest=400)]
WIDTHS = [16, 64, 128, 256]
LONGEST = 20_000
#: Backend, whether it has biases here.
LONG = [("triton", True), ("xformers", False), ("sdpa", False), ("sdpa", True)]


def config_of(backend: str, *, width: int, biased: bool, span: Span, longest: int, **changes: Any) -> HSTUConfig:
    return small_config(
        backend=backend,
        attention="silu" if backend == "triton" else "softmax",
        heads=2,
        width=2 * width,
        max_length=longest,
        position_bias=biased,
        time_bias=biased,
        attend_recent=span.recent,
        attend_oldest=span.oldest,
        **changes,
    )


def require(config: HSTUConfig, dtype: torch.dtype) -> None:
    """Skip where the configuration or the card rules the backend out; kernels that fail are a failure."""
    if config.backend == "xformers" and not installed("xformers"):
        pytest.skip("xformers is not installed")
    if config.backend == "xformers" and config.attend_recent and dtype == torch.float32:
        pytest.skip("xformers is not run in float32 under a span")
    if config.backend == "xformers" and dtype == torch.float32 and torch.cuda.get_device_capability() > (9, 0):
        pytest.skip("xformers has no kernels in float32 for this card")
    if config.backend == "xformers" and config.attend_recent and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("xformers has no kernels for a span for this card")
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bfloat16 on this card")
    assert obstacles(config.backend, config, torch.device(DEVICE), dtype) == []


def check(backend: str, layout: Layout, dtype: torch.dtype, *, width: int, biased: bool) -> None:
    config = config_of(backend, width=width, biased=biased, span=layout.span, longest=600)
    require(config, dtype)
    there = on_device(layout, DEVICE)
    assert_equals_reference(
        lambda: prepare(backend, there, config),
        layout,
        inputs(layout, heads=2, width=width, position=biased, time=biased),
        softmax=config.attention == "softmax",
        dtype=dtype,
        tolerance=TOLERANCE[dtype],
        device=DEVICE,
    )


def jagged(span: Span) -> Layout:
    rows = [(0, 500), (0, 3), (1, 0), (2, 1), (3, 130), (3, 129), (0, 500), *((0, 7 * end) for end in range(40))]
    return Layout.of(make_batch([500, 0, 1, 131], rows), span)


def newest(layout: Layout) -> Layout:
    """The second half of the events of each history, and all rows."""
    events = torch.arange(layout.num_events)
    later = 2 * layout.position[: layout.num_events] >= layout.offsets.diff()[layout.history[: layout.num_events]]
    return layout.asking(torch.cat([events[later], torch.arange(layout.num_events, layout.num_asked)]))


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_triton_kernels(span: Span, width: int, dtype: torch.dtype) -> None:
    layout = jagged(span)
    for asked in (layout, rows_only(layout), newest(layout)):
        check("triton", asked, dtype, width=width, biased=True)
    check("triton", layout, dtype, width=width, biased=False)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_xformers_kernels(span: Span, width: int, dtype: torch.dtype) -> None:
    layout = jagged(span)
    for asked in (layout, rows_only(layout), newest(layout)):
        check("xformers", asked, dtype, width=width, biased=False)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_sdpa_kernels(span: Span, width: int, biased: bool, dtype: torch.dtype) -> None:
    layout = jagged(span)
    for asked in (layout, newest(layout)):
        check("sdpa", asked, dtype, width=width, biased=biased)


@pytest.mark.parametrize("span", [Span(), Span(recent=1000, oldest=200)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "biased"), LONG)
def test_a_history_of_20_000_events_equals_chunked(
    backend: str, biased: bool, dtype: torch.dtype, half: bool, span: Span
) -> None:
    config = config_of(backend, width=64, biased=biased, span=span, longest=LONGEST)
    require(config, dtype)
    rows = [(0, LONGEST), (0, LONGEST), (0, LONGEST // 3), (0, 0), (1, 300)]
    layout = Layout.of(make_batch([LONGEST, 300], rows), span)
    layout = on_device(newest(layout) if half else layout, DEVICE)
    known = inputs(layout, heads=2, width=64, position=biased, time=biased)
    # from the same rounded numbers, in float64: what the other computes exactly is no error of this one
    exact = {
        name: x if x is None else (x.to(dtype) if name in "qkv" else x).double().to(DEVICE) for name, x in known.items()
    }
    expected = outcome(prepare("chunked", layout, config), exact, torch.float64)
    found = outcome(prepare(backend, layout, config), exact, dtype)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = TOLERANCE[dtype] * max(float(value.abs().max()), 0.5)
        torch.testing.assert_close(
            found[name].double(), value, rtol=0, atol=atol, msg=lambda text, at=name: f"{at}: {text}"
        )


def step(config: HSTUConfig, *, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a training step of a whole teacher, and all of its weights' changes."""
    teacher = make_teacher(config, seed=3, double=False).train().to(DEVICE)
    before = {name: weight.detach().clone() for name, weight in teacher.named_parameters()}
    rows = [(0, 1500), (0, 1499), (0, 700), (1, 0), (2, 4), *((3, 9 * end) for end in range(60))]
    batch = make_batch([1500, 0, 4, 600], rows).to(DEVICE)
    optimiser = torch.optim.SGD(teacher.parameters(), lr=0.1)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        assert choose_backend(config, torch.device(DEVICE), torch.float32) == config.backend
        logit = teacher.training_scores(batch).logits["click"]
    functional.binary_cross_entropy_with_logits(logit.float(), batch.labels["click"]).backward()
    optimiser.step()
    return logit.detach().float(), {name: weight.detach() - before[name] for name, weight in teacher.named_parameters()}


@pytest.mark.parametrize(
    "changes", [{}, {"truncate_layers": 1, "truncate_length": 400}, {"checkpointing": "selective"}]
)
@pytest.mark.parametrize("span", [Span(), Span(recent=200, oldest=30)])
@pytest.mark.parametrize(("backend", "biased"), LONG)
def test_a_training_step_in_bfloat16_is_that_of_chunked_in_float32(
    backend: str, biased: bool, span: Span, changes: dict[str, Any]
) -> None:
    config = config_of(backend, width=32, biased=biased, span=span, longest=1500, layers=3, **changes)
    require(config, torch.bfloat16)
    exact, wanted = step(replace(config, backend="chunked"), autocast=False)
    found, changed = step(config, autocast=True)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    assert all(bool(torch.isfinite(change).all()) for change in changed.values())
    together = [torch.cat([change.flatten() for change in side.values()]) for side in (changed, wanted)]
    assert float(functional.cosine_similarity(*together, dim=0)) > 0.99
    assert float(together[0].norm() / together[1].norm()) == pytest.approx(1.0, abs=0.05)


def test_thousands_of_candidates_of_a_long_history_take_little_memory() -> None:
    config = config_of("xformers", width=64, biased=False, span=Span(), longest=LONGEST)
    require(config, torch.bfloat16)
    layout = on_device(rows_only(Layout.of(make_batch([LONGEST], [(0, LONGEST)] * 4096))), DEVICE)
    known = inputs(layout, heads=2, width=64, position=False, time=False)
    moved = {name: x if x is None else x.to(DEVICE, torch.bfloat16) for name, x in known.items()}
    torch.cuda.reset_peak_memory_stats()
    used = torch.cuda.memory_allocated()
    outcome(prepare("xformers", layout, config), moved, torch.bfloat16)
    tokens = (LONGEST + 4096) * 2 * 64
    assert torch.cuda.max_memory_allocated() - used < 100 * 4 * tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_xformers_where_its_kernels_run(dtype: torch.dtype) -> None:
    for width in WIDTHS:
        config = config_of("xformers", width=width, biased=False, span=Span(), longest=600)
        require(config, dtype)
        assert xformers_backend.failure(dtype, width, False, torch.device(DEVICE)) is None
        assert choose_backend(replace(config, backend="auto"), torch.device(DEVICE), dtype) == "xformers"
