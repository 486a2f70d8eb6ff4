"""What the benchmarks share: the machine beside the numbers, peak memory of a fresh process, tables and JSON."""

from __future__ import annotations

import argparse
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
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in libraries},
        "device": f"CPU, {platform.machine()}",
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
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


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
