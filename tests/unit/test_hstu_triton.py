"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recdistill_hstu import triton_backend
from recdistill_hstu.attention import installed
from recdistill_hstu.triton_backend import fitting, length_class

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not installed("triton"), reason="triton is not installed")


def run(*command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    # Triton reads the variable when it is imported, and other libraries import it: hence a process of its own
    output = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py"), TRITON_INTERPRET="1"
    )
    assert "passed" in output
    assert "skipped" not in output


def test_blocks_that_cannot_fit_are_not_tried() -> None:
    from triton import Config

    sizes = [32, 64, 128]
    configs = [Config({"BLOCK_N": size}) for size in sizes]

    def kept(width: int, precision: str | None) -> list[int]:
        return [config.kwargs["BLOCK_N"] for config in fitting(configs, {}, BLOCK_D=width, PRECISION=precision)]

    assert (kept(64, None), kept(128, None), kept(256, None)) == ([32, 64, 128], [32, 64], [32])
    assert (kept(64, "ieee"), kept(256, "ieee")) == ([32, 64], [32])


def test_length_classes_are_few() -> None:
    assert [length_class(longest) for longest in (1, 512, 513, 1024, 20_000)] == [512, 512, 1024, 1024, 32_768]


@pytest.mark.parametrize("name", ["forward", "backward_query", "backward_key"])
def test_a_kernel_is_tuned_once_for_each_class_of_lengths(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = triton_backend.kernel.__wrapped__(name)  # one that nobody else has tuned
    used: list[tuple[int, int]] = []
    monkeypatch.setattr(tuned.fn, "run", lambda *args, **named: used.append((named["length"], named["num_warps"])))
    timed: list[int] = []

    def time_it(call: Any, quantiles: Any) -> tuple[float, ...]:
        """Says that 4 warps are faster for short histories and 8 for long ones."""
        call()
        length, warps = used.pop()
        timed.append(length)
        return (float((warps == 8) == (length == 512)),) * 3

    tuned._do_bench, tuned.pre_hook = time_it, lambda given, reset_only=False: None
    shapes = {"H": 4, "D": 64, "BLOCK_D": 64, "PRECISION": None, "RECENT": 0, "OLDEST": 0}
    for length in (512, 512, 32_768, 512, 32_768):
        tuned.run(grid=(1, 1), warmup=False, length=length, HAS_POSITION=True, HAS_TIME=True, **shapes)
    assert used == [(512, 4), (512, 4), (32_768, 8), (512, 4), (32_768, 8)]
    assert timed == [512] * len(tuned.configs) + [32_768] * len(tuned.configs)
    tuned.run(grid=(1, 1), warmup=False, length=512, HAS_POSITION=True, HAS_TIME=True, **shapes | {"H": 1})
    assert len(timed) == 3 * len(tuned.configs)


@pytest.mark.parametrize("name", ["forward", "backward_query", "backward_key"])
def test_code_is_compiled_once_for_all_lengths(name: str) -> None:
    from recdistill_hstu import triton_kernels

    kernel = getattr(triton_kernels, name)
    assert set(triton_backend.TUNED_BY) - {"GRAD_BIAS"} <= set(kernel.arg_names)
    [length] = [parameter for parameter in kernel.params if parameter.name == "length"]
    assert length.do_not_specialize
    assert not length.is_constexpr


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 256])
def test_kernels_compile_for_an_h100(width: int, tmp_path: Path) -> None:
    output = run("-W", "ignore", str(HERE / "triton_compiled.py"), "90", str(width), TRITON_CACHE_DIR=str(tmp_path))
    lines = [line.split() for line in output.splitlines()]
    assert [line[0] for line in lines] == ["forward", "backward_query", "backward_key"]
    for _, shared, tensor_core_products in lines:
        assert int(shared) <= 227 * 1024  # bytes that a block may have there
        assert int(tensor_core_products) > 0
