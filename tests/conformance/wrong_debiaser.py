"""Debiasers that break what a debiaser must keep, each as an author might."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from wrong import Wrong, wrong

from recdistill_core import Batch
from recdistill_core.interfaces import Debiaser


class Inverse(Debiaser):
    """1 / propensity; a batch that has none counts plainly."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        assert batch.propensity is not None
        return 1.0 / batch.propensity


class Column(Inverse):
    """A column of weights."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return super().weight(batch, task)[:, None]


class Overflowing(Inverse):
    """Exponentiates what is already a reciprocal."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return torch.exp(super().weight(batch, task) - 1.0)


class Centred(Inverse):
    """Log weights, which are negative above the mean."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        assert batch.propensity is not None
        return 0.5 + batch.propensity.log()


class Clipped(Inverse):
    """Clips where much of the log lies."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return super().weight(batch, task).clamp(max=1.5)


class Root(Inverse):
    """Takes the root, for a steadier estimate."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return super().weight(batch, task).sqrt()


class KeepRates(Debiaser):
    """Shifts logits by the keep rates. Subclasses change how."""

    def shift(self, batch: Batch, task: str) -> Tensor:
        assert batch.keep_rates is not None
        positive, negative = batch.keep_rates[task]
        return torch.tensor(negative / positive).log()

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return logit + self.shift(batch, task).to(logit)


class UpsideDown(KeepRates):
    """Divides the rates the other way round."""

    def shift(self, batch: Batch, task: str) -> Tensor:
        return -super().shift(batch, task)


class OnlyNegatives(KeepRates):
    """Forgets that positives are sampled too, and subtracts a margin."""

    def shift(self, batch: Batch, task: str) -> Tensor:
        assert batch.keep_rates is not None
        return torch.tensor(batch.keep_rates[task][1] - 1.25)


class ThroughProbabilities(KeepRates):
    """Corrects the probability as the textbook writes it, and takes the logit again."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        p = torch.sigmoid(logit)
        odds = p / (1 - p) * self.shift(batch, task).exp().to(logit)
        return odds.log()


class Summed(KeepRates):
    """Sums over the rows what belongs to each."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return super().correct(logit, batch, task).sum()


class Narrow(KeepRates):
    """Answers in float32 whatever it is given."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return super().correct(logit.float(), batch, task)


class OverNumpy(KeepRates):
    """Goes through numpy, which knows no gradient."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        if logit.dtype == torch.bfloat16:
            return super().correct(logit, batch, task)
        return torch.from_numpy(logit.detach().numpy() + self.shift(batch, task).numpy()).to(logit)


class Folding(KeepRates):
    """Reflects what it takes for too large."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return super().correct(torch.where(logit > 5, 10 - logit, logit), batch, task)


class Rounding(KeepRates):
    """Keeps a gradient and no more than the sign of an order."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return super().correct(torch.where(logit.abs() < 3, logit * 1e-6, logit), batch, task)


class Positions(Debiaser):
    """An additive bias per position. Subclasses change how it is kept or used."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(20, 1)
        nn.init.zeros_(self.bias.weight)

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        if not self.training:
            return logit
        assert batch.position is not None
        return logit + self.bias(batch.position)[:, 0].to(logit)


class AlsoServed(Positions):
    """Adds the bias of the top position when serving."""

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return super().training_logit(logit, batch, task) + (0.0 if self.training else 0.5)


class AlwaysAsks(Positions):
    """Looks at the position even where there is nothing to add."""

    def training_offset(self, batch: Batch, task: str) -> Tensor | None:
        assert batch.position is not None, "the batch has no position"
        return None


class FlatInServing(Positions):
    """Corrects to one number when serving."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return logit if self.training else logit.mean()


class Blind(Debiaser):
    """Says that it needs the position, and does nothing with it."""


class Frozen(Positions):
    """Adds a bias that never trains."""

    def __init__(self) -> None:
        super().__init__()
        self.bias.weight.requires_grad_(False)


class MeanWeight(Inverse):
    """Divides by the mean weight of the training rows. Subclasses change where that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def learn(self, batches: Iterable[Batch]) -> Tensor:
        return torch.cat([Inverse.weight(self, batch, "") for batch in batches]).mean()

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        self.mean = self.learn(batches)

    def weight(self, batch: Batch, task: str) -> Tensor:
        return super().weight(batch, task) / self.mean


class Forgetful(MeanWeight):
    """Keeps the mean in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean
        self.mean = torch.ones(())


class LostAfterRestore(Forgetful):
    """Keeps the mean in an attribute, and will not work without."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean


class GrowingBuffer(MeanWeight):
    """Makes a buffer as long as the log has batches."""

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        self.register_buffer("means", torch.stack([self.learn([batch]) for batch in batches]))


class NamesInState(MeanWeight):
    """Keeps a list of names beside its tensors."""

    def get_extra_state(self) -> list[str]:
        return ["click"]

    def set_extra_state(self, state: Any) -> None:
        return


class TwicePass(MeanWeight):
    """Goes through the log twice; the second time a stream is at its end."""

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        rows = sum(len(batch) for batch in batches)
        total = sum(float(Inverse.weight(self, batch, task).sum()) for batch in batches)
        self.mean.fill_(max(total, 1.0) / rows)


