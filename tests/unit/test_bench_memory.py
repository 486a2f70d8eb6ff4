"""Memory of attention over long histories, of a fresh process: linear in the length, and below the aim at 20,000."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench_attention.py"


def peak(length: int) -> float:
    """2^20 bytes that forward and backward of 4 heads of 64 with both biases add; freed blocks are given back."""
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    words = [sys.executable, BENCH, "--child", str(length)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[-1])["peak, MB"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_20000_events_take_less_than_300_megabytes_and_no_more_each_than_2048_do() -> None:
    short, long = peak(2048), peak(20_000)
    assert 1.024**2 * long <= 300
    assert long / 20_000 <= 1.2 * short / 2048
