"""Attention of the HSTU teacher alone, on a CPU: time and memory. For GPUs see bench_attention_gpu.py.

python benchmarks/bench_attention.py [--json]
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from reporting import GIVE_BACK, arguments, in_fresh_process, peak_megabytes, show
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.attention import prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout

HEADS, WIDTH, MINUTE = 4, 64, 60_000
CPU_LENGTHS = (2048, 4096, 8192, 20_000)
COMPARED = 8192
LIBRARIES = ("recdistill", "torch", "numpy")


def layout_of(lengths: list[int], device: str = "cpu") -> Layout:
    """Whole histories, events a minute apart, without candidates."""
    counts = torch.tensor(lengths, device=device)
    offsets = functional.pad(counts.cumsum(0), (1, 0))
    history = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
    place = torch.arange(int(offsets[-1]), device=device) - offsets[history]
    moment = 1_700_000_000_000 + place * MINUTE
    return Layout(
        offsets, moment, torch.arange(len(place), device=device), history, place + 1, place, moment, 0, max(lengths)
    )


def leaf(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Normal numbers in float32, with gradient; equal for equal shapes and seeds."""
    draw = torch.Generator(device).manual_seed(sum(shape) + seed)
    return (0.3 * torch.randn(shape, generator=draw, device=device)).requires_grad_()


def tiled(backend: str, length: int, *, softmax: bool = False, biased: bool = True) -> Callable[[], None]:
    """Forward and backward of one history by ``backend``, its plan included."""
    config = HSTUConfig(
        width=HEADS * WIDTH, heads=HEADS, max_length=length, history_stride=length,
        attention="softmax" if softmax else "silu",
    )  # fmt: skip
    q, k, v = (leaf(length, HEADS, WIDTH, seed=seed) for seed in range(3))
    bias = Bias(leaf(length + 1), leaf(129)) if biased else Bias()
    layout = layout_of([length])

    def work() -> None:
        prepare(backend, layout, config)(q, k, v, bias).sum().backward()

    return work


def naive(length: int, *, biased: bool = True) -> Callable[[], None]:
    """SiLU attention of one history by whole matrices, as a few lines of torch; time buckets are not counted."""
    q, k, v = (leaf(HEADS, length, WIDTH, seed=seed) for seed in range(3))
    w_position, w_time = leaf(length), leaf(129)
    place = torch.arange(length)
    distance = (place[:, None] - place).clamp(min=0)
    bucket = (distance * 60.0).clamp(min=1).log().div(0.301).long()
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)

    def work() -> None:
        score = q @ k.transpose(1, 2)
        if biased:
            score = score + (w_position[distance] + w_time[bucket])
        (functional.silu(score).masked_fill(hidden, 0.0) @ v).sum().backward()

    return work


def sdpa(length: int) -> Callable[[], None]:
    """Causal softmax attention of one history by torch alone."""
    q, k, v = (leaf(1, HEADS, length, WIDTH, seed=seed) for seed in range(3))

    def work() -> None:
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    return work


def memory(length: int) -> dict[str, object]:
    """Peak memory of a chunked forward and backward pass; called in a process of its own."""
    tiled("chunked", 1024)()  # libraries load, threads start
    work = tiled("chunked", length)
    return {"events": length, "peak, MB": peak_megabytes(work)}


def cpu_seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of the second of two calls; on a shared machine the latter says more."""
    work()
    wall, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - used


def cpu_tables(script: str) -> dict[str, list[dict[str, Any]]]:
    """Time by length, time against others at one length, and peak memory by length."""
    by_length = []
    for length in CPU_LENGTHS:
        wall, used = cpu_seconds(tiled("chunked", length))
        scores = HEADS * length * (length + 1) / 2
        by_length.append(
            {"events": length, "seconds": wall, "CPU seconds": used, "CPU ns per score": used / scores * 1e9}
        )
    ways: list[tuple[str, Callable[[], None]]] = [
        ("torch SDPA, causal softmax, no bias", sdpa(COMPARED)),
        ("chunked SiLU, no bias", tiled("chunked", COMPARED, biased=False)),
        ("chunked SiLU, both biases", tiled("chunked", COMPARED)),
        ("whole matrices, SiLU, no bias", naive(COMPARED, biased=False)),
        ("whole matrices, SiLU, both biases", naive(COMPARED)),
        ("sdpa backend, softmax, no bias", tiled("sdpa", COMPARED, softmax=True, biased=False)),
        ("chunked softmax, no bias", tiled("chunked", COMPARED, softmax=True, biased=False)),
        ("chunked softmax, both biases", tiled("chunked", COMPARED, softmax=True)),
        ("sdpa backend, softmax, both biases", tiled("sdpa", COMPARED, softmax=True)),
    ]
    compared: list[dict[str, Any]] = []
    for name, work in ways:
        wall, used = cpu_seconds(work)
        plain = compared[0]["CPU seconds"] if compared else used
        compared.append({"what": name, "seconds": wall, "CPU seconds": used, "times SDPA, by CPU": used / plain})
    return {
        f"Forward and backward, chunked SiLU with both biases, {HEADS} heads of {WIDTH}, float32": by_length,
        f"Forward and backward at {COMPARED:,} events": compared,
        "Peak memory of forward and backward, chunked SiLU with both biases": peaks(script),
    }


def peaks(script: str) -> list[dict[str, Any]]:
    """Peak memory by length, of processes that give freed blocks back: what tensors take, and not what a heap keeps."""
    found = [in_fresh_process(script, length, environment=GIVE_BACK) for length in CPU_LENGTHS]
    return [row | {"MB per 1,000 events": row["peak, MB"] / row["events"] * 1000} for row in found]


def main() -> None:
    given = arguments(__doc__ or "")
    if given.child:
        print(json.dumps(memory(int(given.child[0]))))
        return
    show(cpu_tables(__file__), given.json, LIBRARIES)


if __name__ == "__main__":
    main()
