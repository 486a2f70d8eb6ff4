"""Attention alone on a CUDA device: TFLOP/s in bfloat16 of ours and of others, and share of the card's matrix peak.

python benchmarks/bench_attention_gpu.py [--json] [--rival FOLDER] [--only NAME ...]

Each implementation has a process of its own: what goes wrong in one costs its own cells and no others. Before it is
timed, its output and gradients are compared with those of the `chunked` backend in float32 on the same inputs.

The public HSTU kernel is that of github.com/meta-recsys/generative-recommenders (Apache-2.0), imported from a checkout
and not copied; `make bench-teacher` fetches it. --rival names the folder.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_attention import HEADS, layout_of, leaf
from reporting import attempt, device_seconds, matrix_peak, parser, peak_of, show, why, without_gpu
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.attention import installed, prepare
from recdistill_hstu.bias import Bias
from recdistill_hstu.config import HSTUConfig

LENGTHS, WIDTHS, EVENTS = (1024, 4096, 8192, 16_384, 20_000), (64, 128), 65_536
RIVAL = Path(__file__).parents[1] / "build" / "generative-recommenders"
#: Largest error, norm of the difference over the norm, that bfloat16 products of exact bfloat16 inputs may have.
TOLERANCE = 0.02
LIBRARIES = ("recdistill", "torch", "numpy", *(name for name in ("triton", "xformers") if installed(name)))


@dataclass(frozen=True)
class Shape:
    """Histories, events of each, width of a head, and where."""

    count: int
    length: int
    width: int
    device: str = "cuda"

    @property
    def forward(self) -> float:
        """Operations of the two products, masked pairs not counted."""
        return 2.0 * 2 * self.width * HEADS * self.count * self.length * (self.length + 1) / 2


#: q, k, v [T, H, d] -> the attention [T, H, d], and what it is differentiated by, q, k and v first.
Made = tuple[Callable[[], Tensor], tuple[Tensor, ...]]
Maker = Callable[[Shape, Tensor, Tensor, Tensor], Made]


@dataclass(frozen=True)
class Way:
    """One implementation.

    Attributes:
        make: prepares it. softmax, biased: what it computes. averaged: whether it divides by the length.
    """

    make: Maker
    softmax: bool = False
    biased: bool = False
    averaged: bool = False


def ours(backend: str, *, softmax: bool = False, biased: bool = False) -> Way:
    """A backend of the teacher."""

    def make(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Made:
        config = HSTUConfig(
            width=HEADS * shape.width, heads=HEADS, max_length=shape.length, history_stride=shape.length,
            attention="softmax" if softmax else "silu",
        )  # fmt: skip
        attend = prepare(backend, layout_of([shape.length] * shape.count, shape.device), config)
        bias = Bias(leaf(shape.length + 1, device=shape.device), leaf(129, device=shape.device)) if biased else Bias()
        return lambda: attend(q, k, v, bias), (q, k, v, *(weight for weight in bias if weight is not None))

    return Way(make, softmax, biased)


def sdpa(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Made:
    """torch's flash kernel, causal; views alone, no copies."""

    def work() -> Tensor:
        apart = [x.view(shape.count, shape.length, HEADS, shape.width).transpose(1, 2) for x in (q, k, v)]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            out = functional.scaled_dot_product_attention(apart[0], apart[1], apart[2], is_causal=True)
        return out.transpose(1, 2).reshape(q.shape)

    return work, (q, k, v)


