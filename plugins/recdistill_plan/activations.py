"""Memory of an HSTU teacher's activations in one training step, for the batch of one GPU.

``saved`` lists what autograd keeps of a layer (:mod:`recdistill_hstu.layer`, :mod:`recdistill_hstu.chunked`); a test
counts it with autograd's own hooks. What lives only while a layer is at work is counted at its fullest moment: when
attention is computed, forward and backward. What attention itself needs is in :mod:`recdistill_plan.attention`.
"""

from __future__ import annotations

from typing import NamedTuple

from recdistill_plan.attention import indices, workspace
from recdistill_plan.flops import asked
from recdistill_plan.parameters import count
from recdistill_plan.sizes import FLOAT32, Depth, Model, Workload, depths, widths


class Layer(NamedTuple):
    """Bytes of one layer for one batch.

    Attributes:
        kept: from its forward to its backward pass. again: made once more in the backward pass, by checkpointing.
        forward, backward: live at the fullest moment of its forward or backward pass besides these.
    """

    kept: float
    again: float
    forward: float
    backward: float


def layer(model: Model, work: Workload, depth: Depth, checkpointing: str) -> Layer:
    """One layer's activations; ``checkpointing`` is one of :data:`recdistill_hstu.config.CHECKPOINTING`."""
    size, width = widths(work), model.config.width
    tokens, queries = _tokens(work, depth)
    everything = saved(model, work, depth)
    given, before = memo(model, work, depth), float(width * size.outer * tokens)
    kept = {"none": everything, "selective": before + given, "full": before}[checkpointing]
    again = everything - kept
    if checkpointing == "selective" and model.config.attention == "silu":
        again += given  # only softmax attention needs its result for its gradient
    scratch = workspace(model, work, depth)
    passed = 2.0 * FLOAT32 * width * tokens if size.inner != FLOAT32 else 0.0  # gradients of K and V are summed wide
    if depth.chosen:  # gradients of V and K over all tokens: of the candidates' own keys, and of the rest
        passed += width * (4 * size.inner * tokens + 10 * size.inner * queries)
    else:  # gradients of the layer's result, U, the mix (twice) and of Q, K, V (twice); four saved tensors are gone
        gone = 2 * size.inner + 2 * size.normal
        passed += width * tokens * (size.outer + 9 * size.inner - gone)
    forward = scratch.forward
    if checkpointing != "none":  # nothing is saved then, but Q, K, V, U, their input and the result exist
        forward += width * size.inner * (3 * tokens + 3 * queries)
    return Layer(kept, again, forward, passed + scratch.backward)


def memo(model: Model, work: Workload, depth: Depth) -> float:
    """Bytes of what attention gave in a layer, and of the logarithms of sums beside it, which have a row more."""
    _, queries = _tokens(work, depth)
    return float((queries + 1) * (model.config.width * widths(work).inner + FLOAT32 * model.config.heads))


def saved(model: Model, work: Workload, depth: Depth) -> float:
    """Bytes that autograd keeps of one layer without checkpointing, integers left out."""
    size, config = widths(work), model.config
    tokens, queries = _tokens(work, depth)
    inputs = 2 * (tokens + queries)  # of U, V, Q, K: rows that the four products read
    normal = tokens + (queries if depth.chosen else 0)
    if work.precision == "bf16-mixed":  # autocast makes a copy for each product
        normal = inputs
    elements = size.outer * (tokens + (queries if depth.chosen else 0))  # what LayerNorm reads: the layer's input
    elements += size.inner * (normal + 2 * inputs)  # before and after SiLU
    elements += queries * (2 * size.normal + size.inner)  # the mix, its LayerNorm, the gated product
    if config.dropout:
        elements += queries * (size.inner if work.on_cpu else 1)
    small = FLOAT32 * 2 * (tokens + (queries if depth.chosen else 0) + queries)  # mean and deviation of each LayerNorm
    # a candidate's attention to itself: its key and value, and its query where that is not wide already
    elements += FLOAT32 * work.examples * (2 if size.inner == FLOAT32 else 3)
    small += FLOAT32 * config.heads * work.examples * (1 if config.attention == "softmax" else 2)
    given = memo(model, work, depth) if config.attention == "softmax" else 0.0
    return float(config.width * elements + small + given)


def outside(model: Model, work: Workload) -> float:
    """Bytes that live beside the layers for the whole step: the batch, the layout and its tiles, embedding indices."""
    layers = depths(model, work.length, work.rows)
    tokens, fields = _tokens(work, layers[0])[0], len(model.schema.events) + 2
    return tokens * (12 + 3 * fields) * 8 + sum(indices(model, work, depth) for depth in layers)


def scoring(model: Model, work: Workload) -> float:
    """Bytes that autograd keeps of the head; they come after the layers' forward pass, and go before their backward."""
    config, head = model.config, model.head_width()
    cross = 2 * head + (config.cross_rank if model.narrow_crosses() else 0)
    deep = [head + config.width, *config.hidden]
    row = 3 * config.width + config.cross_layers * cross + head + deep[-1] + (sum(deep) if config.hidden else 0)
    row += 4  # mean and deviation of the two LayerNorms
    _, read = _tokens(work, depths(model, work.length, work.rows)[-1])
    return float((read * config.width + work.examples * row) * widths(work).outer)


def casts(model: Model, work: Workload, checkpointing: str, *, sharded: bool = False) -> float:
    """Bytes of bfloat16 copies of weights that autocast makes and keeps until the backward pass.

    With checkpointing, of layers those of the output's matrix alone, which autocast's cache holds. ``sharded`` layers
    have none: FSDP2 gathers them in bfloat16.
    """
    if work.precision != "bf16-mixed":
        return 0.0
    matrices = 0 if sharded else 5 if checkpointing == "none" else 1
    return float(2 * (model.config.layers * matrices * model.config.width**2 + count(model).head))


def _tokens(work: Workload, depth: Depth) -> tuple[int, int]:
    """All tokens of a layer and those that it computes, of the whole batch."""
    return work.histories * (depth.length + work.rows), work.histories * asked(work, depth)
