"""The HSTU layer against its equations (METHODS section 3), written out again with plain loops over floats."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hstu_cases import make_batch, small_config
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_hstu.attention import prepare
from recdistill_hstu.bias import time_bucket
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layer import HSTULayer, Projection
from recdistill_hstu.layout import Layout

Vector = list[float]


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def norm(x: Vector) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((entry - mean) ** 2 for entry in x) / len(x)
    return [(entry - mean) / math.sqrt(variance + 1e-6) for entry in x]


def times(matrix: list[Vector], x: Vector) -> Vector:
    return [sum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]


def bucket(milliseconds: int) -> int:
    return min(max(math.floor(math.log(max(abs(milliseconds) / 1000, 1)) / 0.301), 0), 128)


def seen_by(batch: Batch) -> list[list[tuple[int, int, int]]]:
    """For every token the ``(key token, distance, elapsed ms)`` that it attends to."""
    history: Any = batch.history
    offsets, time = history.offsets.tolist(), history.events["time"].tolist()
    tokens = []
    for begin, end in pairwise(offsets):
        for i in range(begin, end):
            tokens.append([(j, i - j, time[i] - time[j]) for j in range(begin, i + 1)])
    for row, (owner, end) in enumerate(zip(history.row_to_history.tolist(), history.row_end.tolist(), strict=True)):
        begin, now = offsets[owner], int(batch.event_time[row])
        past = [(begin + j, end - j, now - time[begin + j]) for j in range(end)]
        tokens.append([*past, (len(time) + row, 0, 0)])
    return tokens


def naive_layer(layer: HSTULayer, config: HSTUConfig, x: Tensor, batch: Batch) -> Tensor:
    width, size = config.width, config.width // config.heads
    weight, output = layer.project.weight.tolist(), layer.output.weight.tolist()
    position = layer.bias.position.tolist() if layer.bias.position is not None else None
    by_time = layer.bias.time.tolist() if layer.bias.time is not None else None
    projected = [[silu(entry) for entry in times(weight, norm(token))] for token in x.tolist()]
    results = []
    for token, keys in enumerate(seen_by(batch)):
        u, q = projected[token][:width], projected[token][2 * width : 3 * width]
        mixed: Vector = []
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            scores = []
            for key, distance, elapsed in keys:
                score = sum(a * b for a, b in zip(q[part], projected[key][3 * width :][part], strict=True))
                score /= math.sqrt(size) if config.attention == "softmax" else 1
                score += position[distance] if position else 0
                scores.append(score + (by_time[bucket(elapsed)] if by_time else 0))
            if config.attention == "softmax":
                total = sum(math.exp(score) for score in scores)
                weights = [math.exp(score) / total for score in scores]
            else:
                weights = [silu(score) / config.max_length for score in scores]
            values = [projected[key][width : 2 * width][part] for key, _, _ in keys]
            mixed += [sum(a * value[c] for a, value in zip(weights, values, strict=True)) for c in range(size)]
        gated = [a * b for a, b in zip(u, norm(mixed), strict=True)]
        results.append([a + b for a, b in zip(times(output, gated), x[token].tolist(), strict=True)])
    return torch.tensor(results, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("attention", ["silu", "softmax"])
@pytest.mark.parametrize(("position", "time"), [(True, True), (True, False), (False, True), (False, False)])
def test_layer_computes_the_published_equations(backend: str, attention: str, position: bool, time: bool) -> None:
    config = small_config(width=8, attention=attention, position_bias=position, time_bias=time, max_length=12)
    batch = make_batch([4, 0, 1, 7], [(0, 4), (0, 2), (1, 0), (3, 7), (2, 0), (2, 1)])
    layout = Layout.of(batch)
    torch.manual_seed(1)
    layer = HSTULayer(config).double().eval()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x = torch.randn(layout.num_asked, 8, dtype=torch.float64)
    expected = naive_layer(layer, config, x, batch)
    torch.testing.assert_close(layer(x, prepare(backend, layout, config)), expected, rtol=1e-9, atol=1e-9)


def test_last_layer_computes_the_tokens_asked_for_and_no_other() -> None:
    config = small_config()
    layout = Layout.of(make_batch([4, 0, 9], [(0, 4), (0, 2), (2, 9), (1, 0), (2, 9), (2, 0)]))
    final, newest = layout.final()
    assert final.token.tolist() == [1, 3, 12, *range(13, 19)]
    assert newest.tolist() == [1, 0, 2, 3, 2, 3]
    layer = HSTULayer(config).double()
    x = torch.randn(layout.num_asked, config.width, dtype=torch.float64)
    for backend in ("reference", "chunked"):
        whole = layer(x, prepare(backend, layout, config))
        part = layer(x, prepare(backend, final, config), final.token)
        torch.testing.assert_close(part, whole[final.token], rtol=1e-12, atol=1e-12)


def test_time_bucket_counts_seconds_on_a_logarithmic_scale() -> None:
    elapsed = [0, 999, 1_000, 1_351, 1_352, 3_600_000, -3_600_000, 86_400_000, 2**62]
    assert time_bucket(torch.tensor(elapsed)).tolist() == [bucket(entry) for entry in elapsed]
    assert bucket(1_351) == 0
    assert bucket(1_352) == 1
    assert int(time_bucket(torch.tensor([2**62]))[0]) <= 128


def test_result_does_not_depend_on_the_longest_history_of_the_batch() -> None:
    config = small_config()
    layer = HSTULayer(config).double()
    x = torch.randn(9, config.width, dtype=torch.float64)
    short = Layout.of(make_batch([3], [(0, 3)]))
    both = Layout.of(make_batch([3, 4], [(0, 3), (1, 4)]))
    alone = layer(x[[0, 1, 2, 7]], prepare("chunked", short, config))
    together = layer(x, prepare("chunked", both, small_config(position_bias=True)))
    torch.testing.assert_close(together[[0, 1, 2]], alone[:3], rtol=1e-12, atol=1e-12)


def test_queries_and_keys_start_alike_and_are_trained_apart() -> None:
    project = Projection(8)
    *_, q, k = project.weight.chunk(4)
    assert torch.equal(q, k)
    x = torch.randn(3, 8)
    project(x, x)[2].sum().backward()
    assert project.weight.grad is not None
    assert not project.weight.grad[24:].any()
    assert bool(project.weight.grad[16:24].any())