def xformers(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Made:
    """xformers' own call under its mask of causal blocks."""
    attend = importlib.import_module("xformers.ops").memory_efficient_attention
    causal = importlib.import_module("xformers.ops.fmha.attn_bias").BlockDiagonalCausalMask
    mask = causal.from_seqlens([shape.length] * shape.count, device=torch.device(shape.device))

    def work() -> Tensor:
        out: Tensor = attend(q[None], k[None], v[None], attn_bias=mask)
        return out[0]

    return work, (q, k, v)


def rival(folder: Path, *, tma: bool = False) -> Way:
    """The public Triton kernel of SiLU attention without bias, which divides by the length.

    Raises:
        RuntimeError: where tensor memory access is asked for, and the card or the kernel's version lacks it.
    """
    sys.path.insert(0, str(folder))
    kernel = importlib.import_module("generative_recommenders.ops.triton.triton_hstu_attention").triton_hstu_mha
    common = importlib.import_module("generative_recommenders.common")
    if hasattr(common, "set_static_max_seq_lens"):
        common.set_static_max_seq_lens(list(LENGTHS))  # else it is tuned once and not for each length
    known = inspect.signature(kernel).parameters
    options: dict[str, Any] = {"causal": True} if "causal" in known else {}  # of older versions
    if tma:
        if "enable_tma" not in known or torch.cuda.get_device_capability()[0] < 9:
            raise RuntimeError("tensor memory access needs a kernel with enable_tma and a card of capability 9 or more")
        options["enable_tma"] = True

    def make(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Made:
        offsets = torch.arange(shape.count + 1, device=shape.device) * shape.length

        def work() -> Tensor:
            out: Tensor = kernel(N=shape.length, alpha=1.0, q=q, k=k, v=v, seq_offsets=offsets, **options)
            return out

        return work, (q, k, v)

    return Way(make, averaged=True)


#: name -> the implementation, given the folder of the public kernel.
WAYS: dict[str, Callable[[Path], Way]] = {
    "triton SiLU": lambda _: ours("triton"),
    "triton SiLU, both biases": lambda _: ours("triton", biased=True),
    "public HSTU kernel, SiLU": rival,
    "public HSTU kernel, SiLU, TMA": lambda folder: rival(folder, tma=True),
    "xformers softmax": lambda _: Way(xformers, softmax=True),
    "xformers backend, softmax": lambda _: ours("xformers", softmax=True),
    "torch SDPA flash, softmax": lambda _: Way(sdpa, softmax=True),
}


def inputs(shape: Shape) -> tuple[Tensor, ...]:
    """q, k, v and a gradient of the output, ``[T, H, d]`` bfloat16; the same numbers for every implementation."""
    size = shape.count * shape.length, HEADS, shape.width
    return tuple(
        leaf(*size, device=shape.device, seed=seed).detach().bfloat16().requires_grad_(seed < 3) for seed in range(4)
    )


def outcome(made: Made, above: Tensor) -> list[Tensor]:
    """The output and the gradients, in float32."""
    attend, leaves = made
    out = attend()
    found = (out.detach(), *torch.autograd.grad(out, leaves, above.to(out.dtype)))
    return [part.float() for part in found]


def error_of(way: Way, made: Made, shape: Shape, above: Tensor) -> float:
    """Largest error of output and gradients against ``chunked`` in float32: norm of the difference over the norm."""
    exact = [part.detach().float().requires_grad_() for part in made[1][:3]]
    reference = ours("chunked", softmax=way.softmax, biased=way.biased)
    wanted = outcome(reference.make(shape, *exact), above)
    found = outcome(made, above)
    factor = shape.length if way.averaged else 1
    return max(float((x * factor - y).norm() / y.norm()) for x, y in zip(found, wanted, strict=True))


def row_of(way: Way, shape: Shape, calls: int = 20) -> dict[str, float | str]:
    """Error, and seconds of forward alone and of forward with backward; what cannot be had says why."""
    q, k, v, above = inputs(shape)
    try:
        made = way.make(shape, q, k, v)
    except Exception as error:  # see cell
        return dict.fromkeys(("error", "forward", "both"), f"not run: {why(error)}")
    attend, leaves = made

    def forward() -> float:
        with torch.no_grad():
            return device_seconds(attend, shape.device, calls)

    def both() -> float:
        return device_seconds(lambda: torch.autograd.grad(attend(), leaves, above), shape.device, calls)

    return {
        "error": cell(lambda: error_of(way, made, shape, above)),
        "forward": cell(forward),
        "both": cell(both),
    }


def cell(work: Callable[[], float]) -> float | str:
    """What ``work`` gives, or why it gave nothing: compilers of kernels raise errors of many kinds."""
    try:
        return work()
    except Exception as error:
        return f"not run: {why(error)}"


def answer(name: str, folder: Path) -> dict[str, Any]:
    """What a process of its own says of an implementation: a row by shape, or why there is none."""
    try:
        way = WAYS[name](folder)
    except Exception as error:  # a checkout may raise anything when it is imported
        return {"failed": why(error)}
    return {"rows": [row_of(way, shape) for shape in shapes()]}


def shapes(device: str = "cuda") -> list[Shape]:
    """Every width of a head with every length, in batches of about 64k events."""
    return [Shape(max(EVENTS // length, 1), length, width, device) for width in WIDTHS for length in LENGTHS]


def absent(name: str, folder: Path) -> str | None:
    """Why an implementation is left out from the start."""
    package = next((known for known in ("xformers", "triton") if name.startswith(known)), None)
    if package and not installed(package):
        return f"the package {package} is not installed"
    if name.startswith("public") and not (folder / "generative_recommenders").is_dir():
        return (
            f"{folder} holds no checkout of generative-recommenders: make bench-teacher fetches one, --rival names one"
        )
    return None


def tables(names: list[str], folder: Path, ask: Callable[..., Any]) -> dict[str, list[dict[str, Any]]]:
    """Speeds by shape, implementations side by side, and what was left out.

    Args:
        names: of ``WAYS``. folder: of the public kernel.
        ask: what a process of its own says of an implementation (:func:`answer`) or of ``peak``.
    """
    limit = ask("peak")
    peak: float | None = limit.get("peak")
    left_out: list[dict[str, Any]] = []
    measured: dict[str, list[dict[str, float | str]]] = {}
    for name in names:
        reason = absent(name, folder)
        found: dict[str, Any] = {"failed": reason} if reason else ask(name, folder)
        if "failed" in found:
            left_out.append({"what": name, "why": found["failed"]})
        else:
            measured[name] = found["rows"]
    speeds = [
        {"head width": shape.width, "events": shape.length, "what": name} | speed(rows[number], shape, peak)
        for number, shape in enumerate(shapes())
        for name, rows in measured.items()
    ]
    title = f"Causal attention, {HEADS} heads, bfloat16, {peak_of(limit)}"
    if any(name.startswith("public") for name in measured):
        title += f", public HSTU kernel at {version(folder)}"
    found_tables = {title: speeds, "Left out": left_out}
    return {name: rows for name, rows in found_tables.items() if rows}


def speed(row: dict[str, float | str], shape: Shape, peak: float | None) -> dict[str, float | str]:
    """The cells of a shape and an implementation: five products backward besides two forward."""
    error = row["error"]
    cells: dict[str, float | str] = {
        "error": f"{error:.2g}: MISMATCH" if isinstance(error, float) and not error <= TOLERANCE else error
    }
    for name, products in (("forward", 1.0), ("both", 3.5)):
        taken = row[name]
        if isinstance(taken, str):  # told once in a row
            rate: float | str = "" if taken in (row["error"], cells.get("forward, TFLOP/s")) else taken
        else:
            rate = products * shape.forward / taken / 1e12
        cells[f"{name}, TFLOP/s"] = rate
        cells[f"{name}, share of peak"] = rate / peak if peak and isinstance(rate, float) else ""
    return cells


def version(folder: Path) -> str:
    """The commit of a checkout."""
    asked = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return f"commit {done.stdout.strip()}"


def main() -> None:
    known = parser(__doc__ or "")
    known.add_argument("--rival", type=Path, default=RIVAL, help="folder of a checkout of generative-recommenders")
    known.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help="some of the rows")
    given = known.parse_args()
    if given.child:
        name, *folder = given.child
        peak = name == "peak"
        print(json.dumps({"peak": matrix_peak("cuda")} if peak else answer(name, Path(*folder))))
        return
    if not torch.cuda.is_available():
        show({}, given.json, LIBRARIES)
        without_gpu("Attention on a GPU, against xformers, SDPA and the public HSTU kernel,", given.json)
        return
    show(tables(given.only, given.rival, lambda *asked: attempt(__file__, *asked)), given.json, LIBRARIES)


if __name__ == "__main__":
    main()
