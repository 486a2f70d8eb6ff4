"""Which backend computes the attention, what is said where it cannot, and the masks that xformers is given."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from torch import Tensor

from recdistill_core.errors import ConfigError, UsageError
from recdistill_hstu import teacher as teacher_module
from recdistill_hstu import xformers_backend
from recdistill_hstu.attention import choose_backend, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout
from recdistill_hstu.xformers_backend import XformersAttention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = {"attention": "softmax", "position_bias": False, "time_bias": False}
needs_xformers = pytest.mark.skipif(not xformers_backend.installed(), reason="xformers is not installed")


def dense_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """What ``memory_efficient_attention`` computes, with the mask written out."""
    hidden = mask.materialize((q.shape[1], k.shape[1]), dtype=q.dtype)
    score = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1]) + hidden
    return torch.einsum("bhij,bjhd->bihd", score.softmax(-1), v)


@needs_xformers
@pytest.mark.parametrize("lengths", [[5, 0, 1, 12], [0, 0], []])
@pytest.mark.parametrize("final", [False, True])
def test_xformers_masks_describe_the_reference(lengths: list[int], final: bool) -> None:
    rows = [(history, end) for history, length in enumerate(lengths) for end in {0, length // 2, length}]
    layout = Layout.of(make_batch(lengths, rows))
    layout = layout.final()[0] if final else layout
    torch.manual_seed(0)
    tokens = layout.num_events + layout.num_rows
    q = torch.randn(layout.num_asked, 2, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(tokens, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = XformersAttention(layout, dense_kernel)(q, k, v, Bias())
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


@needs_xformers
def test_xformers_refuses_a_bias() -> None:
    attend = XformersAttention(Layout.of(make_batch([3], [(0, 3)])), dense_kernel)
    with pytest.raises(ValueError, match="xformers attention has no additive bias"):
        attend(*(torch.zeros(4, 2, 8) for _ in range(3)), Bias(position=torch.zeros(9)))


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "expected"),
    [
        ({}, CPU, torch.float32, "chunked"),
        ({}, CUDA, torch.float32, "chunked"),
        (PLAIN, CPU, torch.float32, "chunked"),
        (PLAIN, CUDA, torch.float32, "xformers"),
        (PLAIN, CUDA, torch.float64, "chunked"),
        (PLAIN | {"position_bias": True}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"heads": 4}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"attend_recent": 8}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"backend": "reference"}, CUDA, torch.float32, "reference"),
        (PLAIN | {"backend": "chunked"}, CUDA, torch.float32, "chunked"),
        (PLAIN | {"backend": "xformers"}, CUDA, torch.float32, "xformers"),
    ],
)
def test_choice_of_backend(
    changes: dict[str, Any], device: torch.device, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xformers_backend, "installed", lambda: True)
    assert choose_backend(small_config(**changes), device, dtype) == expected


def test_auto_works_where_xformers_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers_backend, "installed", lambda: False)
    assert choose_backend(small_config(**PLAIN), CUDA, torch.float32) == "chunked"


def test_building_with_a_hopeless_backend_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers_backend, "installed", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        make_teacher(small_config(backend="xformers", heads=4, attend_recent=8))
    fix = "(set backend to 'auto' or 'chunked')"
    assert list(caught.value.problems) == [
        f"teacher.backend: xformers: it computes softmax attention, and attention is 'silu' {fix}",
        f"teacher.backend: xformers: its masks are causal, and attend_recent is set {fix}",
        f"teacher.backend: xformers: it is run without additive bias, and position_bias is true {fix}",
        f"teacher.backend: xformers: it is run without additive bias, and time_bias is true {fix}",
        "teacher.backend: xformers: it needs heads whose width is a multiple of 8, and width / heads is 4 " + fix,
        f"teacher.backend: xformers: the package xformers is not installed {fix}",
        f"teacher.backend: xformers: it needs a CUDA device, and this machine has none {fix}",
    ]


def test_first_call_on_the_wrong_tensors_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers_backend, "installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    teacher = make_teacher(small_config(**PLAIN, backend="xformers"))
    with pytest.raises(UsageError) as caught:
        teacher.score(make_batch([3], [(0, 3)]))
    assert str(caught.value).splitlines() == [
        "the xformers backend cannot compute this: its kernels run on CUDA, and the tensors are on 'cpu'; it computes "
        "in float32, float16 or bfloat16, and the tensors are torch.float64",
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
