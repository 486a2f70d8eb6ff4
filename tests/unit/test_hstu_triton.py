"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recdistill_hstu.attention import installed
from recdistill_hstu.triton_backend import fitting

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


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 256])
def test_kernels_compile_for_an_h100(width: int, tmp_path: Path) -> None:
    output = run("-W", "ignore", str(HERE / "triton_compiled.py"), "90", str(width), TRITON_CACHE_DIR=str(tmp_path))
    lines = [line.split() for line in output.splitlines()]
    assert [line[0] for line in lines] == ["forward", "backward_query", "backward_key"]
    for _, shared, tensor_core_products in lines:
        assert int(shared) <= 227 * 1024  # bytes that a block may have there
        assert int(tensor_core_products) > 0
