"""Teachers that score badly or train badly, each in one way."""

from __future__ import annotations

from typing import Any

import torch
from model_cases import GoodTeacher
from torch import Tensor, nn
from wrong import Plain, Wrong, wrong
from wrong_leaks import Remembering, past_of

from recdistill_core import Batch, BuildContext, Scores


class InOrderOfTime(GoodTeacher):
    """Sorts the rows by time and forgets to put them back."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return super().logits(batch.rows(batch.event_time.argsort()))


class Squeezed(GoodTeacher):
    """Squeezes every axis of length 1."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit[:, None].squeeze() for task, logit in super().logits(batch).items()}


class PaddedMean(GoodTeacher):
    """Divides by the length to which the batch is padded."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        past = past_of(batch)
        share = past.row_end / past.row_end.max().clamp(min=1)
        return {task: logit + share for task, logit in super().logits(batch).items()}


class NoHistoryIsNaN(GoodTeacher):
    """Divides by the number of events that a row sees."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        count = past_of(batch).row_end
        return {task: logit * count / count for task, logit in super().logits(batch).items()}


class NeedsAnEvent(GoodTeacher):
    """Counts time from the newest event of the batch."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        ago = past_of(batch).events["time"].max() - batch.event_time
        return {task: logit + 0 * ago for task, logit in super().logits(batch).items()}


class LogPopularity(GoodTeacher):
    """Adds the log of an item's popularity, which is 0 for the items that the vocabulary does not hold."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        count = torch.arange(self.features.categorical.size.max() + 1).float()
        return {task: logit + count[batch.item_id].log() for task, logit in super().logits(batch).items()}


class Unused(GoodTeacher):
    """Has a layer that it does not use."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.spare = nn.Linear(2, 2)


class Rounded(GoodTeacher):
    """Rounds its inputs after the embedding."""

    def dense(self, batch: Batch) -> Tensor:
        return super().dense(batch).round()


class NoGradient(GoodTeacher):
    """Trains on logits without gradient."""

    def training_scores(self, batch: Batch) -> Scores:
        with torch.no_grad():
            return super().training_scores(batch)


class Forgetful(GoodTeacher):
    """Keeps a running mean in a plain attribute, which no state dict holds."""

    level = 0.0

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            self.level = 0.9 * self.level + 0.1 * float(batch.numeric.mean()) + 0.1
        return {task: logit + self.level for task, logit in super().logits(batch).items()}


class OwnState(GoodTeacher):
    """Puts a mapping into its state dict."""

    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        """Nothing to do."""


class StartedAt(GoodTeacher):
    """Mixes the weights it started with into the fingerprint."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.start = f"{self.head.out.weight[0, 0].item():.8f}"

    def fingerprint(self) -> str:
        self.view = f"{self.view.split('@')[0]}@{self.start}"
        return super().fingerprint()


class Dictionary(GoodTeacher):
    """Returns the logits alone."""

    def score(self, batch: Batch) -> Any:
        return self.logits(batch)


class OneTask(GoodTeacher):
    """Knows its first task."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {self.tasks[0]: super().logits(batch)[self.tasks[0]]}


class Column(GoodTeacher):
    """Leaves the last axis of the layer."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit[:, None] for task, logit in super().logits(batch).items()}


