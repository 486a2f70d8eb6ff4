"""A loss over requests gets whole requests or a refusal; a loss that breaks in training is named at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pipeline_cases import config, data_module, fit
from torch import Tensor

import recdistill_core as rd
from recdistill_core import Batch, BuildContext, Component, DistillationLoss, Objective, make
from recdistill_core.errors import ConfigError, DataError, PluginError
from recdistill_core.registry import PluginRecord, Registered, Registry, installed
from recdistill_lightning import ReadOrder, StudentModule
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.plan import make_plan


@dataclass(frozen=True)
class Config:
    """No settings."""


class Given(DistillationLoss):
    """Returns what it was made with, times the student's logit where that makes sense."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Any:
        return student_logit * self.answer if isinstance(self.answer, float) else self.answer


def registry(**more: Any) -> Registry:
    base = installed()
    component = Component("listwise", Config, lambda config, context: Given(1.0), "A loss", api_version=1, **more)
    record = PluginRecord("listwise", "rd-listwise", "1.0")
    return replace(base, found=(*base.found, Registered("loss", component, record)))


def plain(within: str, hours: float = 24.0) -> dict[str, Any]:
    return config(None, loss={"name": "listwise"}, student_training={"within": within, "window_hours": hours})


def test_a_loss_over_requests_refuses_an_order_that_tears_them() -> None:
    known = registry(needs=frozenset({"request_groups"}))
    with pytest.raises(ConfigError) as error:
        make_plan(plain("shuffle"), known)
    assert str(error.value) == (
        "the configuration has a fault:\n  - student_training.within: 'shuffle' tears requests apart, and loss "
        "'listwise' needs their rows together; set it to request"
    )
    for within in ("request", "user", "time"):
        assert make_plan(plain(within), known).loss.name == "listwise"
    assert make_plan(plain("shuffle", 0.0), known).loss.name == "listwise", "strict time order"
    assert make_plan(plain("shuffle"), registry()).loss.name == "listwise", "it does not look at requests"


@pytest.mark.parametrize("within", ["request", "shuffle"])
def test_request_order_reads_whole_requests(feed: ParquetSource, within: str) -> None:
    sizes = Counter(feed.column("request_id")[:1500].tolist())
    module = StudentModule(
        make(installed(), "student", "mlp", BuildContext(feed.schema, ("click",))), {"click": Objective("click")}
    )
    data = data_module(feed, module, order=ReadOrder(64, 72, within))
    whole = sum(
        count == sizes[request]
        for batch in data.training_batches()
        for request, count in Counter(batch.request_id.tolist()).items()
    )
    if within == "request":
        assert whole >= len(sizes) - 1  # the last one may go on behind the training rows
    else:
        assert whole < len(sizes) / 2


def student(feed: ParquetSource, answer: Any) -> StudentModule:
    context = BuildContext(feed.schema, ("click",))
    objective = Objective("click", make(installed(), "strategy", "rec_distill"), Given(answer))
    return StudentModule(make(installed(), "student", "mlp", context), {"click": objective})


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training_at_once(feed: ParquetSource, answer: float) -> None:
    module = student(feed, answer)
    with pytest.raises(DataError) as error:
        fit(module, data_module(feed, module))
    assert str(error.value) == (
        "the training loss is NaN or infinite at step 0: train/click/auxiliary/soft\n"
        "  where: StudentModule with RecDistill, Given\n"
        "  to do: lower the learning rate or clip gradients; if it is so from the first step, run the loss through "
        "'recdistill plugins check NAME' and look at the features"
    )


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (None, "returned None as loss for 128 rows"),
        ([1.0], "returned [1.0] as loss for 128 rows"),
        (torch.ones(()), "returned a loss of shape [] for 128 rows"),
    ],
)
def test_an_answer_of_a_wrong_type_names_the_component(feed: ParquetSource, answer: Any, got: str) -> None:
    module = student(feed, answer)
    with pytest.raises(PluginError) as error:
        fit(module, data_module(feed, module))
    assert str(error.value) == (
        f"Given {got}\n  where: test_listwise_and_broken_losses\n"
        "  to do: return one value per row, shape [128]; recdistill reduces"
    )


def test_a_strategy_without_terms_is_named(feed: ParquetSource) -> None:
    class Silent(rd.HeadStrategy):
        """Forgets to return."""

        def terms(self, heads: Any, parts: Any) -> Any:
            return None

    objective = Objective("click", Silent(), Given(1.0))
    with pytest.raises(PluginError, match="Silent returned None as terms"):
        objective.terms({"main": torch.zeros(3)}, feed.batch(torch.arange(3).numpy()))
