"""Attention of the HSTU teacher alone: time and memory on a CPU, and, where there is a CUDA device, share of its peak.

python benchmarks/bench_attention.py [--json] [--rival PATH] [--no-cpu]

The public HSTU kernel to compare with on a GPU is that of github.com/meta-recsys/generative-recommenders (Apache-2.0):
git clone it anywhere and give the folder with --rival. It is imported from there and not copied.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from reporting import in_fresh_process, parser, peak_megabytes, show
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.attention import installed, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout

HEADS, WIDTH, MINUTE = 4, 64, 60_000
CPU_LENGTHS = (2048, 4096, 8192, 20_000)
COMPARED = 8192
GPU_LENGTHS = (1024, 4096, 8192, 16_384, 20_000)
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


def leaf(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    draw = torch.Generator(device).manual_seed(sum(shape))
    return (0.3 * torch.randn(shape, generator=draw, device=device)).to(dtype).requires_grad_()


def tiled(backend: str, length: int, *, softmax: bool = False, biased: bool = True) -> Callable[[], None]:
    """Forward and backward of one history by ``backend``, its plan included."""
    config = HSTUConfig(
        width=HEADS * WIDTH, heads=HEADS, max_length=length, history_stride=length,
        attention="softmax" if softmax else "silu",
    )  # fmt: skip
    q, k, v = (leaf(length, HEADS, WIDTH) for _ in range(3))
    bias = Bias(leaf(length + 1), leaf(129)) if biased else Bias()
    layout = layout_of([length])

    def work() -> None:
        prepare(backend, layout, config)(q, k, v, bias).sum().backward()

    return work


def naive(length: int, *, biased: bool = True) -> Callable[[], None]:
    """SiLU attention of one history by whole matrices, as a few lines of torch; time buckets are not counted."""
    q, k, v = (leaf(HEADS, length, WIDTH) for _ in range(3))
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
    q, k, v = (leaf(1, HEADS, length, WIDTH) for _ in range(3))

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
    peaks = [in_fresh_process(script, length) for length in CPU_LENGTHS]
    for row in peaks:
        row["MB per 1,000 events"] = row["peak, MB"] / row["events"] * 1000
    return {
        f"Forward and backward, chunked SiLU with both biases, {HEADS} heads of {WIDTH}, float32": by_length,
        f"Forward and backward at {COMPARED:,} events": compared,
        "Peak memory of forward and backward, chunked SiLU with both biases": peaks,
    }


def gpu_seconds(work: Callable[[], object]) -> float:
    """Median time of a call on the current CUDA device, after the kernels are tuned."""
    for _ in range(3):
        work()
    found = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / 1000)
    return sorted(found)[len(found) // 2]


def matmul_peak() -> float:
    """TFLOP/s of a large bfloat16 product, the most that attention can hope for."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / gpu_seconds(lambda: a @ b) / 1e12


Inputs = tuple[Tensor, ...]
#: Histories, events of each, width of a head -> the attention, and what it is differentiated by.
Way = Callable[[int, int, int], tuple[Callable[[], Tensor], Inputs]]


def gpu_attend(backend: str, *, biased: bool) -> Way:
    """Attention of ``count`` histories of ``length`` events by ``backend``, heads of ``width``."""

    def make(count: int, length: int, width: int) -> tuple[Callable[[], Tensor], Inputs]:
        config = HSTUConfig(
            width=HEADS * width, heads=HEADS, max_length=length, history_stride=length,
            attention="silu" if backend == "triton" else "softmax",
        )  # fmt: skip
        attend = prepare(backend, layout_of([length] * count, "cuda"), config)
        q, k, v = (leaf(count * length, HEADS, width, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        bias = Bias(leaf(length + 1, device="cuda"), leaf(129, device="cuda")) if biased else Bias()
        return lambda: attend(q, k, v, bias), (q, k, v, *(weight for weight in bias if weight is not None))

    return make


def gpu_sdpa(count: int, length: int, width: int) -> tuple[Callable[[], Tensor], Inputs]:
    """torch's flash kernel, causal."""
    q, k, v = (leaf(count, HEADS, length, width, dtype=torch.bfloat16, device="cuda") for _ in range(3))

    def work() -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return work, (q, k, v)


def rival(folder: str) -> Way:
    """The public Triton kernel of SiLU attention without bias, from a checkout of generative-recommenders."""
    sys.path.insert(0, folder)
    kernel = importlib.import_module("generative_recommenders.ops.triton.triton_hstu_attention").triton_hstu_mha
    older = {"causal": True} if "causal" in inspect.signature(kernel).parameters else {}

    def make(count: int, length: int, width: int) -> tuple[Callable[[], Tensor], Inputs]:
        q, k, v = (leaf(count * length, HEADS, width, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        offsets = torch.arange(count + 1, device="cuda") * length

        def work() -> Tensor:
            found: Tensor = kernel(N=length, alpha=1.0, q=q, k=k, v=v, seq_offsets=offsets, **older)
            return found

        return work, (q, k, v)

    return make


def gpu_table(folder: str | None) -> list[dict[str, Any]]:
    """TFLOP/s in bfloat16 of causal attention in batches of about 64k events; masked pairs are not counted as work."""
    peak = matmul_peak()
    ways = {
        "triton SiLU": gpu_attend("triton", biased=False),
        "triton SiLU, both biases": gpu_attend("triton", biased=True),
    }
    if installed("xformers"):
        ways["xformers softmax"] = gpu_attend("xformers", biased=False)
    ways["torch SDPA flash, softmax"] = gpu_sdpa
    if folder:
        ways["public HSTU kernel, SiLU"] = rival(folder)
    return [
        {"head width": width, "events": length, "what": name} | gpu_row(make, length, width, peak)
        for width in (64, 128)
        for length in GPU_LENGTHS
        for name, make in ways.items()
    ]


def gpu_row(make: Way, length: int, width: int, peak: float) -> dict[str, Any]:
    """Forward alone, and forward with backward; a kernel that this machine cannot run shows why."""
    count = max(65_536 // length, 1)
    work = 2.0 * 2 * width * HEADS * count * length * (length + 1) / 2  # two products
    try:
        attend, leaves = make(count, length, width)
        above = torch.randn_like(attend())
        with torch.no_grad():
            forward = work / gpu_seconds(attend) / 1e12
        full = 3.5 * work / gpu_seconds(lambda: torch.autograd.grad(attend(), leaves, above)) / 1e12  # seven products
    except (RuntimeError, ImportError) as error:
        why = f"not run: {type(error).__name__}"
        return {"forward, TFLOP/s": why, "share of peak": "", "both, TFLOP/s": why, "share of peak, both": ""}
    return {
        "forward, TFLOP/s": forward,
        "share of peak": forward / peak,
        "both, TFLOP/s": full,
        "share of peak, both": full / peak,
    }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rival", help="folder of a checkout of generative-recommenders")
    options.add_argument("--no-cpu", action="store_true", help="measure the GPU alone")
    given = options.parse_args()
    if given.child:
        print(json.dumps(memory(int(given.child[0]))))
        return
    tables = {} if given.no_cpu else cpu_tables(__file__)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        tables[f"{name}, {HEADS} heads, bfloat16, matrix peak {matmul_peak():.0f} TFLOP/s"] = gpu_table(given.rival)
    show(tables, given.json, LIBRARIES)
    if not torch.cuda.is_available():
        print("\nThe GPU part was not run: no CUDA device here.", file=sys.stderr if given.json else sys.stdout)


if __name__ == "__main__":
    main()
