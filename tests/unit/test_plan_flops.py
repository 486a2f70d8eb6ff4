"""The formula's operations are those that torch counts while the teacher runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hstu_cases import SCHEMA
from plan_cases import batch_of, model_of, truncated
from torch.utils.flop_counter import FlopCounterMode

from recdistill_core.batch import History
from recdistill_hstu.stochastic import stochastic_length
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_hstu.tiles import FREE_WASTE, WASTE
from recdistill_plan import flops
from recdistill_plan.sizes import Depth, Model, Workload, depths

PRODUCTS = {"mm", "addmm"}


def counted(model: Model, work: Workload) -> tuple[dict[str, int], dict[str, int]]:
    """Operations by kind of matrix product: of a forward pass, and of forward and backward."""
    teacher = HSTUTeacher(model.config, SCHEMA, SCHEMA.tasks).eval()
    batch = batch_of(work)
    with FlopCounterMode(display=False) as counter:
        logits = teacher.training_scores(batch).logits
        forward = _by_kind(counter)
        torch.stack(list(logits.values())).sum().backward()
    return forward, _by_kind(counter)


def _by_kind(counter: Any) -> dict[str, int]:
    found = counter.get_flop_counts()["Global"]
    return {str(kind).split(".")[-1]: int(number) for kind, number in found.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": 1},
        {"layers": 3, "attention": "softmax"},
        {"attend_recent": 4, "attend_oldest": 2},
        {"attend_recent": 4},
        {"cross_rank": 0, "hidden": (8,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_reference_attention_takes_exactly_the_operations_of_the_formula(changes: dict[str, object], rows: int) -> None:
    model, work = model_of(backend="reference", **changes), Workload(histories=2, length=7, rows=rows)
    forward, both = counted(model, work)
    found = flops.count(model, work)
    # where a token has one key alone, torch multiplies its value by the weight without a matrix product
    tokens = sum(depth.layers * with_one_key(work, depth) for depth in depths(model, work.length))
    lone = 2 * model.config.width * tokens
    assert sum(forward.values()) == work.histories * (found.forward - lone)
    assert sum(both.values()) == work.histories * (found.training - 3 * lone)


def with_one_key(work: Workload, depth: Depth) -> int:
    """Tokens of one history that see one key, themselves included: rows without history, and the first event."""
    ends = work.ends(depth.length)
    return ends.count(0) + (1 in ends if depth.last else 1)


@pytest.mark.parametrize("changes", [{}, {"attend_recent": 16, "attend_oldest": 8}], ids=str)
def test_chunked_attention_takes_those_and_its_padding(changes: dict[str, object]) -> None:
    model = model_of(backend="chunked", max_length=300, layers=3, **changes)
    work = Workload(histories=2, length=300, rows=4)
    forward, both = counted(model, work)
    found = flops.count(model, work)
    products = sum(number for kind, number in forward.items() if kind in PRODUCTS)
    assert products == work.histories * (found.projections + found.head)
    assert sum(number for kind, number in both.items() if kind in PRODUCTS) == 3 * products
    attention = forward["bmm"]
    # candidates meet themselves element by element; tiles hold 128 tokens and the masked half of their diagonal
    own = 4 * model.config.width * work.examples * model.config.layers
    assert attention >= work.histories * found.attention - own
    tiles = 128 * work.histories * (work.length + work.rows) * model.config.layers
    padding = (1 + WASTE) * tiles + FREE_WASTE * model.config.layers * 8
    assert attention <= (1 + WASTE) * work.histories * found.attention + 4 * model.config.width * padding
    assert both["bmm"] == pytest.approx(attention * 3.5)  # scores are computed again in the backward pass


def test_a_token_pays_for_what_it_sees() -> None:
    model = model_of(attend_recent=4, attend_oldest=2)
    assert [flops.seen(model, visible) for visible in (0, 1, 4, 5, 6, 7, 40)] == [0, 1, 4, 5, 6, 6, 6]
    assert [flops.seen(model_of(), visible) for visible in (0, 9, 40)] == [0, 9, 40]


def test_more_examples_of_a_history_cost_little_each() -> None:
    model = model_of(max_length=1000, width=64, heads=4)
    alone, many = (flops.count(model, Workload(1, 1000, rows)) for rows in (1, 100))
    assert many.forward / 100 < 0.05 * alone.forward


def test_truncated_layers_compute_the_newest_events_only() -> None:
    model = truncated(truncate_layers=4, truncate_length=10)
    assert list(depths(model, 40)) == [Depth(2, 40, False), Depth(3, 10, False), Depth(1, 10, True)]
    assert list(depths(model, 8)) == [Depth(2, 8, False), Depth(3, 8, False), Depth(1, 8, True)]
    assert list(depths(truncated(), 40)) == [Depth(5, 40, False), Depth(1, 40, True)]
    everywhere = truncated(truncate_layers=6, truncate_length=10)
    assert list(depths(everywhere, 40)) == [Depth(5, 10, False), Depth(1, 10, True)]
    work = Workload(1, 40, 4)
    cut, short, whole = (flops.count(made, work).forward for made in (model, everywhere, truncated()))
    assert short < cut < whole


def test_stochastic_length_in_expectation() -> None:
    """Against the mean over what the teacher's own thinning draws."""
    model, length, draws = model_of(max_length=400, history_stride=40, stochastic_length=1.6), 200, 4000
    most = int(400**0.8)
    chances = flops.kept(model, length)
    assert [events for _, events in chances] == [length, most]
    assert sum(chance for chance, _ in chances) == pytest.approx(1)
    torch.manual_seed(0)
    time = torch.arange(draws * length)
    rows = torch.arange(draws)
    history = History({"item": time, "action": time, "time": time}, torch.arange(draws + 1) * length, rows, rows * 0)
    lengths = stochastic_length(history, 400, 1.6).lengths
    assert set(lengths.tolist()) == {length, most}
    assert float((lengths == length).float().mean()) == pytest.approx(chances[0][0], abs=0.03)
    work = Workload(1, length, 2)
    whole, thin = (flops.count(model_of(max_length=400, history_stride=40), Workload(1, n, 2)) for n in (length, most))
    share = chances[0][0]
    expected = share * whole.attention + (1 - share) * thin.attention
    assert flops.count(model, work).attention == pytest.approx(expected)
    assert flops.kept(model, most) == [(1.0, most)]


def test_checkpointing_repeats_the_projections_or_all() -> None:
    model, work = model_of(layers=2), Workload(1, 7, 1)
    width, tokens = model.config.width, 8
    inputs = 8 * width**2 * tokens + 4 * width**2 * (tokens + 2)  # the last layer: V, K of all; U, Q of row and event
    assert flops.recomputed(model, work, "none") == 0
    assert flops.recomputed(model, work, "selective") == inputs
    assert flops.recomputed(model, work, "full") == inputs + flops.count(model, work).attention
