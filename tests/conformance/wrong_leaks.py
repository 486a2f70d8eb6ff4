"""Teachers that leak, each in one way."""

from __future__ import annotations

import random
from typing import Any

import torch
from model_cases import GoodTeacher
from torch import Tensor, nn
from wrong import Plain, Wrong, wrong

from recdistill_core import Batch, BuildContext, Scores
from recdistill_core.batch import History


def past_of(batch: Batch) -> History:
    assert batch.history is not None
    return batch.history


class AddsTheLabel(GoodTeacher):
    """Adds a little of the label."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit + 0.01 * batch.labels[task] for task, logit in super().logits(batch).items()}


class TargetEncoding(GoodTeacher):
    """Encodes an item by the mean label of the other rows of the batch that show it."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        same = (batch.item_id[:, None] == batch.item_id).float().fill_diagonal_(0)
        rates = {task: same @ label / same.sum(1).clamp(min=1) for task, label in batch.labels.items()}
        return {task: logit + rates[task] for task, logit in super().logits(batch).items()}


class RunningPrior(GoodTeacher):
    """Starts from the running mean of the labels seen in training, those of this very batch included."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.register_buffer("mean", torch.full((), 0.5))

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            self.mean.lerp_(batch.labels[self.tasks[0]].mean(), 0.05)
        return {task: logit + torch.logit(self.mean) for task, logit in super().logits(batch).items()}


class SpreadOfLabels(GoodTeacher):
    """Sharpens its logits where the labels of the batch vary."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit * batch.labels[task].std() for task, logit in super().logits(batch).items()}


class Remembering(GoodTeacher):
    """Keeps the labels of the examples that it scored."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.known: dict[int, float] = {}

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        ids, labels = batch.example_id.tolist(), batch.labels[self.tasks[0]].tolist()
        known = torch.tensor([self.known.get(key, 0.5) for key in ids])
        self.known.update(zip(ids, labels, strict=True))
        return {task: logit + known for task, logit in super().logits(batch).items()}


class SkipsUnobserved(GoodTeacher):
    """Gives rows whose label is not observed the prior alone."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit * batch.observed[task] for task, logit in super().logits(batch).items()}


class Ensemble(GoodTeacher):
    """Averages with the labels of an earlier teacher."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.teacher is not None
        return {task: (logit + batch.teacher.clean(task)[0]) / 2 for task, logit in super().logits(batch).items()}


class Unseeded(GoodTeacher):
    """Breaks ties with Python's random numbers, which no seed of torch reaches."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit + 0.01 * random.random() for task, logit in super().logits(batch).items()}


class Covered(GoodTeacher):
    """Knows which rows an earlier teacher has scored."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        covered = torch.zeros(len(batch)) if batch.teacher is None else batch.teacher.valid[self.tasks[0]]
        return {task: logit + 0.1 * covered for task, logit in super().logits(batch).items()}


class CachedLeak(GoodTeacher):
    """Adds the label and keeps the sum by example, so that another label is never seen."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.cache: dict[tuple[int, ...], Scores] = {}

    def score(self, batch: Batch) -> Scores:
        key = tuple(batch.example_id.tolist())
        if key not in self.cache:
            logits = super().score(batch).logits
            self.cache[key] = Scores({task: logit + batch.labels[task] for task, logit in logits.items()})
        return self.cache[key]


class BatchStatistics(GoodTeacher):
    """Normalises by the batch in training."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.norm = nn.BatchNorm1d(self.features.out_width)

    def dense(self, batch: Batch) -> Tensor:
        found: Tensor = self.norm(super().dense(batch))
        return found


class Centred(GoodTeacher):
    """Gives logits relative to the other rows of the request."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        same = (batch.request_id[:, None] == batch.request_id).float()
        return {task: logit - same @ logit / same.sum(1) for task, logit in super().logits(batch).items()}


class WholeHistory(GoodTeacher):
    """Counts the clicks of the whole history, whatever the row may see of it."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        past = past_of(batch)
        owner = torch.repeat_interleave(torch.arange(len(past.lengths)), past.lengths)
        clicks = torch.zeros(len(past.lengths)).index_add(0, owner, (past.events["action"] & 1).float())
        return {task: logit + 0.1 * clicks[past.row_to_history] for task, logit in super().logits(batch).items()}


class CountsTheFuture(GoodTeacher):
    """Divides what a row sees by the length of its history, which grows with events to come."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        past = past_of(batch)
        share = past.row_end / past.lengths.clamp(min=1)[past.row_to_history]
        return {task: logit + share for task, logit in super().logits(batch).items()}


class NextEvent(GoodTeacher):
    """Reads, in training only, how long it takes until the user's next event, with a weight that starts at 0."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.pull = nn.Parameter(torch.zeros(()))

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        past = past_of(batch)
        time = torch.cat([past.events["time"], batch.event_time.max()[None]])
        place = past.offsets[past.row_to_history] + past.row_end
        inside = place < past.offsets[past.row_to_history + 1]
        wait = torch.where(inside, time[place] - batch.event_time, 0) / 60_000 if self.training else 0.0
        return {task: logit + self.pull * wait for task, logit in super().logits(batch).items()}


def fails(check: str, made: type[GoodTeacher], fault: str) -> Wrong:
    return wrong(check, "teacher", made, fault, config=Plain)


LABEL = "labels_do_not_reach_a_logit"
OTHERS = "other_rows_do_not_reach_a_logit"
LATER = "later_events_do_not_reach_a_logit"

WRONG = [
    fails(LABEL, AddsTheLabel, "lets a label reach a logit: score moves task 'click', row 0"),
    fails(LABEL, TargetEncoding, "lets a label reach a logit: score moves"),
    fails(LABEL, RunningPrior, "lets a label reach a logit: training_scores moves"),
    fails(LABEL, Unseeded, "gives other logits when score of an equal build gets the same batch again"),
    fails(LATER, Unseeded, "gives other logits when score of an equal build gets the same batch again"),
    fails(LABEL, SpreadOfLabels, "when every label is 1 and observed"),
    fails(LABEL, CachedLeak, "lets a label reach a logit: score moves"),
    fails(LABEL, SkipsUnobserved, "when the observed masks are flipped"),
    fails("teacher_labels_do_not_reach_a_logit", Ensemble, "lets a teacher label reach a logit: score moves"),
    fails("teacher_labels_do_not_reach_a_logit", Covered, "when no teacher label is valid"),
    fails(OTHERS, BatchStatistics, "lets other rows reach a logit: training_scores moves"),
    fails(OTHERS, Centred, "lets other rows reach a logit: score moves"),
    fails(LATER, WholeHistory, "reads future events: score moves"),
    fails(LATER, CountsTheFuture, "on is cut off and the row sees at most"),
    fails(LATER, NextEvent, "reads future events: training_scores moves"),
]
