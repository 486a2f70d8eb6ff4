"""Compile the Triton kernels for a GPU that need not be there: python triton_compiled.py COMPUTE_CAPABILITY WIDTH.

Prints a line for each kernel: its name, bytes of shared memory, and how often its code multiplies on tensor cores.
"""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from recdistill_hstu.triton_backend import block_sizes, fitting, kernel

TYPES = {"w_position": "*fp32", "w_time": "*fp32", "grad_position": "*fp32", "grad_time": "*fp32", "edges": "*i64"}
TYPES |= {
    "blocks": "*i32",
    "order": "*i32",
    "visible": "*i32",
    "position": "*i32",
    "moment": "*i64",
    "event_time": "*i64",
    "length": "i32",
}


def compiled(name: str, capability: int, width: int) -> tuple[int, int]:
    tuned = kernel(name)
    config = fitting(tuned.configs, {}, BLOCK_D=width, PRECISION=None)[0]
    queries, keys = block_sizes(width, torch.bfloat16)
    span = {"RECENT": 512, "OLDEST": 64} if width == 64 else {"RECENT": 0, "OLDEST": 0}
    constants = {"H": 4, "D": width, "HAS_POSITION": True, "HAS_TIME": True} | span
    constants |= {
        "GRAD_BIAS": True,
        "PRECISION": None,
        "BLOCK_D": width,
        "BLOCK_M": queries,
        "BLOCK_N": keys,
    } | config.kwargs
    signature = {
        argument: "constexpr" if argument in constants else TYPES.get(argument, "*bf16") for argument in tuned.arg_names
    }
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(tuned.arg_names)
        if argument not in constants and argument != "length"
    }
    known = {argument: constants[argument] for argument in tuned.arg_names if argument in constants}
    source = ASTSource(tuned.fn, signature, known, attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code = result.asm["ptx"]
    return result.metadata.shared, code.count("wgmma.mma_async") + code.count("mma.sync")


if __name__ == "__main__":
    for name in ("forward", "backward_query", "backward_key"):
        print(name, *compiled(name, int(sys.argv[1]), int(sys.argv[2])))