class Percent(GoodTeacher):
    """Gives percentages."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: 100 * torch.sigmoid(logit) for task, logit in super().logits(batch).items()}


class Whole(GoodTeacher):
    """Gives ranks."""

    def score(self, batch: Batch) -> Scores:
        return Scores({task: logit.argsort() for task, logit in super().score(batch).logits.items()})


class Zero(GoodTeacher):
    """Gives the log of 0."""

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        return {task: logit.relu().log() for task, logit in super().logits(batch).items()}


class WithGradient(GoodTeacher):
    """Scores as it trains."""

    def score(self, batch: Batch) -> Scores:
        return self.training_scores(batch)


class Dropping(GoodTeacher):
    """Scores with dropout."""

    def score(self, batch: Batch) -> Scores:
        with torch.no_grad():
            logits = self.training_scores(batch).logits
            return Scores({task: nn.functional.dropout(v, 0.5, self.training) for task, v in logits.items()})


class Doubling(GoodTeacher):
    """Doubles what it scores in training mode, as a dropout of 0.5 would on average."""

    def score(self, batch: Batch) -> Scores:
        scores = super().score(batch)
        return Scores({task: v * 2 if self.training else v for task, v in scores.logits.items()})


class DrawsWhileScoring(GoodTeacher):
    """Breaks ties at random, from the generator that training uses."""

    def score(self, batch: Batch) -> Scores:
        logits = super().score(batch).logits
        return Scores({task: v + 0 * torch.rand(len(batch)) for task, v in logits.items()})


class StaysInEval(GoodTeacher):
    """Never goes back to training mode."""

    def score(self, batch: Batch) -> Scores:
        self.eval()
        with torch.no_grad():
            return self.training_scores(batch)


class CountsScores(GoodTeacher):
    """Counts what it scored in a buffer."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.register_buffer("scored", torch.zeros(()), persistent=False)

    def score(self, batch: Batch) -> Scores:
        self.scored += len(batch)
        return super().score(batch)


class DatedFingerprint(GoodTeacher):
    """Names itself after the last batch that it scored."""

    def score(self, batch: Batch) -> Scores:
        self.view = f"{self.view} of {int(batch.event_time.max())}"
        return super().score(batch)


def fails(check: str, made: type[GoodTeacher], fault: str) -> Wrong:
    return wrong(check, "teacher", made, fault, config=Plain)


BACKWARD = "backward_reaches_every_parameter"
WEIGHTS = "weights_survive_safetensors"
SCORES = "scores_are_finite_logits_per_row"
TRACE = "scoring_leaves_no_trace"

WRONG = [
    fails("rows_may_come_in_any_order", InOrderOfTime, "depends on the order of rows"),
    fails("rows_may_come_one_by_one", Squeezed, "whose shape was [1] and is []"),
    fails("rows_may_come_one_by_one", PaddedMean, "gives a row alone another logit than among others"),
    fails(
        "rows_without_history_have_logits", NoHistoryIsNaN, "gives NaN or infinite logits of task 'click' when no row"
    ),
    fails("rows_without_history_have_logits", NeedsAnEvent, "cannot score when no row has a history"),
    fails(
        "rows_out_of_vocabulary_have_logits", LogPopularity, "gives NaN or infinite logits of task 'click' when every"
    ),
    fails(BACKWARD, Unused, "has parameters that take no part in its logits: teacher.spare.weight"),
    fails(BACKWARD, Rounded, "has parameters whose gradient is 0 in every entry: teacher.features"),
    fails(BACKWARD, NoGradient, "gives logits of task 'click' without gradient in training"),
    fails(WEIGHTS, Forgetful, "gives other logits once its weights are loaded into a new build"),
    fails(WEIGHTS, OwnState, "has state that is no tensor: teacher._extra_state"),
    fails(WEIGHTS, StartedAt, "has another fingerprint once its weights are loaded"),
    fails(SCORES, Dictionary, "returns dict from score"),
    fails(SCORES, OneTask, "scores no task 'like', it has click"),
    fails(SCORES, Column, "scores task 'click' with shape [24, 1] for 24 rows"),
    fails(SCORES, Squeezed, "scores task 'click' with shape [] for 1 rows"),
    fails(SCORES, Percent, "is taken for corrupt"),
    fails(SCORES, Whole, "scores task 'click' in torch.int64"),
    fails(SCORES, Zero, "scores task 'click' with NaN or infinite logits"),
    fails("score_has_no_gradient", WithGradient, "scores with gradient: click, like"),
    fails("score_is_the_same_in_every_mode", Remembering, "scores one batch in two ways"),
    fails("score_is_the_same_in_every_mode", Dropping, "scores one batch in two ways"),
    fails("score_is_the_same_in_every_mode", Doubling, "scores otherwise in eval mode"),
    fails(TRACE, DrawsWhileScoring, "draws from torch's global random state in score"),
    fails(TRACE, StaysInEval, "leaves parts in another mode after score: features"),
    fails(TRACE, CountsScores, "changes its own state in score: scored"),
    fails(TRACE, DatedFingerprint, "has another fingerprint after score"),
]