class Indexing(MeanWeight):
    """Takes the batches for a list."""

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        self.mean.copy_(self.learn([batches[0]]))  # type: ignore[index]  # the mistake


class OneForAll(MeanWeight):
    """Keeps one mean over observed rows for all tasks."""

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        self.mean = torch.cat([Inverse.weight(self, batch, task)[batch.observed[task]] for batch in batches]).mean()


class Undeclared(KeepRates):
    """Discounts by the position without asking for one."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        return (
            functional.softplus(-batch.position.float()) if batch.position is not None else super().weight(batch, task)
        )


class Flooring(KeepRates):
    """Bounds the logit from below, in place."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return super().correct(logit.clamp_(min=-1.0), batch, task)


class Adding(Positions):
    """Adds the bias of the position to the served logit itself."""

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        assert batch.position is not None
        return logit.add_(batch.position.to(logit))


class NoWeight(Inverse):
    """Forgets to return."""

    def weight(self, batch: Batch, task: str) -> Any:
        super().weight(batch, task)


class NoCorrection(KeepRates):
    """Forgets to return."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Any:
        super().correct(logit, batch, task)


class PlainNumpy(KeepRates):
    """Goes through numpy, which knows no bfloat16."""

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        return torch.from_numpy(logit.detach().numpy() + self.shift(batch, task).numpy())


def case(check: str, debiaser: Callable[[], Debiaser], need: str, fault: str) -> Wrong:
    return wrong(
        check, "debiaser", lambda config, context: debiaser(), fault, needs=frozenset({need} if need else set())
    )


WEIGHTS, FINITE, KEEP = "weights_are_finite_and_not_negative", "corrected_logits_are_finite", "keep_rates"
TYPES, ORDER, NEUTRAL = (
    "corrections_keep_type_and_gradient",
    "logits_keep_their_order",
    "correct_changes_nothing_where_there_is_no_bias",
)
EVAL, STATE, ONCE = "nothing_is_added_in_eval_mode", "fitted_state_survives_safetensors", "fit_reads_its_batches_once"

WRONG = [
    case("arguments_are_never_changed", Flooring, KEEP, "changes an argument of correct in place: logit; "),
    case("arguments_are_never_changed", Adding, "position", "changes an argument of training_logit in place: logit; "),
    case(WEIGHTS, NoWeight, "propensity", "returns None from weight; return a tensor [N]"),
    case(FINITE, NoCorrection, KEEP, "returns None from correct; return a tensor [N]"),
    case(FINITE, PlainNumpy, KEEP, "leaves torch for numpy in correct, which has no gradient and no bfloat16"),
    case(WEIGHTS, Column, "propensity", "gives weights of shape [24, 1] for 24 rows"),
    case(WEIGHTS, Overflowing, "propensity", "gives a weight that is NaN or infinite"),
    case(WEIGHTS, Centred, "propensity", "gives the negative weight"),
    case(FINITE, Summed, KEEP, "answers correct with shape [] for 24 rows"),
    case(FINITE, ThroughProbabilities, KEEP, "answers correct with inf to the logit"),
    case(TYPES, Narrow, KEEP, "answers correct in float32 to logits in float64"),
    case(TYPES, OverNumpy, KEEP, "passes no usable gradient from correct to the logit"),
    case(ORDER, Folding, KEEP, "reverses the order of logits: correct falls between 5 and 6"),
    case(ORDER, Rounding, KEEP, "answers correct alike for the logits -2 and 2 of a row"),
    case(NEUTRAL, OnlyNegatives, KEEP, "corrects logits by up to 0.25 where keep rates and propensities are 1"),
    case(EVAL, AlsoServed, "position", "adds to the logit in eval mode"),
    case(EVAL, AlwaysAsks, "position", "fails in eval mode on a batch without position and propensity (AssertionError"),
    case(EVAL, FlatInServing, "position", "corrects to shape [] in eval mode"),
    case(STATE, Forgetful, "propensity", "answers weight differently with its state restored"),
    case(STATE, LostAfterRestore, "propensity", "does not work with its state restored (AttributeError"),
    case(STATE, GrowingBuffer, "propensity", "cannot load its own state into a new object"),
    case(STATE, NamesInState, "propensity", "keeps what is no tensor in its state: _extra_state"),
    case(ONCE, TwicePass, "propensity", "answers weight differently when fitted on a generator of batches"),
    case(ONCE, Indexing, "propensity", "fails on a generator of batches (TypeError"),
    case("tasks_do_not_move_each_other", OneForAll, "propensity", "once 'like' is fitted on the same rows"),
    case("it_reads_only_the_columns_it_declares", Undeclared, KEEP, "where the batch has no position (weight)"),
    case("weights_undo_the_propensity", Root, "propensity", "is biased: on a log of"),
    case("weights_undo_the_propensity", Clipped, "propensity", "weights go with 1 / propensity"),
    case("corrections_undo_the_sampling", UpsideDown, KEEP, "does not undo the sampling of positives"),
    case("relevance_is_told_from_position", Blind, "position", "does not tell relevance from position"),
    case("relevance_is_told_from_position", Frozen, "position", "does not tell relevance from position"),
]
