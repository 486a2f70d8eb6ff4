"""Memory of an HSTU teacher's activations in one training step, for the batch of one GPU.

``saved`` lists what autograd keeps of a layer (:mod:`recdistill_hstu.layer`, :mod:`recdistill_hstu.chunked`); a test
counts it with autograd's own hooks. What lives only while a layer is at work is counted at its fullest moment: when
attention is computed, forward and backward.
"""

from __future__ import annotations

from typing import NamedTuple

from recdistill_hstu import HSTUConfig
from recdistill_plan.flops import asked, pairs, seen
from recdistill_plan.parameters import TIME_BUCKETS, count
from recdistill_plan.sizes import Depth, Model, Workload, depths

#: Of the chunked backend: most tokens of a tile, most bias codes that are kept per unit of the score budget, and the
#: padding that groups of several tiles have on the average (at most a quarter).
TILE_TOKENS, KEPT_CODES, PADDING = 128, 8, 1.05
#: Bytes per pair of a tile while its bias codes are made: places, times, logarithms and masks.
CODE_BYTES = 40
FLOAT32 = 4


class Bytes(NamedTuple):
    """Bytes of an element: ``state`` of a weight, its gradient or a state of the optimiser; ``inner`` of what matrix
    products take and give; ``outer`` of the sum that runs from layer to layer; ``normal`` of what LayerNorm takes."""

    state: int
    inner: int
    outer: int
    normal: int


def widths(work: Workload) -> Bytes:
    """The element sizes of a precision. Autocast computes LayerNorm in float32, but for on a CPU."""
    if work.precision == "32-true":
        return Bytes(4, 4, 4, 4)
    if work.precision == "bf16-true":
        return Bytes(2, 2, 2, 2)
    return Bytes(4, 2, 4, 2 if work.on_cpu else 4)


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
    """One layer's activations; ``checkpointing`` is one of :data:`recdistill_plan.sizes.CHECKPOINTING`."""
    size, width = widths(work), model.config.width
    tokens, queries = _tokens(work, depth)
    everything = saved(model, work, depth)
    kept = {
        "none": everything,
        "selective": width * (size.outer * tokens + size.inner * queries),
        "full": float(width * size.outer * tokens),
    }[checkpointing]
    scratch = workspace(model, work, depth)
    passed = FLOAT32 * _table_rows(model, depth)  # gradient of the bias by code
    if depth.last:  # gradients of V and K over all tokens: of the candidates' own keys, and of the rest
        passed += width * (4 * size.inner * tokens + 10 * size.inner * queries)
    else:  # gradients of the layer's result, U, the mix (twice) and of Q, K, V (twice); four saved tensors are gone
        gone = 2 * size.inner + 2 * size.normal
        passed += width * tokens * (size.outer + 9 * size.inner - gone)
    forward = scratch.forward
    if checkpointing != "none":  # nothing is saved then, but Q, K, V, U, their input and the result exist
        forward += width * size.inner * (3 * tokens + 3 * queries)
    return Layer(kept, everything - kept, forward, passed + scratch.backward)


def saved(model: Model, work: Workload, depth: Depth) -> float:
    """Bytes that autograd keeps of one layer without checkpointing, integers left out."""
    size, config = widths(work), model.config
    tokens, queries = _tokens(work, depth)
    inputs = 2 * (tokens + queries)  # of U, V, Q, K: rows that the four products read
    normal = tokens + (queries if depth.last else 0)
    if work.precision == "bf16-mixed":  # autocast makes a copy for each product
        normal = inputs
    elements = size.outer * (tokens + (queries if depth.last else 0))  # what LayerNorm reads: the layer's input
    elements += size.inner * (normal + 2 * inputs)  # before and after SiLU
    elements += queries * (2 * size.normal + size.inner)  # the mix, its LayerNorm, the gated product
    if config.dropout:
        elements += queries * (size.inner if work.on_cpu else 1)
    small = FLOAT32 * 2 * (tokens + (queries if depth.last else 0) + queries)  # mean and deviation of each LayerNorm
    rows = work.examples  # a candidate attends to itself, too
    if config.attention == "softmax":
        elements += size.inner * (queries + 1 + rows)
        small += FLOAT32 * config.heads * (queries + 1 + rows)
    else:
        small += 2 * size.inner * config.heads * rows
    return float(config.width * elements + small + FLOAT32 * _table_rows(model, depth))


def outside(model: Model, work: Workload) -> float:
    """Bytes that live beside the layers for the whole step: the batch, the layout and its tiles, embedding indices."""
    first = next(depths(model, work.length))
    tokens, fields = _tokens(work, first)[0], len(model.schema.events) + 2
    places: float = tokens * (12 + 3 * fields) * 8
    return places + sum(tiles(model, work, depth).indices for depth in {*depths(model, work.length)})


