"""The formula's memory is what autograd keeps, byte by byte, and near what a process takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from hstu_cases import SCHEMA
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import batch_of, model_of, truncated
from torch import Tensor

from recdistill_hstu.attention import Memo, prepare
from recdistill_hstu.config import CHECKPOINTING
from recdistill_hstu.layer import HSTULayer
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_plan.activations import casts, layer, saved, scoring
from recdistill_plan.attention import in_strips, indices, strip_size, tiles, workspace
from recdistill_plan.memory import estimate, moments
from recdistill_plan.parameters import count
from recdistill_plan.sizes import PRECISIONS, STRATEGIES, Depth, Model, Workload, depths

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "benchmarks" / "bench_plan.py"


class Kept:
    """Bytes of floating tensors that autograd and memos keep inside it, each storage once, without the weights."""

    def __init__(self, module: torch.nn.Module, checkpointing: str) -> None:
        self.own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
        self.found: dict[int, Tensor] = {}
        self.memos = checkpointing == "selective"
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._recall = Memo.recall

    def __enter__(self) -> None:
        def recall(memo: Memo, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            held = memo.kept is None
            found = self._recall(memo, compute)
            for part in found if held and self.memos else ():
                self._keep(part)
            return found

        self._patch = mock.patch.object(Memo, "recall", recall)
        self._patch.start()
        self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._patch.stop()

    def _keep(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and place not in self.own:
            self.found[place] = tensor
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.found.values())


def depth_of(work: Workload, *, last: bool) -> Depth:
    """Of one layer, the last one or one that computes every token."""
    return Depth(1, work.length, work.rows, chosen=True) if last else Depth.of_all(1, work.length)


def kept_by_layer(model: Model, work: Workload, *, last: bool) -> int:
    config = model.config
    layout = Layout.of(batch_of(work), Span(config.attend_recent, config.attend_oldest))
    asked, _ = layout.final()
    made = HSTULayer(config)
    x = torch.randn(layout.num_asked, config.width)
    if work.precision == "bf16-true":
        made, x = made.bfloat16(), x.bfloat16()
    x.requires_grad_()
    kept = Kept(made, config.checkpointing)
    with kept, torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16-mixed"):
        made(x, prepare("chunked", asked if last else layout, config), asked.token if last else None)
    return kept.bytes


LAYERS = [
    {},
    {"attention": "softmax"},
    {"dropout": 0.1},
    {"position_bias": False},
    {"time_bias": False},
    {"attend_recent": 8, "attend_oldest": 4},
    {"score_budget": 60},  # strips instead of tiles
    {"score_budget": 60, "attention": "softmax"},
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("changes", LAYERS, ids=str)
def test_autograd_keeps_of_a_layer_what_the_formula_says(changes: dict[str, object], last: bool) -> None:
    model, work = model_of(**changes), Workload(2, 40, 5, "32-true", on_cpu=True)
    depth = depth_of(work, last=last)
    assert in_strips(model, depth) == ("score_budget" in changes)
    assert kept_by_layer(model, work, last=last) == saved(model, work, depth)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("attention", ["silu", "softmax"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointing", CHECKPOINTING[1:])
def test_a_checkpointed_layer_keeps_what_the_formula_says(
    checkpointing: str, precision: str, attention: str, last: bool
) -> None:
    model = model_of(attention=attention, checkpointing=checkpointing)
    work = Workload(2, 40, 5, precision, on_cpu=True)
    assert kept_by_layer(model, work, last=last) == layer(model, work, depth_of(work, last=last), checkpointing).kept


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_in_bfloat16_but_for_small_things(precision: str, last: bool) -> None:
    model, work = model_of(width=128), Workload(4, 40, 5, precision, on_cpu=True)
    casts_of_weights = 2 * 5 * 128**2 if precision == "bf16-mixed" else 0
    found = kept_by_layer(model, work, last=last) - casts_of_weights
    assert found == pytest.approx(saved(model, work, depth_of(work, last=last)), rel=0.02)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_autograd_keeps_of_a_whole_teacher_what_the_formula_says(checkpointing: str, cut: bool) -> None:
    changes = {"truncate_layers": 2, "truncate_length": 20} if cut else {}
    model = model_of(width=64, layers=4, checkpointing=checkpointing, **changes)
    work = Workload(4, 40, 1 if cut else 10, "32-true", on_cpu=True)
    teacher = HSTUTeacher(model.config, SCHEMA, SCHEMA.tasks)
    kept = Kept(teacher, checkpointing)
    with kept:
        logits = teacher.training_scores(batch_of(work)).logits
        torch.stack(list(logits.values())).sum()
    found = depths(model, work.length, work.rows)
    layers = sum(depth.layers * layer(model, work, depth, checkpointing).kept for depth in found)
    assert kept.bytes == layers + scoring(model, work)


@pytest.mark.parametrize("rows", [1, 10, 50])
@pytest.mark.parametrize(
    "changes", [{}, {"hidden": ()}, {"hidden": (8,)}, {"cross_rank": 0}, {"cross_layers": 0}], ids=str
)
def test_autograd_keeps_of_the_head_what_the_formula_says(changes: dict[str, object], rows: int) -> None:
    model, work = model_of(layers=1, checkpointing="full", **changes), Workload(2, 40, rows, "32-true", on_cpu=True)
    teacher = HSTUTeacher(model.config, SCHEMA, SCHEMA.tasks)
    kept = Kept(teacher, "full")
    with kept:
        logits = teacher.training_scores(batch_of(work)).logits
        torch.stack(list(logits.values())).sum()
    (last,) = depths(model, work.length, work.rows)
    assert kept.bytes == layer(model, work, last, "full").kept + scoring(model, work)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "short, batch of 16",
        "deep",
        "wide, autocast",
        "long",
        "longer, semi-local",
        "long, truncated",
        "wide, selective checkpointing",
        "wide, full checkpointing",
    ],
)
def test_the_estimate_is_within_15_percent_of_a_measured_peak(case: str) -> None:
    """Of a fresh process that makes steps; cases differ in length, width, layers, batch, precision, checkpointing."""
    done = subprocess.run([sys.executable, BENCH, "--case", case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["planned, MB"] == pytest.approx(row["measured, MB"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_estimate_of_fsdp2_is_within_15_percent_of_what_two_ranks_measure(precision: str) -> None:
    done = subprocess.run([sys.executable, BENCH, "--ranks", precision], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["planned, MB"] == pytest.approx(row["rank 0, MB"], rel=0.15)
    assert row["planned, MB"] == pytest.approx(row["rank 1, MB"], rel=0.15)


def test_memory_grows_linearly_with_the_length_under_a_semi_local_mask() -> None:
    model = model_of(max_length=20_000, history_stride=5000, width=64, score_budget=1 << 20, attend_recent=1024)
    short, long = (moments(model, Workload(1, length, 20), "ddp", "none", 1)[0] for length in (10_000, 20_000))
    assert 1.9 < long.activations / short.activations < 2.1
    places = [indices(model, Workload(1, length, 20), Depth.of_all(1, length)) for length in (10_000, 20_000)]
    assert 1.9 < places[1] / places[0] < 2.1


def test_scores_of_a_long_history_take_as_much_as_those_of_a_longer_one() -> None:
    model = model_of(max_length=20_000, history_stride=5000, width=64, heads=4, score_budget=1 << 20)
    tokens, events = strip_size(model)
    assert (tokens, events) == (128, 512)
    found = [workspace(model, Workload(1, length, 20), Depth.of_all(1, length)) for length in (600, 20_000)]
    assert found[0] == found[1]
    assert found[0].backward >= 2 * 4 * 4 * tokens * events
    assert strip_size(model_of(score_budget=60)) == (1, 30)
    tiled = Depth.of_all(1, 500)
    assert not in_strips(model, tiled)
    assert tiles(model, Workload(1, 500, 20), tiled).scores <= 1 << 20


@pytest.mark.parametrize("attention", ["silu", "softmax"])
def test_checkpointing_keeps_the_input_and_perhaps_what_attention_gave(attention: str) -> None:
    model, work, depth = model_of(width=64, attention=attention), Workload(2, 40, 5), Depth.of_all(1, 40)
    tokens, heads = 2 * 45, model.config.heads
    found = {name: layer(model, work, depth, name) for name in CHECKPOINTING}
    assert found["none"].kept == saved(model, work, depth)
    given = (tokens + 1) * (64 + heads) * 4
    assert found["selective"].kept == tokens * 64 * 4 + given
    assert found["full"].kept == tokens * 64 * 4
    for kind, cost in found.items():
        beside = given if (kind, attention) == ("selective", "silu") else 0  # which silu's gradient does not need
        assert cost.kept + cost.again == saved(model, work, depth) + beside


def test_ddp_holds_everything_and_buckets_fsdp2_a_share() -> None:
    model, work = model_of(width=64, layers=4), Workload(1, 40, 5)
    parameters = count(model)
    alone, ddp = (moments(model, work, "ddp", "none", gpus)[0] for gpus in (1, 8))
    assert (alone.weights, alone.optimiser, alone.gathered) == (4 * parameters.total, 8 * parameters.total, 0)
    assert (ddp.weights, ddp.gathered) == (4 * parameters.total, 4 * parameters.total)
    sharded = moments(model, work, "fsdp2", "none", 8)[0]
    assert sharded.weights == parameters.total / 2
    outside = parameters.tables + parameters.head
    assert sharded.gathered == 4 * (outside + 2 * parameters.layer)
    mixed = moments(model, Workload(1, 40, 5, "bf16-mixed"), "fsdp2", "none", 8)[0]
    assert mixed.weights == sharded.weights
    assert mixed.gathered == 4 * outside + 2 * (2 * parameters.layer + parameters.head)  # the head under autocast
    assert moments(model, work, "fsdp2", "none", 1) == moments(model, work, "ddp", "none", 1)
    assert sharded.activations == ddp.activations == alone.activations


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 6),
    length=st.integers(1, 40),
    rows=st.integers(1, 60),
    gpus=st.integers(2, 500),
    checkpointing=st.sampled_from(CHECKPOINTING),
    precision=st.sampled_from(PRECISIONS),
)
def test_more_gpus_never_need_more_of_each(
    layers: int, length: int, rows: int, gpus: int, checkpointing: str, precision: str
) -> None:
    """The search for the fewest GPUs relies on it."""
    model, work = model_of(layers=layers), Workload(2, length, rows, precision)
    for strategy in STRATEGIES:
        few, many = (estimate(model, work, strategy, checkpointing, count_).peak for count_ in (gpus, gpus + 1))
        assert many <= few
        plain = estimate(model, work, strategy, "none", gpus)
        assert min(plain[1:]) >= 0


def test_a_peak_is_the_sum_of_its_parts_and_the_highest_moment() -> None:
    model, work = truncated(), Workload(2, 40, 5)
    found = moments(model, work, "fsdp2", "selective", 4)
    peak = estimate(model, work, "fsdp2", "selective", 4)
    assert peak in found
    assert peak.peak == max(memory.peak for memory in found) == sum(peak[1:])


def test_autocast_copies_weights_that_checkpointing_drops() -> None:
    model = model_of(layers=3)
    work = Workload(1, 40, 5, "bf16-mixed")
    head = count(model).head
    assert casts(model, work, "none") == 2 * (3 * 5 * 16**2 + head)
    assert casts(model, work, "selective") == casts(model, work, "full") == 2 * (3 * 16**2 + head)
    assert casts(model, work, "none", sharded=True) == casts(model, work, "full", sharded=True) == 2 * head
    assert casts(model, Workload(1, 40, 5, "bf16-true"), "none") == 0


def test_backends_without_tiles_need_no_workspace() -> None:
    model, work, depth = model_of(backend="xformers", attention="softmax"), Workload(1, 40, 5), Depth.of_all(1, 40)
    assert workspace(model, work, depth) == (0, 0)
    assert indices(model, work, depth) == 0
    assert min(workspace(model_of(), work, depth)) > 0


@pytest.mark.parametrize("changes", [{"histories": 0}, {"length": 0}, {"rows": 0}], ids=str)
def test_a_batch_of_nothing(changes: dict[str, int]) -> None:
    plain = {"histories": 1, "length": 1, "rows": 1, **changes}
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be at least 1, got 0"):
        Workload(**plain)


def test_a_precision_that_is_none() -> None:
    with pytest.raises(ValueError, match="precision must be one of 32-true, bf16-mixed, bf16-true; got 'bf16-mix' "):
        Workload(1, 1, 1, "bf16-mix")
