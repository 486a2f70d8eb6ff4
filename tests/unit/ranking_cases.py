"""The ranking losses once more: numpy, float64, a loop over requests and rows, straight from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import recdistill_ranking
from recdistill_core import Batch, BuildContext
from recdistill_core.interfaces import DistillationLoss
from recdistill_core.schema import Categorical, Schema

ITEMS = 9
SCHEMA = Schema(
    tasks=("click",), categorical=(Categorical("item_id", "item_id", "item"),), vocabularies={"item_id": ITEMS}
)
#: A configuration of each loss under which small requests exercise all of it; some losses stand in it twice.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "listnet": ("listnet", {"temperature": 2.0}),
    "clid": ("clid", {}),
    "clid-mass": ("clid", {"mass": True}),
    "rd": ("ranking_distillation", {"k": 3, "decay": 2.0}),
    "rd-dynamic": ("ranking_distillation", {"k": 9, "decay": 2.0, "mu": 0.5}),
    "rrd": ("rrd", {"interesting": 2, "uninteresting": 2}),
    "rrd-all": ("rrd", {"interesting": 9, "uninteresting": 0}),
    "rce_kd": ("rce_kd", {"k": 2, "beta": 0.7, "temperature": 1.5}),
    "rce_kd-all": ("rce_kd", {"k": 9}),
    "unkd": ("unkd", {"groups": 2, "decay": 1.5}),
}


@dataclass(frozen=True)
class Rows:
    """``student``, ``teacher``, ``weight`` [N] float64 and ``request``, ``item`` [N] int64."""

    student: Tensor
    teacher: Tensor
    weight: Tensor
    request: Tensor
    item: Tensor

    def at(self, index: Tensor) -> Rows:
        return Rows(*(column[index] for column in vars(self).values()))

    def batch(self) -> Batch:
        ids = torch.arange(len(self.request))
        return Batch(ids, self.request, ids, self.item, ids, self.item[:, None], torch.zeros(len(ids), 0))

    def to(self, dtype: torch.dtype) -> Rows:
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))


def build(case: str, **changes: Any) -> DistillationLoss:
    name, values = CONFIGS[case]
    component = {entry.name: entry for entry in recdistill_ranking.recdistill_losses()}[name]
    return component.build(component.config(**{**values, **changes}), BuildContext(SCHEMA, ("click",)))


def call(loss: DistillationLoss, rows: Rows) -> Tensor:
    return loss(rows.student, rows.teacher, rows.batch(), rows.weight)


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Requests of 1 to 6 rows, shuffled, with ties between teacher logits and weights of 0."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    count = sum(sizes)
    logits = st.floats(-8, 8, allow_nan=False, width=32)
    ties = st.integers(-2, 2).map(float)
    student = draw(st.lists(logits, min_size=count, max_size=count))
    teacher = draw(st.lists(st.one_of(logits, ties), min_size=count, max_size=count))
    weight = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=count, max_size=count))
    item = draw(st.lists(st.integers(0, ITEMS - 1), min_size=count, max_size=count))
    request = np.repeat(np.array([7, 3, 900, 11])[: len(sizes)], sizes)
    order = torch.tensor(draw(st.permutations(range(count))))
    columns = [torch.tensor(column, dtype=torch.float64) for column in (student, teacher, weight)]
    return Rows(*columns, torch.tensor(request), torch.tensor(item)).at(order)


def fixed_rows(seed: int = 0, requests: int = 6) -> Rows:
    """Requests of 1 to 6 rows without ties, positive weights, neighbours torn apart."""
    draw = torch.Generator().manual_seed(seed)
    request = torch.repeat_interleave(torch.arange(requests), torch.arange(requests) % 6 + 1)
    count = len(request)
    columns = [2 * torch.randn(count, generator=draw, dtype=torch.float64) for _ in range(2)]
    weight = 0.5 + torch.rand(count, generator=draw, dtype=torch.float64)
    item = torch.randint(ITEMS, (count,), generator=draw)
    return Rows(*columns, weight, request, item).at(torch.randperm(count, generator=draw))


def order_of(logit: Sequence[float]) -> list[int]:
    """Places of the rows, best first; of equal ones the first row is first."""
    return sorted(range(len(logit)), key=lambda place: (-logit[place], place))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def listed(shares_t: Sequence[float], shares_s: Sequence[float]) -> list[float]:
    """Terms of the KL divergence, made non-negative one by one; shares need not be normalised."""
    t, s = (np.array(side) / np.sum(side) for side in (shares_t, shares_s))
    return list(t * np.log(t / s) - t + s)


def listnet(s: Sequence[float], t: Sequence[float], temperature: float = 1.0) -> list[float]:
    sides = ([math.exp(z / temperature) for z in side] for side in (t, s))
    return [temperature**2 * term for term in listed(*sides)]


def clid(s: Sequence[float], t: Sequence[float], mass: bool = False) -> list[float]:
    teacher = [sigmoid(z) for z in t]
    factor = sum(teacher) if mass else 1.0
    return [factor * term for term in listed(teacher, [sigmoid(z) for z in s])]


def ranking_distillation(s: Sequence[float], t: Sequence[float], k: int, decay: float, mu: float = 0.0) -> list[float]:
    value = [0.0] * len(s)
    for place, row in enumerate(order_of(t)[:k], start=1):
        value[row] = math.exp(-place / decay)
        if mu:
            value[row] *= math.tanh(max(mu * (order_of(s).index(row) + 1 - place), 0.0))
    total = sum(value)
    return [v / total * math.log1p(math.exp(-z)) if total else 0.0 for v, z in zip(value, s, strict=True)]


def rrd(s: Sequence[float], t: Sequence[float], interesting: int, uninteresting: int) -> list[float]:
    order = order_of(t)
    top, others = order[:interesting], order[interesting:]
    low = others[max(len(others) - uninteresting, 0) :]
    found = [0.0] * len(s)
    for place, row in enumerate(top):
        found[row] = math.log(sum(math.exp(s[j]) for j in [*top[place:], *low])) - s[row]
    return found


def rce_kd(s: Sequence[float], t: Sequence[float], k: int, beta: float = 1.0, temperature: float = 1.0) -> list[float]:
    theirs, mine = order_of(t)[:k], order_of(s)[:k]
    both = [row for row in theirs if row in mine]
    missed = [row for row in theirs if row not in mine]
    closed: list[int] = []
    for row in order_of(s):  # down to the last one that is missed
        if any(order_of(s).index(other) >= order_of(s).index(row) for other in missed):
            closed.append(row)
    gamma = math.exp(-beta * len(both) / len(theirs))
    found = [0.0] * len(s)
    for factor, rows in ((1 - gamma, mine), (gamma, closed)):
        if rows:
            for row, term in zip(rows, listnet([s[j] for j in rows], [t[j] for j in rows], temperature), strict=True):
                found[row] += factor * term
    return found


def unkd(s: Sequence[float], t: Sequence[float], groups: int, decay: float) -> list[float]:
    """One group, as before the first batch."""
    order = order_of(t)
    pairs = [(i, j) for place, i in enumerate(order) for j in order[place + 1 :] if t[i] > t[j]]
    chance = {(i, j): math.exp(-(order.index(i) + order.index(j)) / decay) for i, j in pairs}
    found = [0.0] * len(s)
    for (i, j), one in chance.items():
        for row in (i, j):
            found[row] += 0.5 * one / sum(chance.values()) * math.log1p(math.exp(s[j] - s[i]))
    return found


REFERENCES: dict[str, Callable[..., list[float]]] = {
    "listnet": listnet,
    "clid": clid,
    "ranking_distillation": ranking_distillation,
    "rrd": rrd,
    "rce_kd": rce_kd,
    "unkd": unkd,
}


def expected(case: str, rows: Rows) -> np.ndarray:
    """``[N]`` losses by the reference."""
    name, values = CONFIGS[case]
    found = np.zeros(len(rows.request))
    for request in set(rows.request.tolist()):
        inside = [i for i, owner in enumerate(rows.request.tolist()) if owner == request and rows.weight[i] > 0]
        if len(inside) > 1:
            sides = ([float(side[i]) for i in inside] for side in (rows.student, rows.teacher))
            found[inside] = REFERENCES[name](*sides, **values)
    return rows.weight.numpy() * found
