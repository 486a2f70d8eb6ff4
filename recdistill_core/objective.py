"""The loss of one task: strategy, distillation loss and debiasers put together; the only place that reduces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.batch import Batch, TeacherSignal
from recdistill_core.errors import DataError, PluginError
from recdistill_core.interfaces import Debiaser, DistillationLoss, HeadStrategy


class Objective(nn.Module):
    """``L = sum over terms of (sum of the term's [N] losses) / N`` (Rec-Distill, arXiv 2605.29755).

    Dividing by all ``N`` rows, not by the labelled ones, makes the loss linear in the batch: two half batches equal
    one full batch, so gradient accumulation and data-parallel ranks agree.

    Args:
        task: the task whose labels are learnt.
        strategy: how teacher labels reach the student; None trains the main tower alone (the raw student).
        loss: distance to the teacher; required with a strategy.
        debiasers: applied in order.
    """

    def __init__(
        self,
        task: str,
        strategy: HeadStrategy | None = None,
        loss: DistillationLoss | None = None,
        debiasers: Sequence[Debiaser] = (),
    ) -> None:
        super().__init__()
        if (strategy is None) != (loss is None):
            raise ValueError("a strategy and a distillation loss go together: give both or neither")
        self.task = task
        self.strategy = strategy
        self.loss = loss
        self.debiasers = nn.ModuleList(debiasers)

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Names of the auxiliary towers that the strategy asks for."""
        return self.strategy.auxiliary if self.strategy is not None else ()

    def features(self, head: str, features: Tensor) -> Tensor:
        """``[N, D]`` that the tower ``head`` is fed, of the backbone's ``features [N, D]``."""
        if self.strategy is None:
            return features
        fed = self.strategy.features(head, features)
        if not isinstance(fed, Tensor) or fed.shape != features.shape:
            got = f"shape {list(fed.shape)}" if isinstance(fed, Tensor) else f"type {type(fed).__name__}"
            raise PluginError(
                f"{type(self.strategy).__name__} feeds tower {head!r} features of {got}, not {list(features.shape)}",
                where=type(self.strategy).__module__,
                fix="return the features as they are, or others of the same shape",
            )
        return fed

    def terms(self, heads: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``{term: [N]}`` from ``{head: [N]}`` served logits; ``main`` is the served head."""
        parts = _Parts(self, batch)
        if self.strategy is None:
            return {"main/hard": parts.hard(heads["main"])}
        found = self.strategy.terms(heads, parts)
        if not isinstance(found, Mapping):
            raise PluginError(
                f"{type(self.strategy).__name__} returned {found!r:.60} as terms",
                where=type(self.strategy).__module__,
                fix="return {name of the term: [N]}",
            )
        return {name: _per_row(values, batch, self.strategy, f"term {name!r}") for name, values in found.items()}

    def reduce(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Scalar: the sum of the terms' means over rows."""
        return torch.stack([values.mean() for values in terms.values()]).sum()

    def correct(self, logit: Tensor, batch: Batch) -> Tensor:
        """``[N]`` logit of the probability after every debiaser's correction."""
        for debiaser in self.all_debiasers():
            logit = debiaser.correct(logit, batch, self.task)
        return logit

    def all_debiasers(self) -> list[Debiaser]:
        """The debiasers, in order."""
        return [module for module in self.debiasers if isinstance(module, Debiaser)]


class _Parts:
    """Hard and soft loss of one head, with debiasing, masks and weights inside."""

    def __init__(self, objective: Objective, batch: Batch) -> None:
        self.objective, self.batch, self.task = objective, batch, objective.task
        device = batch.event_time.device
        self.weight = torch.ones(len(batch), device=device)
        for debiaser in objective.all_debiasers():
            self.weight = self.weight * _per_row(debiaser.weight(batch, self.task), batch, debiaser, "weight")

    def hard(self, logit: Tensor) -> Tensor:
        for debiaser in self.objective.all_debiasers():
            logit = debiaser.training_logit(logit, self.batch, self.task)
        label, observed = self.label()
        loss = functional.binary_cross_entropy_with_logits(logit, label.to(logit.dtype), reduction="none")
        return torch.where(observed, loss, 0.0) * self.weight

    def soft(self, logit: Tensor, *, target: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        loss, strategy = self.objective.loss, self.objective.strategy
        if loss is None or strategy is None:
            raise ValueError("this objective was built without a distillation loss")
        teacher, valid = self.teacher()
        if target is not None:
            teacher = torch.where(valid, _per_row(target.detach(), self.batch, strategy, "target"), teacher)
        scale = self.weight * valid
        if weight is not None:
            scale = scale * _per_row(weight.detach(), self.batch, strategy, "weight")
        teacher = self.objective.correct(teacher.to(logit.dtype), self.batch).detach()
        student = self.objective.correct(logit, self.batch)
        values: Tensor = loss(student, teacher, self.batch, scale)
        return _per_row(values, self.batch, loss, "loss")

    def teacher(self) -> tuple[Tensor, Tensor]:
        return self._of(self.batch.teacher)

    def teachers(self) -> list[tuple[Tensor, Tensor]]:
        signal = self.batch.teacher
        members = signal.members if signal is not None else ()
        return [self._of(member) for member in members] or [self._of(signal)]

    def _of(self, signal: TeacherSignal | None) -> tuple[Tensor, Tensor]:
        if signal is None:
            nothing = torch.zeros_like(self.weight)
            return nothing, nothing.bool()
        if self.task not in signal.logits:
            raise DataError(
                f"the teacher's labels lack task {self.task!r}",
                where=f"teacher version {signal.version}, tasks {', '.join(signal.logits)}",
                fix="train the teacher on that task too, or leave the task out of the student's",
            )
        return signal.clean(self.task)

    def label(self) -> tuple[Tensor, Tensor]:
        observed = self.batch.observed[self.task]
        if self.batch.share is not None and self.batch.share.idle:  # its rows are another process's
            observed = torch.zeros_like(observed)
        return torch.where(observed, self.batch.labels[self.task], 0.0), observed


def _per_row(values: Any, batch: Batch, made_by: nn.Module, what: str) -> Tensor:
    """``values``, or a PluginError where they are not ``[N]``: a component that reduces by itself would train on."""
    if not isinstance(values, Tensor) or values.shape != (len(batch),):
        got = f"a {what} of shape {list(values.shape)}" if isinstance(values, Tensor) else f"{values!r:.60} as {what}"
        raise PluginError(
            f"{type(made_by).__name__} returned {got} for {len(batch)} rows",
            where=f"{type(made_by).__module__}",
            fix=f"return one value per row, shape [{len(batch)}]; recdistill reduces",
        )
    return values
