"""Which backend computes the attention, and what is said where it cannot."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config

from recdistill_core.errors import ConfigError, UsageError
from recdistill_hstu import attention
from recdistill_hstu import teacher as teacher_module
from recdistill_hstu.attention import choose_backend, installed, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = {"attention": "softmax", "position_bias": False, "time_bias": False}


def everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are installed, and their kernels run."""
    monkeypatch.setattr(attention, "installed", lambda package: True)
    monkeypatch.setattr(attention, "kernel_failure", lambda *tensors: None)


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
    everything_is_there(monkeypatch)
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


def test_auto_passes_over_kernels_that_fail(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def fails(dtype: torch.dtype, width: int, span: bool, device: torch.device) -> str:
        tried.append((dtype, width, span, device))
        return "NotImplementedError: no operator"

    attention._pass_over.cache_clear()
    monkeypatch.setattr(attention, "installed", lambda package: True)
    monkeypatch.setattr(attention, "kernel_failure", fails)
    with caplog.at_level(logging.INFO, logger="recdistill_hstu"):
        assert choose_backend(small_config(**PLAIN), CUDA, torch.float32) == "sdpa"
        assert choose_backend(small_config(**PLAIN, attend_recent=8), CUDA, torch.bfloat16) == "chunked"
        assert choose_backend(small_config(**PLAIN), CPU, torch.float32) == "sdpa"
        assert choose_backend(small_config(**PLAIN, width=8), CUDA, torch.float32) == "sdpa"
    assert tried == [(torch.float32, 8, False, CUDA), (torch.bfloat16, 8, True, CUDA)]
    assert [record.getMessage() for record in caplog.records] == [
        "hstu does not use the xformers backend: its kernels fail on 'cuda' in torch.float32 with heads of width 8: "
        "NotImplementedError: no operator",
        "hstu does not use the xformers backend: its kernels fail on 'cuda' in torch.bfloat16 with heads of width 8: "
        "NotImplementedError: no operator",
        "hstu does not use the xformers backend: it needs heads whose width is a multiple of 8, and width / heads is 4",
    ]
    with pytest.raises(
        UsageError, match=r"its kernels fail on 'cuda' in torch\.float32 with heads of width 8: NotImpl"
    ):
        choose_backend(small_config(**PLAIN, backend="xformers"), CUDA, torch.float32)
    attention._pass_over.cache_clear()


def test_autocast_decides_by_the_dtype_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_there(monkeypatch)
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
