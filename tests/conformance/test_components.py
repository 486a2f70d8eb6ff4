"""Every installed component: builds from its example, repeats under a seed, leaves the batch as it was.

Small on purpose; plugin authors get a fuller kit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recdistill_core import Batch, BuildContext, History, Schema, TeacherSignal
from recdistill_core.config import Resolved, fill_or_raise
from recdistill_core.interfaces import INTERFACES
from recdistill_core.objective import Objective
from recdistill_core.registry import Registered, installed
from recdistill_core.schema import Categorical, EventField, KeepRates

KINDS = ("student", "loss", "debiaser", "strategy", "metric")
ROWS = 12
TASK = "click"
SCHEMA = Schema(
    tasks=(TASK,),
    categorical=(Categorical("item_id", "item_id", "item"), Categorical("tab", "tab")),
    numeric=("age",),
    events=(EventField("item", "item_id"),),
    actions=("click",),
    vocabularies={"item_id": 9, "tab": 3},
    keep_rates={TASK: KeepRates(0.9, 0.3)},
    gives=("position", "propensity", "request_groups"),
)
ENTRIES = [entry for entry in installed().found if entry.kind in KINDS]


def make_batch() -> Batch:
    row = torch.arange(ROWS)
    return Batch(
        example_id=row,
        request_id=row // 3,
        user_id=row // 6,
        item_id=row % 9,
        event_time=row + 10**12,
        categorical=torch.stack([row % 9, row % 3], 1),
        numeric=torch.linspace(-1, 1, ROWS)[:, None],
        labels={TASK: (row % 2).float()},
        observed={TASK: row != 5},
        history=History(
            events={"item": torch.arange(8), "action": torch.arange(8) % 2, "time": torch.arange(8) + 10**11},
            offsets=torch.tensor([0, 5, 8]),
            row_to_history=row // 6,
            row_end=row % 4,
        ),
        position=row % 3,
        propensity=torch.linspace(0.1, 1.0, ROWS),
        keep_rates={TASK: (0.9, 0.3)},
        teacher=TeacherSignal({TASK: torch.linspace(-2, 1, ROWS)}, {TASK: row != 2}, "v1", row + 10**12),
    ).validate()


def run_student(made: Any, batch: Batch) -> Any:
    return made.tower()(made.backbone(batch))[TASK]


def run_loss(made: Any, batch: Batch) -> Any:
    assert batch.teacher is not None
    return made(torch.linspace(2, -2, ROWS), batch.teacher.clean(TASK)[0], batch, torch.ones(ROWS))


def run_debiaser(made: Any, batch: Batch) -> Any:
    made.fit([batch], TASK)
    logit = torch.linspace(-2, 0.5, ROWS)
    return torch.stack(
        [made.weight(batch, TASK), made.correct(logit, batch, TASK), made.training_logit(logit, batch, TASK)]
    )


def run_strategy(made: Any, batch: Batch) -> Any:
    from recdistill_soft.loss import SoftCrossEntropy

    heads = {name: torch.linspace(-1, 1, ROWS) for name in ("main", *made.auxiliary)}
    return torch.stack(list(Objective(TASK, made, SoftCrossEntropy()).terms(heads, batch).values()))


def run_metric(made: Any, batch: Batch) -> Any:
    assert batch.teacher is not None
    arrays = (batch.teacher.logits[TASK].double(), batch.labels[TASK].double(), batch.user_id)
    evaluate = made.prepare(*(tensor.numpy() for tensor in arrays))
    return torch.tensor([evaluate(np.ones(2)), evaluate(np.array([2.0, 1.0]))])


RUN: dict[str, Callable[[Any, Batch], Any]] = {
    "student": run_student,
    "loss": run_loss,
    "debiaser": run_debiaser,
    "strategy": run_strategy,
    "metric": run_metric,
}


def build(entry: Registered) -> Any:
    """The component from its example, under one seed."""
    torch.manual_seed(3)
    config = fill_or_raise(entry.component.config, entry.component.example)
    return Resolved(entry, config).build(BuildContext(SCHEMA, SCHEMA.tasks))


def tensors(value: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(value, Batch | History | TeacherSignal):
        value = vars(value)
    if isinstance(value, dict):
        return {name: leaf for key, entry in value.items() for name, leaf in tensors(entry, f"{path}/{key}").items()}
    return {path: value} if isinstance(value, Tensor) else {}


@pytest.fixture(params=ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.component.name}")
def entry(request: pytest.FixtureRequest) -> Registered:
    found: Registered = request.param
    return found


def test_every_kind_is_there() -> None:
    assert {entry.kind for entry in ENTRIES} == set(KINDS)


def test_it_builds_from_its_example(entry: Registered) -> None:
    made = build(entry)
    interface = INTERFACES[entry.kind]
    if not getattr(interface, "_is_protocol", False):
        assert isinstance(made, interface)
    assert entry.component.summary


def test_two_builds_under_one_seed_are_equal(entry: Registered) -> None:
    first, second = build(entry), build(entry)
    assert first is not second
    if isinstance(first, nn.Module):
        assert first.state_dict().keys() == second.state_dict().keys()
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name
    answers = []
    for made in (first, second):
        torch.manual_seed(4)
        answers.append(RUN[entry.kind](made, make_batch()))
    assert torch.equal(*answers)
    assert torch.isfinite(answers[0]).all()


def test_it_leaves_the_batch_as_it_was(entry: Registered) -> None:
    batch = make_batch()
    before = copy.deepcopy(tensors(batch))
    RUN[entry.kind](build(entry), batch)
    after = tensors(batch)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert torch.equal(value, after[path]), path


def test_its_answer_has_one_entry_per_row(entry: Registered) -> None:
    if entry.kind != "metric":
        assert RUN[entry.kind](build(entry), make_batch()).shape[-1] == ROWS
