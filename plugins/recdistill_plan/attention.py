"""What the chunked backend needs beside what autograd keeps: indices for the whole step, and scores while it computes.

A history whose tokens attend to few events is cut into tiles, which are batched (:mod:`recdistill_hstu.tiles`); a long
one into strips, which share two buffers (:mod:`recdistill_hstu.strips`). The workspace of strips does not depend on the
length.
"""

from __future__ import annotations

from typing import NamedTuple

from recdistill_hstu import HSTUConfig
from recdistill_plan.flops import asked, pairs, seen
from recdistill_plan.parameters import TIME_BUCKETS
from recdistill_plan.sizes import FLOAT32, Depth, Model, Workload, widths

#: Of the chunked backend: most tokens of a tile, most bias codes that are kept per unit of the score budget, and the
#: padding that groups of several tiles have on the average (at most a quarter).
TILE_TOKENS, KEPT_CODES, PADDING = 128, 8, 1.05
#: Most tokens of a strip and most events of a piece; a token that attends to more events than that is in a strip.
STRIP_TOKENS, PIECE_EVENTS = 128, 512
#: Bytes per pair of a token and an event while bias codes are made: places, times, logarithms and masks.
CODE_BYTES = 40
#: Bytes of the indices of one token asked for.
TOKEN_BYTES = 32


class Scratch(NamedTuple):
    """Bytes that attention needs while it is computed."""

    forward: float
    backward: float


def planned(config: HSTUConfig) -> bool:
    """Whether attention is planned as the chunked backend computes it; ``auto`` may do better where it finds a GPU."""
    return config.backend in ("auto", "chunked", "reference")


def in_strips(model: Model, depth: Depth) -> bool:
    """Whether a layer's histories are cut into strips."""
    return _span(model, depth) > min(PIECE_EVENTS, model.config.score_budget // model.config.heads)


def strip_size(model: Model) -> tuple[int, int]:
    """Most tokens of a strip and most events of a piece, by the teacher's score budget."""
    budget, heads = model.config.score_budget, model.config.heads
    tokens = min(max(budget // (heads * PIECE_EVENTS), 1), STRIP_TOKENS)
    return tokens, min(max(budget // (heads * tokens), 1), PIECE_EVENTS)


def indices(model: Model, work: Workload, depth: Depth) -> float:
    """Bytes of one layout's indices, and of its bias codes where those are kept; they live for the whole step."""
    if not planned(model.config):
        return 0.0
    of_tokens = float(TOKEN_BYTES * work.histories * asked(work, depth))
    return of_tokens if in_strips(model, depth) else of_tokens + tiles(model, work, depth).indices


def workspace(model: Model, work: Workload, depth: Depth) -> Scratch:
    """Scores and their gradients, copies of queries, keys and values, and the bias, at the fullest moment."""
    if not planned(model.config):
        return Scratch(0.0, 0.0)
    return _strips(model, work) if in_strips(model, depth) else _tiles(model, work, depth)


class Tiles(NamedTuple):
    """The tiles of one layer.

    Attributes:
        scores: elements of the largest group's scores, heads included. keys: elements of a copy of its keys.
        indices: bytes of events' indices, and of the bias codes where those are kept. kept: whether they are.
    """

    scores: float
    keys: float
    indices: float
    kept: bool


def tiles(model: Model, work: Workload, depth: Depth) -> Tiles:
    """How a layer is cut into tiles, near enough for its memory."""
    config = model.config
    queries, span = asked(work, depth), _span(model, depth)
    tall = max(1, min(TILE_TOKENS, config.score_budget // (config.heads * span), queries))
    widest = min(span, seen(model, depth.length) + tall)
    area: float = work.histories * (pairs(model, work, depth) + depth.newest * tall / 2)
    if 2 * config.heads * tall * widest <= config.score_budget:
        area *= PADDING
    scores = max(min(config.score_budget, config.heads * area), float(config.heads * min(area, tall * widest)))
    kept = area <= KEPT_CODES * config.score_budget
    return Tiles(scores, scores * config.width / (config.heads * tall), 16 * area / tall + 4 * area * kept, kept)


def _tiles(model: Model, work: Workload, depth: Depth) -> Scratch:
    """Of one group of tiles, and of the bias by code: a table, and backward its gradient."""
    cut, inner, heads = tiles(model, work, depth), widths(work).inner, model.config.heads
    cast = inner if inner != FLOAT32 else 0
    codes, table = CODE_BYTES * cut.scores / heads, 2.0 * FLOAT32 * _table_rows(model, depth)
    forward = cut.scores * (FLOAT32 * (1 + 1 / heads) + cast) + 2 * inner * cut.keys
    backward = cut.scores * (3 * FLOAT32 + 2 * cast) + 4 * inner * cut.keys
    return Scratch(max(forward, codes) + table, (backward if cut.kept else max(backward, codes)) + table)


def _strips(model: Model, work: Workload) -> Scratch:
    """Of one strip and one piece: one buffer of scores forward and two backward, all in float32."""
    config = model.config
    tokens, events = strip_size(model)
    scores, codes = FLOAT32 * config.heads * tokens * events, CODE_BYTES * tokens * events
    cast = FLOAT32 * config.width * events if widths(work).inner != FLOAT32 else 0
    of_tokens = FLOAT32 * config.width * tokens
    return Scratch(scores + codes + cast + 2.0 * of_tokens, 2 * scores + codes + cast + 3.0 * of_tokens)


def _span(model: Model, depth: Depth) -> int:
    """Most events that a tile's tokens attend to, as the backend reckons when it chooses between tiles and strips."""
    config = model.config
    if not config.attend_recent:
        return depth.length
    return min(depth.length, config.attend_recent + config.attend_oldest + TILE_TOKENS)


def _table_rows(model: Model, depth: Depth) -> int:
    """Entries of a layer's bias table: one for each distance and each time bucket that can meet, and a hidden one."""
    config = model.config
    rows = depth.length + 1 if config.position_bias else 1
    return rows * (TIME_BUCKETS if config.time_bias else 1) + 1
