"""The benchmarks of a GPU, as far as they run without one: what goes wrong becomes a cell, what is wrong is found."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recdistill_hstu.attention import installed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
#: A checkout of the public kernel, as far as the benchmark knows it.
KERNEL = """
import torch

def triton_hstu_mha(N, alpha, q, k, v, seq_offsets, num_targets=None, enable_tma=False):
    parts = []
    for start, stop in zip(seq_offsets[:-1].tolist(), seq_offsets[1:].tolist()):
        score = alpha * torch.einsum("ihd,jhd->hij", q[start:stop], k[start:stop])
        weight = (torch.nn.functional.silu(score) / {divisor}).tril()
        parts.append(torch.einsum("hij,jhd->ihd", weight, v[start:stop]))
    return torch.cat(parts)
"""


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [name for name in sys.modules if name.startswith("generative_recommenders")]:
        del sys.modules[name]


@pytest.fixture
def attention() -> ModuleType:
    return importlib.import_module("bench_attention_gpu")


@pytest.fixture
def step() -> ModuleType:
    return importlib.import_module("bench_step")


def checkout(folder: Path, kernel: str) -> Path:
    package = folder / "generative_recommenders" / "ops" / "triton"
    package.mkdir(parents=True)
    (package / "triton_hstu_attention.py").write_text(kernel)
    (folder / "generative_recommenders" / "common.py").write_text("def set_static_max_seq_lens(lengths): ...\n")
    return folder


@pytest.mark.parametrize("name", ["silu", "silu, both biases", "softmax", "sdpa"])
def test_an_exact_implementation_agrees_with_the_reference(attention: ModuleType, name: str) -> None:
    way = {
        "silu": attention.ours("chunked"),
        "silu, both biases": attention.ours("chunked", biased=True),
        "softmax": attention.ours("chunked", softmax=True),
        "sdpa": attention.Way(attention.sdpa, softmax=True),
    }[name]
    shape = attention.Shape(2, 70, 16, "cpu")
    row = attention.row_of(way, shape, calls=1)
    assert 0.0 < row["error"] < attention.TOLERANCE
    cells = attention.speed(row, shape, peak=2.0)
    assert cells["error"] == row["error"]
    assert cells["forward, TFLOP/s"] == pytest.approx(4 * 16 * 4 * 2 * (70 * 71 / 2) / row["forward"] / 1e12)
    assert cells["both, share of peak"] == pytest.approx(cells["both, TFLOP/s"] / 2)


def test_another_attention_is_a_mismatch(attention: ModuleType) -> None:
    shape = attention.Shape(1, 70, 16, "cpu")
    row = attention.row_of(attention.Way(attention.sdpa), shape, calls=1)  # softmax, compared with silu
    assert attention.speed(row, shape, peak=None)["error"].endswith(": MISMATCH")
    assert attention.speed({**row, "error": float("nan")}, shape, peak=None)["error"] == "nan: MISMATCH"


@pytest.mark.parametrize("divisor", ["N", "1"])
def test_the_public_kernel_is_compared_as_it_is_called(attention: ModuleType, tmp_path: Path, divisor: str) -> None:
    folder = checkout(tmp_path, KERNEL.replace("{divisor}", divisor))
    assert attention.absent("public HSTU kernel, SiLU", folder) is None
    row = attention.row_of(attention.rival(folder), attention.Shape(3, 50, 16, "cpu"), calls=1)
    assert (row["error"] < attention.TOLERANCE) == (divisor == "N")


def test_a_kernel_that_fails_is_a_cell(attention: ModuleType, tmp_path: Path) -> None:
    folder = checkout(tmp_path, "def triton_hstu_mha(N, **given):\n    assert N < 50, 'a | tile\\nof registers'\n")
    shape = attention.Shape(1, 60, 16, "cpu")
    row = attention.row_of(attention.rival(folder), shape, calls=1)
    assert set(row.values()) == {"not run: AssertionError: a / tile"}
    assert [cell for cell in attention.speed(row, shape, 1.0).values() if cell] == [row["error"]]  # told once


def test_a_checkout_that_cannot_be_imported_is_left_out(attention: ModuleType, tmp_path: Path) -> None:
    folder = checkout(tmp_path, "import a_library_of_theirs\n")
    found = attention.answer("public HSTU kernel, SiLU", folder)
    assert found == {"failed": "ModuleNotFoundError: No module named 'a_library_of_theirs'"}


def test_the_table_goes_on_without_what_failed(attention: ModuleType, tmp_path: Path) -> None:
    def ask(name: str, *_: object) -> dict[str, Any]:
        if name == "peak":
            return {"failed": "out of memory"}
        if name == "xformers softmax":
            return {"failed": "exit status -11"}
        return {"rows": [{"error": 0.01, "forward": 0.5, "both": "not run: out of memory"}] * len(attention.shapes())}

    names = ["torch SDPA flash, softmax", "public HSTU kernel, SiLU", "xformers softmax"]
    speeds, left_out = attention.tables(names, tmp_path, ask).items()
    assert "matrix peak not measured: out of memory" in speeds[0]
    assert len(speeds[1]) == 10
    assert {row["both, TFLOP/s"] for row in speeds[1]} == {"not run: out of memory"}
    assert [row["what"] for row in left_out[1]] == names[1:]
    assert "make bench-teacher fetches one" in left_out[1][0]["why"]


def test_rows_of_steps_have_the_same_columns(step: ModuleType) -> None:
    settings = {"layers": 2, "width": 16, "heads": 2}
    found = step.measured(settings, "selective", 64, "cpu", calls=1)
    assert found["peak"] >= 0  # a process that has room already takes none
    row = step.row_of(settings, "selective", found | {"peak": 5e8}, 1.0, 64)
    assert row["planned / measured"] == pytest.approx(row["planned, GB"] / 0.5)
    assert row["events/s"] == pytest.approx(64 / found["seconds"])
    assert row["backend"] == "chunked"
    assert row["planned, GB"] > 0
    failed = step.row_of(settings, "none", {"failed": "out of memory"}, None, 64)
    assert failed["s per step"] == "not run: out of memory"
    assert list(failed) == list(row)


def test_steps_go_on_after_one_that_failed(step: ModuleType) -> None:
    taken = {"seconds": 2.0, "peak": 1e9, "reserved": 2e9, "backend": "triton"}

    def ask(name: str, kind: str = "") -> dict[str, Any]:
        return {"peak": 500.0} if name == "peak" else {"failed": "out of memory"} if kind == "none" else taken

    ((title, rows),) = step.tables(["small"], ask).items()
    assert "20,000 events" in title
    assert "matrix peak 500 TFLOP/s" in title
    assert [row["s per step"] for row in rows] == ["not run: out of memory", 2.0]
    assert rows[1]["planned / measured"] == pytest.approx(rows[1]["planned, GB"])
    assert rows[1]["share of peak"] == pytest.approx(rows[1]["TFLOP/s"] / 500)


def test_a_case_of_the_plan_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = importlib.import_module("bench_plan")
    tiny = ({"layers": 2, "width": 16, "heads": 2}, 2, 32, 4, "bf16-mixed", "none")
    monkeypatch.setitem(plan.CASES, "tiny", tiny)
    assert plan.answer(["tiny", "cpu", "chunked"]) >= 0
    assert plan.answer(["tiny", "cpu", "no such backend"])["failed"].startswith("ValueError: backend must be one of")
    monkeypatch.setattr(plan, "attempt", lambda *_: {"failed": "out of memory"})
    failed = plan.compare_on("cuda", "tiny", "triton")
    assert failed["measured, MB"] == "not run: out of memory"
    monkeypatch.setattr(plan, "attempt", lambda *_: 2.0)
    row = plan.compare_on("cuda", "tiny", "triton")
    assert row["planned / measured"] == row["planned, MB"] / 2
    assert list(row) == list(failed)


def test_peak_on_cuda_is_what_the_work_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    counted = {"memory_allocated": 100, "max_memory_allocated": 350}
    for name in ("empty_cache", "memory_allocated", "reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name) or counted.get(name))
    reporting = importlib.import_module("reporting")
    assert reporting.peak_bytes(lambda: calls.append("work"), "cuda") == 250
    assert calls.index("reset_peak_memory_stats") < calls.index("work") < calls.index("max_memory_allocated")


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        capture_output=True, text=True, check=False, cwd=BENCHMARKS, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("words", [["bench_attention_gpu.py"], ["bench_step.py"], ["bench_plan.py", "--gpu"]], ids=str)
def test_without_a_gpu_one_line_says_so(words: list[str]) -> None:
    done = run(*words, "--json")
    assert done.stderr.splitlines()[-1].endswith("was not run: no CUDA device here.")
    assert json.loads(done.stdout)["tables"] == {}


@pytest.mark.slow
@pytest.mark.skipif(not installed("triton"), reason="triton is not installed")
def test_a_triton_row_in_the_interpreter() -> None:
    lines = [
        "import json, bench_attention_gpu as gpu",
        "way = gpu.WAYS['triton SiLU, both biases'](gpu.RIVAL)",
        "print(json.dumps(gpu.row_of(way, gpu.Shape(1, 20, 16, 'cpu'), calls=1)))",
    ]
    row = json.loads(run("-c", "\n".join(lines), TRITON_INTERPRET="1").stdout.splitlines()[-1])
    assert 0.0 < row["error"] < 0.02, row
    assert row["both"] > 0.0
