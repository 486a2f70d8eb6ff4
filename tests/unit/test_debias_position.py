"""Position debiasers against simulated clicks whose examination probabilities are known."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional

import recdistill_position
from recdistill_core import Batch, BuildContext, Debiaser
from recdistill_core.errors import DataError, UsageError
from recdistill_position.debias import Pal, PositionTower
from recdistill_position.variation import measure

ITEMS, POSITIONS = 60, 12
THETA = 1 / np.sqrt(1 + np.arange(POSITIONS))
BIAS = np.log(THETA)
NAMES = ("position_tower", "pal")


def build(name: str, tasks: tuple[str, ...] = ("click",), **values: float) -> Debiaser:
    component = {entry.name: entry for entry in recdistill_position.recdistill_debiasers()}[name]
    assert component.needs_of(component.config()) == {"position"}
    return component.build(component.config(**({"positions": POSITIONS} | values)), BuildContext(tasks=tasks))


def batch(position: list[int] | Tensor | None, item: Tensor | None = None) -> Batch:
    position = torch.tensor(position) if isinstance(position, list) else position
    ids = torch.arange(3 if position is None else len(position))
    shown = ids + 1 if item is None else item
    return Batch(ids, ids, ids, shown, ids, ids[:, None], torch.zeros(len(ids), 0), position=position)


def simulate(click_rate: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[Batch, Tensor, Tensor, np.ndarray]:
    """Cells (item, position) with their shares of clicks and numbers of impressions, and the relevance logits.

    Each item has a home place that says nothing of its relevance, and moves around it: who ignores position takes the
    home for relevance.
    """
    rng = np.random.default_rng(0)
    relevance = rng.normal(-1.5, 0.7, ITEMS)
    home = rng.integers(POSITIONS, size=ITEMS)
    item, position = (axis.ravel() for axis in np.meshgrid(np.arange(ITEMS), np.arange(POSITIONS), indexing="ij"))
    near = (position - home[item]) % POSITIONS
    shown = np.where(near < 4, 20_000, 1_000)
    clicks = rng.binomial(shown, click_rate(relevance[item], position))
    cells = batch(torch.tensor(position), torch.tensor(item + 1))
    return cells, torch.tensor(clicks / shown), torch.tensor(shown / shown.mean()), relevance


def train(debiaser: Debiaser | None, cells: Batch, rate: Tensor, shown: Tensor) -> np.ndarray:
    """Served logits ``[ITEMS]`` of a student that is one free logit per item, trained together with the debiaser."""
    student = nn.Parameter(torch.full((ITEMS,), -1.0, dtype=torch.float64))
    parameters = [student, *(debiaser.parameters() if debiaser is not None else ())]
    optimiser = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        torch.manual_seed(0)  # the same positions are dropped each time, so that the loss is a function
        served = student[cells.item_id - 1]
        logged = debiaser.training_logit(served, cells, "click") if debiaser is not None else served
        value = (shown * functional.binary_cross_entropy_with_logits(logged, rate, reduction="none")).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return student.detach().numpy()


def examined(relevance: np.ndarray, position: np.ndarray) -> np.ndarray:
    return expit(relevance) * THETA[position]


def added(relevance: np.ndarray, position: np.ndarray) -> np.ndarray:
    return expit(relevance + BIAS[position])


def test_pal_recovers_examination_and_ranking() -> None:
    cells, rate, shown, relevance = simulate(examined)
    pal = build("pal")
    served = train(pal, cells, rate, shown)
    np.testing.assert_allclose(pal.theta("click").numpy(), THETA, rtol=0.03)
    np.testing.assert_allclose(served, relevance, atol=0.15)
    naive = train(None, cells, rate, shown)
    assert kendalltau(served, relevance).statistic > 0.95
    assert kendalltau(naive, relevance).statistic < 0.85


def test_the_tower_recovers_differences_of_bias_and_ranking() -> None:
    cells, rate, shown, relevance = simulate(added)
    tower = build("position_tower", drop=0.0)
    served = train(tower, cells, rate, shown)
    bias = tower.free.weight.detach()[:, 0].numpy()
    np.testing.assert_allclose(bias - bias[0], BIAS, atol=0.05)
    assert kendalltau(served, relevance).statistic > 0.95
    assert kendalltau(train(None, cells, rate, shown), relevance).statistic < 0.9


def test_dropping_positions_fixes_the_level_of_the_served_logit() -> None:
    cells, rate, shown, relevance = simulate(added)
    many = torch.arange(len(cells)).repeat(20)
    tower = build("position_tower", drop=0.1)
    nn.init.constant_(tower.free.weight, -4.0)  # a level that without dropping would stay where it is
    served = train(tower, cells.rows(many), rate[many], shown[many])
    predicted = torch.sigmoid(torch.tensor(served))[cells.item_id - 1]
    assert float((shown * predicted).sum()) == pytest.approx(float((shown * rate).sum()), rel=0.05)
    assert kendalltau(served, relevance).statistic > 0.9


def test_pal_equals_its_formula() -> None:
    pal = build("pal")
    nn.init.normal_(pal.free.weight)
    served = torch.linspace(-9, 9, 36, dtype=torch.float64)
    place = torch.arange(36) % POSITIONS
    expected = logit(expit(served.numpy()) * pal.theta("click")[place].double().numpy())
    where = place.numpy() > 0
    found = pal.training_logit(served, batch(place), "click").detach().numpy()
    np.testing.assert_allclose(found[where], expected[where], rtol=1e-5)
    np.testing.assert_array_equal(found[~where], served.numpy()[~where])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pal_is_finite_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    pal = build("pal")
    pal.free.weight.data[1:4, 0] = torch.tensor([-60.0, 0.0, 60.0])
    served = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype).repeat_interleave(4).requires_grad_()
    found = pal.training_logit(served, batch([0, 1, 2, 3] * 5), "click")
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(served.grad).all()
    assert torch.isfinite(pal.free.weight.grad).all()
    assert found.reshape(5, 4)[-1, 2] == 0.0  # sure to click once seen, seen half the time


def test_pal_gradients_are_right_and_the_top_has_none() -> None:
    pal = build("pal").double()
    served, rows = torch.randn(8, dtype=torch.float64, requires_grad=True), batch([0, 0, 1, 2, 3, 3, 11, 40])
    pal.values = lambda rows, task: pal.free(pal.places(rows))[:, 0]  # without the cast to float32
    assert torch.autograd.gradcheck(lambda z, _: pal.training_logit(z, rows, "click"), (served, pal.free.weight))
    pal.training_logit(served, rows, "click").sum().backward()
    assert pal.free.weight.grad[0] == 0
    assert (pal.free.weight.grad[[1, 2, 3, 11]] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_when_serving(name: str) -> None:
    debiaser = build(name)
    nn.init.normal_(debiaser.free.weight)
    served = torch.randn(3)
    assert not torch.equal(debiaser.training_logit(served, batch([1, 2, 3]), "click"), served)
    debiaser.eval()
    assert debiaser.training_logit(served, batch([1, 2, 3]), "click") is served
    assert debiaser.training_offset(batch([1, 2, 3]), "click") is None
    assert debiaser.correct(served, batch([1, 2, 3]), "click") is served
    assert debiaser.weight(batch([1, 2, 3]), "click").tolist() == [1, 1, 1]


def test_the_tower_drops_a_tenth_of_the_positions() -> None:
    torch.manual_seed(0)
    tower = build("position_tower", drop=0.1)
    nn.init.constant_(tower.free.weight, 1.0)
    offset = tower.training_offset(batch(torch.ones(20_000, dtype=torch.int64)), "click")
    assert set(offset.tolist()) == {0.0, 1.0}
    assert float((offset == 0).float().mean()) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_positions_far_down_share_the_last_one(name: str) -> None:
    debiaser = build(name, positions=4)
    assert debiaser.places(batch([0, 2, 3, 4, 10**12])).tolist() == [0, 2, 3, 3, 3]


@pytest.mark.parametrize("name", NAMES)
def test_tasks_have_their_own_numbers(name: str) -> None:
    debiaser = build(name, tasks=("click", "buy"))
    debiaser.training_logit(torch.zeros(1), batch([2]), "buy").sum().backward()
    gradient = debiaser.free.weight.grad
    assert gradient[:, 0].abs().sum() == 0
    assert debiaser.values(batch([2]), "buy").shape == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip(name: str) -> None:
    trained, restored = build(name), build(name)
    nn.init.normal_(trained.free.weight)
    restored.load_state_dict(trained.state_dict())
    found = []
    for debiaser in (trained, restored):
        torch.manual_seed(0)
        found.append(debiaser.training_logit(torch.zeros(5), batch([0, 1, 2, 3, 4]), "click"))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_a_position_that_belongs_to_the_item_is_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    debiaser = build(name)
    item = torch.randint(1, 40, (2000,))
    with caplog.at_level(logging.WARNING):
        debiaser.fit([batch(item % POSITIONS, item)], "click")
    assert caplog.messages[0].startswith(f"{name}: of the variance of the position only 0.0% is within items")
    assert "randomise some positions" in caplog.messages[0]
    assert debiaser.report()["click"]["within_item_variation"] == 0.0
    caplog.clear()
    debiaser.fit([batch(torch.randint(POSITIONS, (1000,)), item[:1000]), batch([3, 2])], "click")
    assert caplog.messages == []
    assert debiaser.report()["click"]["within_item_variation"] == pytest.approx(1.0, abs=0.1)


def test_variation_is_a_ratio_of_variances() -> None:
    item, place = np.array([1, 1, 2, 2, 5]), np.array([0, 2, 4, 6, 9])
    within = (2 * 1 + 2 * 1) / 2  # squared deviations over degrees of freedom
    parts = [(item[:1], place[:1]), (item[1:], place[1:]), (np.zeros(9, dtype=np.int64), np.arange(9))]
    assert measure(parts) == pytest.approx(within / place.var(ddof=1))
    assert measure([]) == 0.0
    assert measure([(np.arange(1, 6), np.arange(5))]) == 0.0
    assert measure([(np.ones(5, dtype=np.int64), np.ones(5, dtype=np.int64))]) == 0.0


def test_report_says_what_was_learnt() -> None:
    tower, pal = build("position_tower", positions=3), build("pal", positions=3, initial=0.25)
    for debiaser in (tower, pal):
        assert debiaser.report() == {}
        debiaser.fit([batch([0, 1, 2, 0], torch.tensor([1, 1, 2, 2]))], "click")
    assert tower.report()["click"]["bias"] == [0.0, 0.0, 0.0]
    assert pal.report()["click"]["theta"] == pytest.approx([1.0, 0.25, 0.25])


@pytest.mark.parametrize("name", NAMES)
def test_faults_are_named(name: str) -> None:
    debiaser = build(name)
    with pytest.raises(DataError, match="the batch has no positions") as missing:
        debiaser.training_logit(torch.zeros(3), batch(None), "click")
    assert missing.value.where == f"debiaser '{name}'"
    assert missing.value.fix == "import the log with a position column (0 = top)"
    with pytest.raises(DataError, match="position -1 is negative") as negative:
        debiaser.fit([batch([0, -1])], "click")
    assert negative.value.where == f"debiaser '{name}', row 1 of a batch, example 1"
    assert "count positions from 0 at the top" in negative.value.fix
    with pytest.raises(UsageError, match="was not built for task 'buy'"):
        debiaser.fit([], "buy")


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (recdistill_position.PositionTowerConfig, {"positions": 1}, r"positions must lie in \[2, 10000\], got 1"),
        (recdistill_position.PositionTowerConfig, {"drop": 1.0}, r"drop must lie in \[0, 1\), got 1.0"),
        (recdistill_position.PalConfig, {"initial": 1.0}, r"initial must lie in \(0, 1\), got 1.0"),
        (recdistill_position.PalConfig, {"min_variation": 2.0}, r"min_variation must lie in \[0, 1\], got 2.0"),
        (recdistill_position.PalConfig, {"positions": 20_000}, r"positions must lie in \[2, 10000\], got 20000"),
    ],
)
def test_ranges(config: type, values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_initial_theta() -> None:
    assert Pal(("click",), initial=0.9).theta("click")[1:].tolist() == pytest.approx([0.9] * 49)
    assert float(PositionTower(("click",)).free.weight.detach().abs().max()) == 0.0
    assert Pal(("click",)).theta("click")[0] == 1.0


def test_hook_module_imports_no_torch() -> None:
    code = "import sys, recdistill_position as m; m.recdistill_debiasers(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
