"""What the benchmarks share: the machine beside the numbers, peak memory of a fresh process, tables and JSON."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("recdistill", "torch", "numpy", "pyarrow", "duckdb")


def machine(libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    """Versions, device and threads of this process."""
    graphics = {}
    if torch.cuda.is_available():
        graphics = {"GPU": torch.cuda.get_device_name(), "CUDA": torch.version.cuda or torch.version.hip}
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in libraries},
        "device": f"CPU, {platform.machine()}",
        **graphics,
        "cores": os.cpu_count(),
        "load average": round(os.getloadavg()[0], 1),
        "torch threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def seconds(work: Callable[[], Any], at_least: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """Best time of a call by ``clock``. Calls are repeated for ``at_least`` seconds, twice or more; the first is not
    timed. ``time.process_time`` counts seconds of the processor, which other programs disturb less."""
    work()
    found: list[float] = []
    while len(found) < 2 or sum(found) < at_least:
        start = clock()
        work()
        found.append(clock() - start)
    return min(found)


def peak_megabytes(work: Callable[[], Any]) -> float:
    """How far the resident memory of this process rises above its level at the start while ``work`` runs.

    Reads ``/proc/self/status``, so it works on Linux; memory that earlier work left to the allocator is not seen:
    call it in a fresh process (:func:`in_fresh_process`).
    """
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def peak_bytes(work: Callable[[], Any], device: str) -> float:
    """Most bytes that ``work`` takes at a time besides what is there before.

    On CUDA those of tensors, as torch's allocator counts them; on a CPU the process's, see :func:`peak_megabytes`.
    """
    if device == "cpu":
        return 1024**2 * peak_megabytes(work)
    gc.collect()
    torch.cuda.empty_cache()  # else the peak of what is reserved would be that of earlier work
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def device_seconds(work: Callable[[], Any], device: str, calls: int = 20) -> float:
    """Median time of ``calls`` calls, after three that are not timed: kernels are tuned in them."""
    for _ in range(3):
        work()
    event: Any = torch.cuda.Event  # torch ships it without types
    found = []
    for _ in range(calls):
        if device == "cpu":
            begin = time.perf_counter()
            work()
            found.append(time.perf_counter() - begin)
            continue
        start, stop = (event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / 1000)
    return sorted(found)[len(found) // 2]


def matrix_peak(device: str, size: int = 8192) -> float:
    """TFLOP/s of a large bfloat16 product, the most that a model can hope for."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / device_seconds(lambda: a @ b, device, calls=50) / 1e12


def peak_of(answer: Mapping[str, Any]) -> str:
    """What a title says of the process that measured the matrix peak."""
    found = answer.get("peak")
    return f"matrix peak {found:.0f} TFLOP/s" if found else f"matrix peak not measured: {answer.get('failed')}"


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


#: Has glibc give back every block above 64 KB when it is freed, so that a process holds its tensors and little else.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}


def in_fresh_process(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON document that ``script --child ARGUMENTS`` prints, from a process of its own.

    Args:
        script: a benchmark. arguments: what it is asked. environment: variables besides this process's own.
    """
    command = [sys.executable, script, "--child", *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode} of {' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def attempt(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """As :func:`in_fresh_process`; a process that fails gives ``{"failed": why}``, so that the other rows go on."""
    try:
        return in_fresh_process(script, *arguments, environment=environment)
    except SystemExit as error:
        return {"failed": _short([line for line in str(error).splitlines() if line.strip()][-1])}


def why(error: Exception) -> str:
    """What a cell of a table says of a measurement that failed."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).split("\n")
    return _short(": ".join([type(error).__name__, *(line.strip() for line in lines if line.strip())][:2]))


def _short(text: str, most: int = 100) -> str:
    text = text.replace("|", "/")  # which would end the cell
    return text if len(text) <= most else f"{text[: most - 3]}..."


def without_gpu(what: str, as_json: bool) -> None:
    """Say in one line that a part was not run."""
    print(f"\n{what} was not run: no CUDA device here.", file=sys.stderr if as_json else sys.stdout)


def parser(summary: str) -> argparse.ArgumentParser:
    """``--json`` and, for the script's own use, ``--child``."""
    made = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON document instead of Markdown")
    made.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    return made


def arguments(summary: str) -> argparse.Namespace:
    """What was given to a script that has no options of its own."""
    return parser(summary).parse_args()


def show(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], as_json: bool, libraries: Sequence[str] = LIBRARIES
) -> None:
    """Print named tables, with the machine, as Markdown or as one JSON document."""
    facts = machine(libraries)
    if as_json:
        print(json.dumps({"machine": facts, "tables": tables}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for title, rows in tables.items():
        print(f"\n**{title}**\n")
        print("| " + " | ".join(rows[0]) + " |")
        print("|" + "---|" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(_cell(value) for value in row.values()) + " |")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