def scoring(model: Model, work: Workload) -> float:
    """Bytes that autograd keeps of the head; they come after the layers' forward pass, and go before their backward."""
    config = model.config
    head, features = model.head_width(), model.head_width() - 2 * config.width
    cross = 2 * head + (config.cross_rank if model.narrow_crosses() else 0)
    row = 4 * config.width + 2 * features + 2 * head + config.cross_layers * cross + head + config.width
    row += 2 * sum(config.hidden)
    return float(work.examples * row * widths(work).outer)


class Tiles(NamedTuple):
    """The chunked backend's tiles of one layer.

    Attributes:
        scores: elements of the largest group's scores, heads included. keys: elements of a copy of its keys.
        indices: bytes of all index tensors, and of the bias codes where those are kept. kept: whether they are.
    """

    scores: float
    keys: float
    indices: float
    kept: bool


def tiles(model: Model, work: Workload, depth: Depth) -> Tiles:
    """How the chunked backend cuts a layer, near enough for its memory. Other backends have no tiles."""
    config = model.config
    if not tiled(config):
        return Tiles(0.0, 0.0, 0.0, kept=False)
    queries, span = asked(work, depth), _span(model, depth)
    tall = max(1, min(TILE_TOKENS, config.score_budget // (config.heads * span), queries))
    widest = min(span, seen(model, depth.length) + tall)
    area: float = work.histories * (pairs(model, work, depth) + (0 if depth.last else queries * tall / 2))
    if 2 * config.heads * tall * widest <= config.score_budget:
        area *= PADDING
    scores = max(min(config.score_budget, config.heads * area), float(config.heads * min(area, tall * widest)))
    kept = area <= KEPT_CODES * config.score_budget
    indices = 16 * area / tall + 32 * work.histories * queries + (4 * area if kept else 0)
    return Tiles(scores, scores * config.width / (config.heads * tall), indices, kept)


def enough_budget(model: Model, work: Workload) -> int:
    """The ``score_budget`` from which on the chunked backend's tiles have their full height."""
    return max(model.config.heads * _span(model, depth) * TILE_TOKENS for depth in depths(model, work.length))


def _span(model: Model, depth: Depth) -> int:
    """Most keys of a tile, as the chunked backend reckons when it chooses the height."""
    config = model.config
    if not config.attend_recent:
        return depth.length
    return min(depth.length, config.attend_recent + config.attend_oldest + TILE_TOKENS)


class Scratch(NamedTuple):
    """Bytes that attention needs while it is computed."""

    forward: float
    backward: float


def workspace(model: Model, work: Workload, depth: Depth) -> Scratch:
    """What the chunked backend holds of one group of tiles: scores, their gradients, copies of keys and values."""
    cut, inner, heads = tiles(model, work, depth), widths(work).inner, model.config.heads
    cast = inner if inner != FLOAT32 else 0
    codes = CODE_BYTES * cut.scores / heads
    forward = cut.scores * (FLOAT32 * (1 + 1 / heads) + cast) + 2 * inner * cut.keys
    backward = cut.scores * (3 * FLOAT32 + 2 * cast) + 4 * inner * cut.keys
    return Scratch(max(forward, codes), backward if cut.kept else max(backward, codes))


def tiled(config: HSTUConfig) -> bool:
    """Whether attention is planned as the chunked backend computes it; ``auto`` may do better where it finds a GPU."""
    return config.backend in ("auto", "chunked", "reference")


def casts(model: Model, work: Workload, checkpointing: str) -> float:
    """Bytes of bfloat16 copies of weights that autocast makes and keeps until the backward pass.

    With checkpointing those of the output's matrix alone, which autocast's cache holds.
    """
    if work.precision != "bf16-mixed":
        return 0.0
    matrices = 5 if checkpointing == "none" else 1
    return float(2 * (model.config.layers * matrices * model.config.width**2 + count(model).head))


def _tokens(work: Workload, depth: Depth) -> tuple[int, int]:
    """All tokens of a layer and those that it computes, of the whole batch."""
    return work.histories * (depth.length + work.rows), work.histories * asked(work, depth)


def _table_rows(model: Model, depth: Depth) -> int:
    """Entries of a layer's bias table: one for each distance and each time bucket that can meet, and a hidden one."""
    config = model.config
    if not tiled(config):
        return 0
    rows = depth.length + 1 if config.position_bias else 1
    return rows * (TIME_BUCKETS if config.time_bias else 1) + 1
