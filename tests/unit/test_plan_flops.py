"""The formula's operations are those that torch counts while the teacher runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hstu_cases import SCHEMA
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import batch_of, model_of, truncated
from torch.utils.flop_counter import FlopCounterMode

from recdistill_core.batch import History
from recdistill_hstu.layout import Layout
from recdistill_hstu.steps import plan_steps
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
    tokens = sum(depth.layers * with_one_key(work, depth) for depth in depths(model, work.length, work.rows))
    lone = 2 * model.config.width * tokens
    assert sum(forward.values()) == work.histories * (found.forward - lone)
    assert sum(both.values()) == work.histories * (found.training - 3 * lone)


def with_one_key(work: Workload, depth: Depth) -> int:
    """Tokens of one history that see one key, themselves included: rows without history, and the first event."""
    return work.ends(depth.length).count(0) + (depth.newest == depth.length)


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
    model, whole = truncated(), truncated(truncate_layers=0, truncate_length=0)
    few = Depth(1, 40, 10, True), Depth.of_all(3, 10), Depth(1, 10, 4, True)
    assert depths(model, 40, 4) == [Depth.of_all(1, 40), *few]
    assert depths(model, 8, 4) == [Depth.of_all(1, 8), Depth(1, 8, 8, True), Depth.of_all(3, 8), Depth(1, 8, 4, True)]
    assert depths(whole, 40, 4) == [Depth.of_all(5, 40), Depth(1, 40, 4, True)]
    almost = truncated(truncate_layers=5)
    assert depths(almost, 40, 20) == [Depth(1, 40, 10, True), Depth.of_all(4, 10), Depth(1, 10, 10, True)]
    work = Workload(1, 40, 4)
    short, cut, long = (flops.count(made, work).forward for made in (almost, model, whole))
    assert short < cut < long


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_truncated_layers_take_exactly_those_operations_where_their_windows_are_full(layers: int) -> None:
    """A window of 8 events starts at a multiple of 4, so that one at the end of 40 events is full."""
    model = truncated(truncate_layers=layers, truncate_length=8, backend="reference")
    work = Workload(histories=2, length=40, rows=1)
    forward, both = counted(model, work)
    found = flops.count(model, work)
    deep = depths(model, work.length, work.rows)
    lone = 2 * model.config.width * sum(depth.layers * with_one_key(work, depth) for depth in deep)
    assert sum(forward.values()) == work.histories * (found.forward - lone)
    assert sum(both.values()) == work.histories * (found.training - 3 * lone)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    rows=st.integers(1, 5),
    most=st.integers(2, 40),
    layers=st.integers(1, 5),
    whole=st.integers(1, 3),
)
def test_no_truncated_layer_sees_more_events_than_planned_nor_less_than_half_of_them(
    length: int, rows: int, most: int, layers: int, whole: int
) -> None:
    model = truncated(layers=layers + whole, truncate_layers=layers, truncate_length=most)
    work = Workload(1, length, min(rows, length))
    steps, _ = plan_steps(Layout.of(batch_of(work)), model.config)
    planned = [depth for depth in depths(model, work.length, work.rows) for _ in range(depth.layers)]
    assert len(steps) == len(planned)
    for step, depth in zip(steps, planned, strict=True):
        assert step.layout.longest <= depth.length
        assert step.layout.longest >= depth.length / 2
        assert (step.asked is not None) == depth.chosen


def test_stochastic_length_in_expectation() -> None:
    """Against the mean over what the teacher's own thinning draws."""
    model, length, draws = model_of(max_length=400, history_stride=40, stochastic_length=1.6), 200, 4000
    most = int(400**0.8)
    chances = flops.kept(model, length, 1)
    assert [events for _, events in chances] == [length, most]
    assert sum(chance for chance, _ in chances) == pytest.approx(1)
    torch.manual_seed(0)
    time = torch.arange(draws * length)
    rows = torch.arange(draws)
    history = History(
        {"item": time, "action": time, "time": time}, torch.arange(draws + 1) * length, rows, rows * 0 + length
    )
    lengths = stochastic_length(history, 400, 1.6).lengths
    assert set(lengths.tolist()) == {length, most}
    assert float((lengths == length).float().mean()) == pytest.approx(chances[0][0], abs=0.03)
    work = Workload(1, length, 1)
    whole, thin = (flops.count(model_of(max_length=400, history_stride=40), Workload(1, n, 1)) for n in (length, most))
    share = chances[0][0]
    expected = share * whole.attention + (1 - share) * thin.attention
    assert flops.count(model, work).attention == pytest.approx(expected)
    assert flops.kept(model, most, 1) == [(1.0, most)]
    assert flops.kept(model, most + 4, 5) == [(1.0, most + 4)]
    several = flops.kept(model, length, 16)
    ends = torch.arange(length - 15, length + 1).repeat(draws)
    history = History(history.events, history.offsets, rows.repeat_interleave(16), ends)
    lengths = stochastic_length(history, 400, 1.6).lengths.double()
    assert float((lengths == length).double().mean()) == pytest.approx(several[0][0], abs=0.03)
    assert float(lengths[lengths < length].mean()) == pytest.approx(several[1][1], abs=0.5)
    assert several[1][1] > most + 5


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("changes", [{"layers": 3}, {"layers": 4, "truncate_layers": 2, "truncate_length": 8}], ids=str)
def test_a_checkpointed_teacher_repeats_exactly_what_the_formula_says(
    checkpointing: str, changes: dict[str, object]
) -> None:
    """Attention is counted apart: ``full`` computes its forward pass, scores and values, once more."""
    work, attended = Workload(histories=2, length=40, rows=1), {}
    for kind in ("none", checkpointing):
        model = model_of(backend="chunked", checkpointing=kind, **changes)
        forward, both = counted(model, work)
        attended[kind] = both["bmm"]
        found, again = flops.count(model, work), flops.recomputed(model, work, "selective") if kind != "none" else 0
        products = sum(number for name, number in both.items() if name in PRODUCTS)
        assert products == work.histories * (3 * (found.projections + found.head) + again)
    assert attended[checkpointing] - attended["none"] == (forward["bmm"] if checkpointing == "full" else 0)


def test_checkpointing_repeats_the_projections_or_all() -> None:
    model, work = model_of(layers=2), Workload(1, 7, 1)
    width, tokens = model.config.width, 8
    inputs = 8 * width**2 * tokens + 4 * width**2 * (tokens + 2)  # the last layer: V, K of all; U, Q of row and event
    assert flops.recomputed(model, work, "none") == 0
    assert flops.recomputed(model, work, "selective") == inputs
    assert flops.recomputed(model, work, "full") == inputs + flops.count(model, work).attention
