"""Lightning modules for teachers and students. They own the loss; the Trainer, loggers and callbacks are the user's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from recdistill_core.batch import Batch, Scores
from recdistill_core.errors import DataError, PluginError, UsageError
from recdistill_core.interfaces import HeadStrategy, HistoryWindow, ServingModule, Student, TrainableTeacher
from recdistill_core.objective import Objective
from recdistill_core.ranks import sum_over_ranks
from recdistill_core.strategy import Paced
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.embeddings import EmbeddingDistillation
from recdistill_lightning.hidden import hidden_of
from recdistill_lightning.shares import loss_weight
from recdistill_lightning.trained import TrainedExamples

TRAINED_ON = "recdistill_trained_on"
#: Steps between two looks at whether the loss is finite, on a device where looking makes the program wait.
LOOK_EVERY = 50


@dataclass(frozen=True)
class Optimisation:
    """Adam with linear warm-up and optional linear decay over the run.

    Attributes:
        lr: learning rate > 0. weight_decay: decoupled (AdamW), >= 0. warmup_steps: steps from 0 to ``lr``.
        decay: True lets the rate fall linearly to 0 at the last step.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"weight_decay and warmup_steps must be >= 0, got {self.weight_decay} and {self.warmup_steps}"
            )

    def configure(self, module: nn.Module, total_steps: int, kept: Collection[str] = ()) -> Any:
        """What ``configure_optimizers`` returns; parameters without gradient take no part.

        Args:
            module: whose parameters are trained. total_steps: of the run.
            kept: names of parameters of which some rows must stay as they are; they do not decay.

        Parameters of a head strategy that has a learning rate of its own are trained at that one, warmed up and decayed
        alike, without weight decay; Adam keeps its moments by parameter, so this is the step of two optimisers.
        """
        own = {
            id(part): strategy.learning_rate
            for strategy in module.modules()
            if isinstance(strategy, HeadStrategy) and strategy.learning_rate is not None
            for part in strategy.parameters()
        }
        groups: dict[Any, dict[str, Any]] = {(): {"params": []}}
        for name, part in module.named_parameters():
            if part.requires_grad:
                settings: dict[str, Any] = {"lr": own[id(part)], "weight_decay": 0.0} if id(part) in own else {}
                if name in kept:
                    settings["weight_decay"] = 0.0
                groups.setdefault(tuple(settings.items()), {"params": [], **settings})["params"].append(part)
        optimizer = torch.optim.AdamW(groups.values(), lr=self.lr, weight_decay=self.weight_decay, fused=True)

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            return rise * max(0.0, 1.0 - step / total_steps) if self.decay else rise

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Module(L.LightningModule):
    """What teacher and student modules share: one objective per task, validation metrics, the optimiser."""

    def __init__(
        self, objectives: Mapping[str, Objective], optimisation: Optimisation | None, metrics: Mapping[str, Metric]
    ) -> None:
        super().__init__()
        if not objectives:
            raise UsageError("the module has no task", fix="give objectives={task: Objective(task)}, or tasks")
        self.objectives = nn.ModuleDict(objectives)
        self.optimisation = optimisation or Optimisation()
        self.task = next(iter(objectives))
        self.measures = nn.ModuleDict(metrics)
        self.kept: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Served logits ``{task: [N]}``."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Cut the model over the processes where the strategy does that; see :mod:`recdistill_lightning.sharding`."""
        if self.device_mesh is not None:
            from recdistill_lightning.sharding import hold_rows, shard_for  # torch takes seconds to import FSDP

            if shard_for(self, self.device_mesh):
                for name, free in self.kept.items():
                    hold_rows(self.get_parameter(name), free)

    def objective(self, task: str) -> Objective:
        """The objective of one task."""
        found = self.objectives[task]
        if not isinstance(found, Objective):
            raise TypeError(f"objective of task {task!r} is a {type(found).__name__}")
        return found

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Served logits ``{task: [N]}``."""
        return self(batch)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics of the first task on rows whose label is observed.

        Metrics gather what all processes have seen when they are computed.
        """
        seen = batch.observed[self.task]
        if batch.share is not None and batch.share.idle:
            seen = torch.zeros_like(seen)
        logit = self(batch)[self.task][seen]
        for name, metric in self.measures.items():
            metric.update(logit, batch.labels[self.task][seen], batch.user_id[seen])  # type: ignore[operator]  # a torchmetrics.Metric kept in a ModuleDict
            self.log(f"val/{name}", metric, batch_size=len(batch), on_step=False, on_epoch=True)  # type: ignore[arg-type]  # a torchmetrics.Metric kept in a ModuleDict

    def configure_optimizers(self) -> Any:
        """Adam as :class:`Optimisation` says; override it for anything else."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DistillationDataModule):
            return self.optimisation.configure(self, data.updates(self.trainer.accumulate_grad_batches), self.kept)
        steps = self.trainer.estimated_stepping_batches if self.optimisation.decay else 1
        return self.optimisation.configure(self, max(1, int(steps)), self.kept)

    def hold(self, name: str, rows: Tensor | None = None) -> None:
        """Leave a parameter as it is in training, wholly or in some rows; call it before the fit.

        Args:
            name: as in ``named_parameters``. rows: ``[R]`` bool of a parameter ``[R, ...]``; None: all of it.
        """
        parameter = self.get_parameter(name)
        if rows is None or bool(rows.all()):
            parameter.requires_grad_(False)
            return
        free = (~rows).view(-1, *[1] * (parameter.dim() - 1)).to(parameter.dtype)
        # without a gradient AdamW's moments stay 0, and with them the step
        parameter.register_hook(lambda gradient: gradient * free.to(gradient.device))  # type: ignore[no-untyped-call]  # torch ships it without types
        self.kept[name] = free

    def _reduced(self, batch: Batch, terms: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """The loss of this process, of ``{task: {term: [N]}}``; logs the terms' means over the whole batch.

        The mean over processes of its gradient is the gradient of the mean over all rows of the whole batch.
        """
        weight = loss_weight(batch)
        for task, found in terms.items():
            self._log_terms(task, found, batch)
        loss = torch.stack([self.objective(task).reduce(found) for task, found in terms.items()]).sum()
        return loss if weight is None else loss * weight

    def _log_terms(self, task: str, terms: Mapping[str, Tensor], batch: Batch) -> None:
        names = [f"train/{task}/{name}" for name in terms]
        means = [value.detach().mean() for value in terms.values()]
        if batch.share is not None and means:
            weight = batch.share.weight(len(batch)) / batch.share.processes
            means = list(sum_over_ranks(torch.stack(means) * weight).unbind())
        values = dict(zip(names, means, strict=True))
        self.log_dict(values, batch_size=len(batch))
        if values and (means[0].device.type == "cpu" or self.global_step % LOOK_EVERY == 0):
            self._require_finite(values)

    def _require_finite(self, values: Mapping[str, Tensor]) -> None:
        """Raise DataError for a term that is NaN or infinite: what is trained on it is lost."""
        wrong = [name for name, value in values.items() if not bool(torch.isfinite(value))]
        if wrong:
            task = wrong[0].split("/")[1]
            parts = [part for part in (self.objective(task).strategy, self.objective(task).loss) if part is not None]
            names = ", ".join(type(part).__name__ for part in parts)
            raise DataError(
                f"the training loss is NaN or infinite at step {self.global_step}: {', '.join(wrong)}",
                where=f"{type(self).__name__}{f' with {names}' if names else ''}",
                fix="lower the learning rate or clip gradients; if it is so from the first step, run the loss through "
                "'recdistill plugins check NAME' and look at the features",
            )


def _require_logits(made_by: nn.Module, logits: Any, tasks: Iterable[str], count: int) -> None:
    """Raise PluginError unless ``logits`` are ``{task: [N]}`` of every task."""
    for task in tasks:
        logit = logits.get(task) if isinstance(logits, Mapping) else None
        if not isinstance(logit, Tensor) or logit.shape != (count,):
            got = f"shape {list(logit.shape)}" if isinstance(logit, Tensor) else f"{type(logit).__name__}"
            raise PluginError(
                f"{type(made_by).__name__} gave logits of {got} for task {task!r} of {count} rows",
                where=type(made_by).__module__,
                fix=f"return {{task: [{count}]}} with every task",
            )


class TeacherModule(_Module):
    """Trains a teacher on hard labels.

    Args:
        teacher: the model.
        objectives: ``{task: Objective(task)}``, with the teacher's debiasers; default: one plain objective per task.
        optimisation: optimiser settings.
        tasks: used where ``objectives`` is None.
        metrics: ``{name: torchmetrics.Metric}`` for validation, fed ``(logit, label, user_id)``.

    Attributes:
        trained: the examples this teacher has been trained on, in every fit; part of Lightning's checkpoints.
        forwards: training forward passes so far.
        hands_out: name of the hidden activation that a training step hands out beside the logits; empty: none.
    """

    def __init__(
        self,
        teacher: TrainableTeacher,
        objectives: Mapping[str, Objective] | None = None,
        optimisation: Optimisation | None = None,
        *,
        tasks: Sequence[str] = (),
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__(objectives or {task: Objective(task) for task in tasks}, optimisation, metrics or {})
        self.teacher = teacher
        self.trained = TrainedExamples()
        self.forwards = 0
        self.hands_out = ""

    @property
    def history(self) -> HistoryWindow | None:
        """History that the data module must give."""
        return self.teacher.history

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits ``{task: [N]}``."""
        return dict(self.teacher.training_scores(batch.without_outcomes()).logits)

    def scores(self, batch: Batch) -> Scores:
        """What ``teacher.score`` gives; also of a teacher that is cut over processes, all of which must call it."""
        return self.teacher.score(batch.without_outcomes())

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss, and under ``logits`` the raw logits of this very forward pass, which precede the update.

        Under ``hidden``, where somebody wants it (:attr:`hands_out`), its hidden activation ``[N, *]``, detached.
        """
        self.forwards += 1
        self.trained.add((batch.example_id if batch.share is None else batch.share.ids).cpu().numpy())
        scores: Scores = self.teacher.training_scores(batch.without_outcomes())
        _require_logits(self.teacher, scores.logits, self.objectives, len(batch))
        terms = {task: self.objective(task).terms({"main": scores.logits[task]}, batch) for task in self.objectives}
        logits = {task: scores.logits[task].detach() for task in self.objectives}
        hidden = {"hidden": hidden_of(self.teacher, scores, self.hands_out, len(batch))} if self.hands_out else {}
        return {"loss": self._reduced(batch, terms), "logits": logits, **hidden}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained on beside the weights."""
        checkpoint[TRAINED_ON] = torch.from_numpy(self.trained.ids())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Learn what the restored weights were trained on."""
        if TRAINED_ON in checkpoint:
            self.trained.add(checkpoint[TRAINED_ON].numpy())


class StudentModule(_Module):
    """Trains a student: shared backbone, main tower on hard labels, auxiliary towers as the strategy asks.

    The main tower is made before any auxiliary one, so a raw and a distilled student of one seed start equal.

    Args:
        student: the model.
        objectives: ``{task: Objective(task, strategy, loss, debiasers)}``; without a strategy the student is raw.
        optimisation: optimiser settings.
        candidate_weight: how much a candidate's soft loss counts beside a row's, >= 0, where the batches have some.
        embeddings: a further term, what the student's embeddings learn of the teacher's; None: none.
        metrics: ``{name: torchmetrics.Metric}`` for validation, fed ``(logit, label, user_id)``.
    """

    def __init__(
        self,
        student: Student,
        objectives: Mapping[str, Objective],
        optimisation: Optimisation | None = None,
        *,
        candidate_weight: float = 1.0,
        embeddings: EmbeddingDistillation | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__(objectives, optimisation, metrics or {})
        if not 0 <= candidate_weight < math.inf:
            raise UsageError(f"candidate_weight must be finite and >= 0, got {candidate_weight}")
        self.student, self.candidate_weight = student, candidate_weight
        self.main = student.tower()
        names = {name: None for task in objectives for name in objectives[task].auxiliary}
        self.auxiliary = nn.ModuleDict({name: student.tower() for name in names})
        self.embeddings = embeddings

    @property
    def history(self) -> HistoryWindow | None:
        """History that the data module must give."""
        return self.student.history

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits ``{task: [N]}`` of the main tower."""
        logits: dict[str, Tensor] = self.main(self._features(batch))
        return logits

    def _features(self, batch: Batch) -> Tensor:
        """``[N, D]`` of the backbone, or a PluginError that names the student."""
        features = self.student.backbone(batch.without_outcomes())
        if not isinstance(features, Tensor) or features.shape != (len(batch), self.student.width):
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise PluginError(
                f"{type(self.student).__name__} encodes {len(batch)} rows as {got}, its width is {self.student.width}",
                where=type(self.student).__module__,
                fix=f"return [{len(batch)}, width] from encode, and set width to what encode returns",
            )
        return features

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Scalar loss of all tasks and heads; a candidate's soft loss counts ``candidate_weight`` times a row's."""
        terms = self._terms(batch)
        if self.embeddings is not None:
            terms[self.task].update(self.embeddings.terms(self.student, batch))
        loss = self._reduced(batch, terms)
        if batch.candidates is not None:
            loss = loss + self._of_candidates(batch, batch.candidates)
        paced = [*self.objectives.modules(), *([] if self.embeddings is None else [self.embeddings])]
        for part in paced:  # here, for a checkpoint of this step is written before later hooks
            if isinstance(part, Paced):
                part.advance(batch)
        return loss

    def _of_candidates(self, batch: Batch, candidates: Batch) -> Tensor:
        """Their part of the loss. Raises DataError where they have no labels."""
        if candidates.teacher is None:
            raise DataError(
                "the candidates beside the rows have no teacher labels",
                where="DistillationDataModule(candidates=...)",
                fix="give a student CandidateLabels(candidates, store, version, rows); bare ones are for a teacher",
            )
        found = self._terms(candidates)
        # hard terms are 0 without an observed label
        named = {task: {f"candidates/{name}": term for name, term in terms.items()} for task, terms in found.items()}
        return self.candidate_weight * len(candidates) / len(batch) * self._reduced(candidates, named)

    def _terms(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """``{task: {term: [N]}}`` of a batch."""
        features = self._features(batch)
        heads = {"main": self.main, **self.auxiliary}
        # tasks share the answer of a tower, unless their strategies feed it otherwise
        answers: dict[tuple[str, int], tuple[Tensor, dict[str, Tensor]]] = {}
        terms = {}
        for task in self.objectives:
            objective, logits = self.objective(task), {}
            for name in ("main", *objective.auxiliary):
                fed = objective.features(name, features)
                if (name, id(fed)) not in answers:
                    answer = heads[name](fed)
                    _require_logits(self.student, answer, self.objectives, len(batch))
                    answers[name, id(fed)] = fed, answer  # kept together: no other tensor takes this id meanwhile
                logits[name] = answers[name, id(fed)][1][task]
            terms[task] = objective.terms(logits, batch)
        return terms

    def serving_module(self) -> ServingModule:
        """Backbone and main tower alone."""
        return self.student.serving_module(self.main)
