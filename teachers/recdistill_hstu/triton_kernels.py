"""Triton kernels of SiLU attention over history events, with relative bias; see :mod:`recdistill_hstu.triton_backend`.

``[S, H, D]`` queries are read in the order of history and of what they see, so that a block of them reads one run of
keys. Everything is accumulated in float32. A program computes one head of one block:

- ``forward`` and ``backward_query``: a block of queries, over the keys that any of them sees;
- ``backward_key``: a block of keys, over the queries that see any of them. Gradients of keys and values need no atomic
  addition; those of the bias do, after a sum over the block where that is possible.

The bias is never written down: its position weight is looked up by distance and its time weight by a bucket that equals
:func:`recdistill_hstu.bias.time_bucket` exactly, see ``_bucket``.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
from __future__ import annotations

import math

import triton
import triton.language as tl

from recdistill_hstu.bias import LOG_STEP, TIME_BUCKETS

#: Columns of a block's row in the plan.
QUERY_COLUMNS = 6
KEY_COLUMNS = 5

_COLUMNS_Q = tl.constexpr(QUERY_COLUMNS)
_COLUMNS_K = tl.constexpr(KEY_COLUMNS)
_BUCKETS = tl.constexpr(TIME_BUCKETS)
_PER_OCTAVE = tl.constexpr(math.log(2) / LOG_STEP)
_AT_ONE_SECOND = tl.constexpr(math.log(1000) / LOG_STEP)
#: Beyond any error of the bucket's logarithm in float32, which is below 1e-4.
_NEAR = tl.constexpr(1e-3)
#: ``length`` is what a kernel is tuned by, and never read: other lengths need no other code.
_KERNEL = triton.jit(do_not_specialize=["length"])


@triton.jit
def _bucket(elapsed, edges):
    """Time bucket of int64 ms: by a logarithm in float32, and close to an edge by comparing whole milliseconds."""
    elapsed = tl.abs(elapsed)
    scaled = tl.log2(tl.maximum(elapsed, 1000).to(tl.float32)) * _PER_OCTAVE - _AT_ONE_SECOND
    nearest = tl.floor(scaled + 0.5)
    close = tl.abs(scaled - nearest) < _NEAR
    edge = tl.load(edges + nearest.to(tl.int32), mask=close, other=0)
    exact = tl.where(elapsed >= edge, nearest, nearest - 1)
    return tl.where(close, exact, tl.floor(scaled)).to(tl.int32)


@triton.jit
def _buckets(elapsed, now_low, now_high, key_low, key_high, edges):
    """Time buckets of a tile of ``elapsed`` ms, between queries and keys whose times lie in the given ranges.

    Buckets grow by a factor, so most tiles far from the diagonal lie in one: they cost two logarithms.
    """
    low, high = _bucket(now_low - key_high, edges), _bucket(now_high - key_low, edges)
    if (now_low >= key_high) & (low == high):
        found = tl.zeros_like(elapsed).to(tl.int32) + low
    else:
        found = _bucket(elapsed, edges)
    return found


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32. Triton's interpreter cannot multiply bfloat16: it gets the same numbers widened."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _seen(place, visible, RECENT: tl.constexpr, OLDEST: tl.constexpr):
    """Whether a query with ``visible`` events attends to the one at ``place``."""
    seen = place < visible
    if RECENT > 0:
        seen = seen & ((place >= visible - RECENT) | (place < OLDEST))
    return seen


@triton.jit
def _with_bias(
    score,
    seen,
    distance,
    bucket,
    w_position,
    w_time,
    HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr,
):
    """Scores plus the weights of distance and bucket, where they are seen."""
    if HAS_POSITION:
        score += tl.load(w_position + distance, mask=seen, other=0.0).to(tl.float32)
    if HAS_TIME:
        score += tl.load(w_time + bucket, mask=seen, other=0.0).to(tl.float32)
    return score


@triton.jit
def _rows(source, row, head, real, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``[I, BLOCK_D]`` of one head at ``row [I]``; 0 where not ``real`` and beyond the head's width."""
    d = tl.arange(0, BLOCK_D)
    at = (row.to(tl.int64) * H + head) * D
    return tl.load(source + at[:, None] + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _store(target, row, head, real, value, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write ``[I, BLOCK_D]`` where :func:`_rows` reads."""
    d = tl.arange(0, BLOCK_D)
    at = (row.to(tl.int64) * H + head) * D
    value = value.to(target.dtype.element_ty)
    tl.store(target + at[:, None] + d[None, :], value, mask=real[:, None] & (d < D)[None, :])


@triton.jit
def _forward_keys(
    acc, query, k, v, base, start, stop, head,
    visible, position, moment, event_time, w_position, w_time, edges,
    H: tl.constexpr, D: tl.constexpr, RECENT: tl.constexpr, OLDEST: tl.constexpr, HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``acc [M, D]`` plus the attention of a block of queries to the places ``start:stop``."""
    for first in range(start, stop, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        real = place < stop
        key = _rows(k, base + place, head, real, H, D, BLOCK_D)
        value = _rows(v, base + place, head, real, H, D, BLOCK_D)
        seen = _seen(place[None, :], visible[:, None], RECENT, OLDEST) & real[None, :]
        bucket = position[:, None]
        if HAS_TIME:
            key_time = tl.load(event_time + base + tl.minimum(place, stop - 1))
            bucket = _buckets(
                moment[:, None] - key_time[None, :], tl.min(moment, 0), tl.max(moment, 0), tl.min(key_time, 0),
                tl.max(key_time, 0), edges,
            )  # fmt: skip
        score = _dot(query, tl.trans(key), None, PRECISION)
        distance = position[:, None] - place[None, :]
        score = _with_bias(score, seen, distance, bucket, w_position, w_time, HAS_POSITION, HAS_TIME)
        weight = tl.where(seen, score * tl.sigmoid(score), 0.0)
        acc = _dot(weight.to(value.dtype), value, acc, PRECISION)
    return acc


@_KERNEL
def forward(
    q, k, v, out, blocks, order, visible, position, moment, event_time, w_position, w_time, edges, length,
    H: tl.constexpr, D: tl.constexpr, RECENT: tl.constexpr, OLDEST: tl.constexpr, HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``out [S, H, D]``: sums over history events. Grid: query blocks, heads."""
    block, head = blocks + tl.program_id(0) * _COLUMNS_Q, tl.program_id(1)
    row, rows, base = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    oldest, start, stop = tl.load(block + 3), tl.load(block + 4), tl.load(block + 5)
    here = tl.arange(0, BLOCK_M)
    real, here = here < rows, here + row
    seen_by = tl.load(visible + here, mask=real, other=0)
    at = tl.load(position + here, mask=real, other=0)
    now = tl.load(moment + tl.minimum(here, row + rows - 1))
    token = tl.load(order + here, mask=real, other=0)
    query = _rows(q, token, head, real, H, D, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    if OLDEST > 0:
        acc = _forward_keys(
            acc, query, k, v, base, 0, oldest, head, seen_by, at, now, event_time, w_position, w_time, edges,
            H, D, RECENT, OLDEST, HAS_POSITION, HAS_TIME, PRECISION, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    acc = _forward_keys(
        acc, query, k, v, base, start, stop, head, seen_by, at, now, event_time, w_position, w_time, edges,
        H, D, RECENT, OLDEST, HAS_POSITION, HAS_TIME, PRECISION, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    _store(out, token, head, real, acc, H, D, BLOCK_D)


@triton.jit
def _score_gradient(score, upward, seen):
    """Gradient of a score from the gradient ``upward`` of its weight ``SiLU(score)``."""
    share = tl.sigmoid(score)
    return tl.where(seen, upward * share * (1.0 + score * (1.0 - share)), 0.0)


@triton.jit
def _query_keys(
    acc, query, upward, k, v, base, start, stop, head,
    visible, position, moment, event_time, w_position, w_time, edges,
    grad_position, grad_time,
    H: tl.constexpr, D: tl.constexpr, RECENT: tl.constexpr, OLDEST: tl.constexpr, HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr, GRAD_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``acc [M, D]`` plus the gradient of a block of queries from the places ``start:stop``; adds to the bias's."""
    for first in range(start, stop, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        real = place < stop
        key = _rows(k, base + place, head, real, H, D, BLOCK_D)
        value = _rows(v, base + place, head, real, H, D, BLOCK_D)
        seen = _seen(place[None, :], visible[:, None], RECENT, OLDEST) & real[None, :]
        distance = position[:, None] - place[None, :]
        bucket = distance
        if HAS_TIME:
            key_time = tl.load(event_time + base + tl.minimum(place, stop - 1))
            bucket = _buckets(
                moment[:, None] - key_time[None, :], tl.min(moment, 0), tl.max(moment, 0), tl.min(key_time, 0),
                tl.max(key_time, 0), edges,
            )  # fmt: skip
        score = _dot(query, tl.trans(key), None, PRECISION)
        score = _with_bias(score, seen, distance, bucket, w_position, w_time, HAS_POSITION, HAS_TIME)
        grad = _score_gradient(score, _dot(upward, tl.trans(value), None, PRECISION), seen)
        acc = _dot(grad.to(key.dtype), key, acc, PRECISION)
        if GRAD_BIAS:
            if HAS_POSITION:  # neighbours in a row have neighbouring addresses
                tl.atomic_add(grad_position + distance, grad, mask=seen, sem="relaxed")
            if HAS_TIME:  # a tile holds few buckets, one or two far from the diagonal: one addition for each
                low = tl.min(tl.min(tl.where(seen, bucket, _BUCKETS), 1), 0)
                high = tl.max(tl.max(tl.where(seen, bucket, -1), 1), 0)
                for number in range(low, high + 1):
                    part = tl.sum(tl.sum(tl.where(bucket == number, grad, 0.0), 1), 0)
                    tl.atomic_add(grad_time + number, part, sem="relaxed")
    return acc


@_KERNEL
def backward_query(
    q, k, v, grad_out, grad_q, grad_position, grad_time,
    blocks, order, visible, position, moment, event_time, w_position, w_time, edges, length,
    H: tl.constexpr, D: tl.constexpr, RECENT: tl.constexpr, OLDEST: tl.constexpr, HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr, GRAD_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of queries and bias; ``grad_time`` has a row for each query block. Grid: query blocks, heads."""
    block, head = blocks + tl.program_id(0) * _COLUMNS_Q, tl.program_id(1)
    row, rows, base = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    oldest, start, stop = tl.load(block + 3), tl.load(block + 4), tl.load(block + 5)
    here = tl.arange(0, BLOCK_M)
    real, here = here < rows, here + row
    seen_by = tl.load(visible + here, mask=real, other=0)
    at = tl.load(position + here, mask=real, other=0)
    now = tl.load(moment + tl.minimum(here, row + rows - 1))
    token = tl.load(order + here, mask=real, other=0)
    query, upward = _rows(q, token, head, real, H, D, BLOCK_D), _rows(grad_out, token, head, real, H, D, BLOCK_D)
    of_block = grad_time + tl.program_id(0) * _BUCKETS
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    if OLDEST > 0:
        acc = _query_keys(
            acc, query, upward, k, v, base, 0, oldest, head, seen_by, at, now, event_time, w_position, w_time, edges,
            grad_position, of_block,
            H, D, RECENT, OLDEST, HAS_POSITION, HAS_TIME, GRAD_BIAS, PRECISION, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    acc = _query_keys(
        acc, query, upward, k, v, base, start, stop, head, seen_by, at, now, event_time, w_position, w_time, edges,
        grad_position, of_block,
        H, D, RECENT, OLDEST, HAS_POSITION, HAS_TIME, GRAD_BIAS, PRECISION, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    _store(grad_q, token, head, real, acc, H, D, BLOCK_D)


@_KERNEL
def backward_key(
    q, k, v, grad_out, grad_k, grad_v, blocks, order, visible, position, moment, event_time, w_position, w_time, edges,
    length, H: tl.constexpr, D: tl.constexpr, RECENT: tl.constexpr, OLDEST: tl.constexpr, HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values; scores stand as ``[N, M]``, key by query. Grid: key blocks, heads."""
    block, head = blocks + tl.program_id(0) * _COLUMNS_K, tl.program_id(1)
    base, first, count = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    start, stop = tl.load(block + 3), tl.load(block + 4)
    place = tl.arange(0, BLOCK_N)
    real, place = place < count, place + first
    key, value = _rows(k, base + place, head, real, H, D, BLOCK_D), _rows(v, base + place, head, real, H, D, BLOCK_D)
    key_time = tl.load(event_time + base + tl.minimum(place, first + count - 1))
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for row in range(start, stop, BLOCK_M):
        here = row + tl.arange(0, BLOCK_M)
        there = here < stop
        token = tl.load(order + here, mask=there, other=0)
        query, upward = _rows(q, token, head, there, H, D, BLOCK_D), _rows(grad_out, token, head, there, H, D, BLOCK_D)
        seen_by = tl.load(visible + here, mask=there, other=0)
        at = tl.load(position + here, mask=there, other=0)
        seen = _seen(place[:, None], seen_by[None, :], RECENT, OLDEST) & real[:, None]
        distance = at[None, :] - place[:, None]
        bucket = distance
        if HAS_TIME:
            now = tl.load(moment + tl.minimum(here, stop - 1))
            bucket = _buckets(
                now[None, :] - key_time[:, None], tl.min(now, 0), tl.max(now, 0), tl.min(key_time, 0),
                tl.max(key_time, 0), edges,
            )  # fmt: skip
        score = _dot(key, tl.trans(query), None, PRECISION)
        score = _with_bias(score, seen, distance, bucket, w_position, w_time, HAS_POSITION, HAS_TIME)
        weight = tl.where(seen, score * tl.sigmoid(score), 0.0)
        acc_v = _dot(weight.to(upward.dtype), upward, acc_v, PRECISION)
        grad = _score_gradient(score, _dot(value, tl.trans(upward), None, PRECISION), seen)
        acc_k = _dot(grad.to(query.dtype), query, acc_k, PRECISION)
    _store(grad_k, base + place, head, real, acc_k, H, D, BLOCK_D)
    _store(grad_v, base + place, head, real, acc_v, H, D, BLOCK_D)
