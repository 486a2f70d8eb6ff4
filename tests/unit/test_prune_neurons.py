"""Hidden neurons: which there are, and that erasing, growing and cutting them out does to logits what it should."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from core_cases import SCHEMA, make_batch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recdistill_core import BuildContext, Objective
from recdistill_core.config import make
from recdistill_core.errors import UsageError
from recdistill_core.registry import installed
from recdistill_lightning import StudentModule
from recdistill_prune import GrowPrune, IdeaPrune, hidden_layers, shrink
from recdistill_prune.neurons import erase, mask_gradients, regrow, widen

BATCH = make_batch(16)
MLP: dict[str, Any] = {"name": "mlp", "embedding": 4, "hidden": [8, 6, 5], "tower": 4, "recent": 3}
KINDS: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    "mlp-dropout": {**MLP, "dropout": 0.3},
    "mlp-linear-tower": {**MLP, "tower": 0},
    "dcn": {"name": "dcn", "embedding": 4, "hidden": [8, 6], "tower": 4, "recent": 3},
}
WIDTHS = {
    "mlp": {"student.dense.0": 8, "student.dense.2": 6, "main.body.0": 4},
    "mlp-dropout": {"student.dense.0": 8, "student.dense.3": 6, "main.body.0": 4},
    "mlp-linear-tower": {"student.dense.0": 8, "student.dense.2": 6},
    "dcn": {"student.dense.0": 8, "main.body.0": 4},
}


def build(kind: str, **changes: Any) -> StudentModule:
    torch.manual_seed(0)
    student = make(installed(), "student", {**KINDS[kind], **changes}, BuildContext(SCHEMA, SCHEMA.tasks))
    return StudentModule(student, {task: Objective(task) for task in SCHEMA.tasks}).eval()


def widths(module: nn.Module) -> dict[str, int]:
    return {name: layer.width for name, layer in hidden_layers(module).items()}


def logits(module: StudentModule) -> Tensor:
    return torch.stack(list(module(BATCH).values())).detach()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_layers_of_what_is_trained_and_of_what_is_served(kind: str) -> None:
    module = build(kind)
    assert widths(module) == WIDTHS[kind]
    assert widths(module.serving_module()) == WIDTHS[kind]
    for layer in hidden_layers(module).values():
        for part, dimension in layer.parts():
            assert part.shape[dimension] == layer.width


def test_a_student_without_a_hidden_layer_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        hidden_layers(build("mlp-linear-tower", hidden=[8]))
    assert str(caught.value) == (
        "MLP and its tower have no hidden layer to prune\n"
        "  where: recdistill_mlp.model\n"
        "  to do: use a student with two or more dense layers, such as mlp with hidden: [64, 32], or a tower with a "
        "hidden layer; recdistill_core.features.dense_layers makes what can be pruned"
    )


def test_what_mixes_neurons_ends_a_chain() -> None:
    module = build("mlp")
    layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    module.student.extra = layers
    assert widths(module) == {**WIDTHS["mlp"], "student.extra.2": 5}


masks = st.integers(1, 7).flatmap(lambda kept: st.permutations(range(8)).map(lambda order: sorted(order[:kept])))


@settings(max_examples=15, deadline=None)
@given(kept=masks, kind=st.sampled_from(sorted(KINDS)))
def test_cutting_erased_neurons_out_changes_no_logit(kept: list[int], kind: str) -> None:
    module = build(kind)
    live = {}
    for name, layer in hidden_layers(module).items():
        some = [index for index in kept if index < layer.width] or [0]
        live[name] = torch.zeros(layer.width, dtype=torch.bool).index_fill(0, torch.tensor(some), True)
        erase(layer, ~live[name])
    serving, masked = module.serving_module(), logits(module)
    shrink(serving, live)
    small = torch.stack(list(serving(**module.student.inputs(BATCH)).values())).detach()
    torch.testing.assert_close(small, masked, rtol=0, atol=1e-6)
    assert widths(serving) == {name: int(mask.sum()) for name, mask in live.items()}
    assert widths(module) == WIDTHS[kind]
    assert not torch.equal(masked, logits(build(kind)))


def test_regrown_neurons_change_no_logit_and_learn() -> None:
    module = build("dcn")
    layers = hidden_layers(module)
    dead = {name: torch.arange(layer.width) % 2 == 0 for name, layer in layers.items()}
    for name, layer in layers.items():
        erase(layer, dead[name])
    before = logits(module)
    for name, layer in layers.items():
        regrow(layer, dead[name], draw())
        assert layer.before.weight[dead[name]].abs().amin() > 0
        assert layer.before.weight.abs().amax() <= layer.before.in_features**-0.5
        assert not layer.after.weight[:, dead[name]].any()
    assert torch.equal(logits(module), before)
    torch.stack(list(module(BATCH).values())).square().sum().backward()
    for name, layer in layers.items():
        assert layer.after.weight.grad is not None
        assert layer.after.weight.grad[:, dead[name]].any()


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Sigmoid()])
def test_erased_neurons_and_their_moments_stay_zero(activation: nn.Module) -> None:
    module = build("mlp")
    module.student.dense[1] = activation  # type: ignore[operator,index]  # an nn.Sequential of the student
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    layer = hidden_layers(module)["student.dense.0"]
    dead = torch.arange(layer.width) < 3

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(module(BATCH).values())).square().sum().backward()
        mask_gradients(layer, ~dead)
        optimizer.step()

    dead, chosen = torch.zeros_like(dead), dead
    step()
    erase(layer, chosen, [optimizer])
    dead = chosen
    before = logits(module)
    for _ in range(3):
        step()
    assert not torch.equal(logits(module), before)
    gone = torch.arange(3)
    for part, dimension in layer.parts():
        assert not part.index_select(dimension, gone).any()
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not optimizer.state[part][moment].index_select(dimension, gone).any()
            assert optimizer.state[part][moment].any()


@settings(max_examples=100, deadline=None)
@given(
    total=st.integers(4, 500),
    enlarge=st.floats(1.01, 40.0),
    shares=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2).map(sorted),
    cuts=st.integers(1, 30),
)
def test_widths_fall_to_the_students_own_and_training_goes_on(
    total: int, enlarge: float, shares: list[float], cuts: int
) -> None:
    module = build("mlp")
    pruning = IdeaPrune(enlarge=enlarge, begin=shares[0], end=shares[1], cuts=cuts, seed=0)
    pruning.prepare(module)
    start = widths(module)
    assert all(start[name] > width for name, width in WIDTHS["mlp"].items())
    try:
        plan = pruning.targets(total, start)
    except UsageError:
        assume(False)
    assert list(plan) == sorted(plan)
    assert len(plan) == cuts
    assert 1 <= min(plan) <= max(plan) < total
    assert plan[max(plan)] == WIDTHS["mlp"]
    for before, after in itertools.pairwise([start, *plan.values()]):
        assert all(after[name] <= before[name] for name in start)


@settings(max_examples=100, deadline=None)
@given(total=st.integers(2, 500), keep=st.floats(0.01, 0.99), narrow=st.floats(0.01, 0.99), cycles=st.integers(1, 9))
def test_narrow_and_wide_phases_alternate_and_the_last_is_wide(
    total: int, keep: float, narrow: float, cycles: int
) -> None:
    try:
        plan = GrowPrune(keep=keep, narrow=narrow, cycles=cycles).targets(total, WIDTHS["dcn"])
    except UsageError:
        assume(False)
    assert list(plan) == sorted(plan)
    assert 0 < min(plan) <= max(plan) < total
    small = {name: math.ceil(width * keep) for name, width in WIDTHS["dcn"].items()}
    assert list(plan.values()) == [small, WIDTHS["dcn"]] * cycles
    places = list(plan)
    narrowed = sum(after - before for before, after in zip(places[::2], places[1::2], strict=True))
    assert abs(narrowed - narrow * total) <= cycles


def test_widening_draws_as_a_linear_map_does_and_from_no_global_generator() -> None:
    module, twin = build("mlp"), build("mlp")
    before = torch.get_rng_state()
    wide = {name: 100 * width for name, width in WIDTHS["mlp"].items()}
    widen(module, wide, draw(3))
    widen(twin, wide, draw(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert widths(module) == wide
    assert torch.equal(logits(module), logits(twin))
    for layer in hidden_layers(module).values():
        for linear in (layer.before, layer.after):
            bound = linear.in_features**-0.5
            assert linear.weight.shape == (linear.out_features, linear.in_features)
            assert 0.9 * bound < linear.weight.abs().amax() <= bound
            assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    widen(twin, wide, draw(4))
    assert not torch.equal(logits(module), logits(twin))
