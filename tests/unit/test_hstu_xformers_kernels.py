"""How xformers' operators are called, with stand-ins for them, and what is found out where they do not run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hstu_attention_cases import assert_equals_reference, inputs
from hstu_cases import make_batch, make_teacher, small_config
from hstu_xformers_kernels import BlockedFmha

from recdistill_hstu import teacher as teacher_module
from recdistill_hstu import xformers_backend, xformers_kernels
from recdistill_hstu.attention import installed
from recdistill_hstu.layout import Layout
from recdistill_hstu.xformers_backend import XformersAttention

PLAIN = {"attention": "softmax", "position_bias": False, "time_bias": False}
pytestmark = pytest.mark.skipif(not installed("xformers"), reason="xformers is not installed")


@pytest.fixture
def fmha(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockedFmha]:
    """Stands in for xformers' operators; its masks stay."""
    fake, real = BlockedFmha(), xformers_kernels.load

    def load(module: str) -> Any:
        if module.endswith((".flash", ".cutlass")):
            kind = module.rsplit(".", 1)[1]
            return SimpleNamespace(FwOp=f"{kind} forward", BwOp=f"{kind} backward")
        return fake if module == "xformers.ops.fmha" else real(module)

    monkeypatch.setattr(xformers_kernels, "load", load)
    xformers_backend._failure.cache_clear()
    yield fake
    xformers_backend._failure.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "width", "kind"),
    [(torch.float32, 8, "cutlass"), (torch.bfloat16, 8, "flash"), (torch.bfloat16, 264, "cutlass")],
)
def test_sums_are_passed_to_each_operator_in_its_format(
    dtype: torch.dtype, width: int, kind: str, fmha: BlockedFmha
) -> None:
    rows = [(0, end) for end in (0, 3, 3, 30, 40)] + [(1, 1), (3, 25)]
    layout = Layout.of(make_batch([40, 1, 0, 25], rows))
    layout = layout.asking(torch.cat([torch.arange(20, 40), torch.arange(66, layout.num_asked)]))
    known = inputs(layout, heads=2, width=width, position=False, time=False)
    tolerance = 2e-5 if dtype == torch.float32 else 4e-2
    assert_equals_reference(
        lambda: XformersAttention(layout), layout, known, softmax=True, dtype=dtype, tolerance=tolerance
    )
    assert set(fmha.used) == {f"{kind} forward", f"{kind} backward"}


@pytest.mark.parametrize("changes", [{}, {"truncate_layers": 1, "truncate_length": 20}, {"attend_recent": 6}])
def test_a_teacher_trains_encodes_and_scores_as_with_the_reference(
    changes: dict[str, Any], fmha: BlockedFmha, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([38, 0, 26], [(0, 38), (0, 4), (1, 0), (2, 26), (2, 26)])
    assert batch.history is not None
    fresh = make_batch([3, 0, 20], [])
    assert fresh.history is not None
    fresh.history.events["time"] += 10**12
    later = replace(batch, event_time=batch.event_time + 10**13)
    found = []
    for backend in ("xformers", "reference"):
        monkeypatch.setattr(teacher_module, "choose_backend", lambda *tensors, backend=backend: backend)
        made = make_teacher(small_config(**PLAIN, layers=3, **changes))
        made.training_scores(batch).logits["click"].sum().backward()
        encoded = made.extend(
            made.encode(batch.history.events, batch.history.offsets), fresh.history.events, fresh.history.offsets
        )
        scores = made.score_candidates(encoded, later, torch.tensor([2, 0, 1, 0, 2]))
        grads = {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}
        found.append({"scores": scores.logits["click"], **grads})
    assert fmha.used
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("span", [False, True])
def test_kernels_that_run_are_taken(span: bool, fmha: BlockedFmha) -> None:
    assert xformers_backend.failure(torch.float32, 8, span, torch.device("cpu")) is None
    assert "cutlass backward" in fmha.used
    fmha.used.clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert xformers_backend.failure(torch.bfloat16, 8, span, torch.device("cpu")) is None
        assert "flash backward" in fmha.used
        fmha.used.clear()
        assert xformers_backend.failure(torch.bfloat16, 8, span, torch.device("cpu")) is None
    assert not fmha.used


@pytest.mark.parametrize("name", ["forward_requires_grad", "backward"])
def test_kernels_that_raise_are_named_once(name: str, fmha: BlockedFmha, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fails(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        raise NotImplementedError("No operator found\nfor these inputs")

    monkeypatch.setattr(fmha, f"memory_efficient_attention_{name}", fails)
    for _ in range(2):
        found = xformers_backend.failure(torch.float32, 8, False, torch.device("cpu"))
        assert found == "NotImplementedError: No operator found"
    assert calls == 1


def test_kernels_that_give_no_numbers_are_a_failure(fmha: BlockedFmha, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmha, "memory_efficient_attention", lambda q, k, v, attn_bias: q * torch.inf)
    found = xformers_backend.failure(torch.float32, 8, False, torch.device("cpu"))
    assert found == "RuntimeError: attention to finite tokens is not finite"


@pytest.mark.skipif(torch.cuda.is_available(), reason="its kernels may run here")
def test_kernels_of_this_machine_fail() -> None:
    xformers_backend._failure.cache_clear()
    for device in ("cpu", "cuda"):
        assert xformers_backend.failure(torch.float32, 8, False, torch.device(device))
    xformers_backend._failure.cache_clear()
