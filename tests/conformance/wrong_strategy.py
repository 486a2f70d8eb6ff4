"""Head strategies that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from wrong import Plain, Wrong, wrong

from recdistill_core.interfaces import HeadStrategy, LossParts

Terms = dict[str, Tensor]


class Good(HeadStrategy):
    """The served tower learns from labels, an auxiliary one from labels and the teacher."""

    auxiliary = ("aux",)

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Terms:
        return {
            "main/hard": parts.hard(heads["main"]),
            "aux/hard": parts.hard(heads["aux"]),
            "aux/soft": self.soft(parts.soft(heads["aux"])),
        }

    def soft(self, loss: Tensor) -> Tensor:
        return loss


class OneName(Good):
    """Forgets the comma of a tuple of one."""

    auxiliary = "aux"  # type: ignore[assignment]  # the mistake


class NamesMain(Good):
    """Names the tower that is always there."""

    auxiliary = ("main", "aux")


class Dotted(Good):
    """Names a tower as no module can be named."""

    auxiliary = ("aux.soft",)


class Misspelt(Good):
    """Reads another tower than it asks for."""

    auxiliary = ("auxiliary",)


class NoTerms(Good):
    """Forgets to return."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Any:
        super().terms(heads, parts)


class Numbered(Good):
    """Numbers its terms."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Any:
        return dict(enumerate(super().terms(heads, parts).values()))


class Reduced(Good):
    """Takes the mean itself."""

    def soft(self, loss: Tensor) -> Tensor:
        return loss.mean()


class Constant(Good):
    """Adds a plain number as a term."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Any:
        return {**super().terms(heads, parts), "bias": 0.0}


class LogOfLoss(Good):
    """Takes the log of a loss that may be small."""

    def soft(self, loss: Tensor) -> Tensor:
        return (loss - loss.min()).log()


class Agreeing(Good):
    """Pulls the towers together, label or no label."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Terms:
        return {**super().terms(heads, parts), "agree": (heads["main"] - heads["aux"]).square()}


class Clipped(Good):
    """Clips large losses."""

    def soft(self, loss: Tensor) -> Tensor:
        return loss.clamp(max=1.0)


class Normalised(Good):
    """Divides by the number of rows that have a teacher label."""

    def soft(self, loss: Tensor) -> Tensor:
        return loss * len(loss) / (loss.detach() != 0).sum().clamp(min=1)


class ByMean(Good):
    """Divides by the mean of the loss, which is 0 where no teacher label is valid."""

    def soft(self, loss: Tensor) -> Tensor:
        return loss / loss.detach().mean()


class Idle(Good):
    """Builds a tower for later."""

    auxiliary = ("aux", "spare")


class ServesNothing(Good):
    """Trains the tower that nobody serves."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Terms:
        return {"aux/hard": parts.hard(heads["aux"]), "aux/soft": parts.soft(heads["aux"])}


class Sum(Good):
    """Trains the sum of both towers on labels, and serves one of them."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Terms:
        return {"main/hard": parts.hard(heads["main"] + heads["aux"]), "aux/soft": parts.soft(heads["aux"])}


class Deaf(Good):
    """Detaches the teacher's loss."""

    def soft(self, loss: Tensor) -> Tensor:
        return loss.detach()


class Shifting(Good):
    """Shifts the served logit in place, for its own term."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Terms:
        return {**super().terms(heads, parts), "main/soft": parts.soft(heads["main"].sub_(0.5))}


class Taking(Good):
    """Takes the main tower's logit out of the heads."""

    def terms(self, heads: Any, parts: LossParts) -> Terms:
        return {"main/hard": parts.hard(heads.pop("main")), "aux/soft": parts.soft(heads["aux"])}


class OverNumpy(Good):
    """Rounds a head in numpy."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Terms:
        return {"main/hard": parts.hard(torch.from_numpy(heads["main"].numpy().round(2)))}


class NoTensors(Good):
    """Hands terms on as arrays."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> Any:
        return {name: values.detach().numpy() for name, values in super().terms(heads, parts).items()}


class Halves(Good):
    """Feeds the auxiliary tower half of the features."""

    def features(self, head: str, features: Tensor) -> Tensor:
        return features if head == "main" else features[:, ::2]


class Dropping(Good):
    """Drops features of every tower, the served one too."""

    def features(self, head: str, features: Tensor) -> Tensor:
        return nn.functional.dropout(features, 0.5)


def fails(check: str, made: type[HeadStrategy], fault: str, *, needs: frozenset[str] = frozenset({"teacher"})) -> Wrong:
    return wrong(check, "strategy", lambda config, context: made(), fault, config=Plain, needs=needs)


NAMES = "auxiliary_names_are_distinct"
LOSSES = "terms_are_finite_losses_per_row"
LINEAR = "terms_are_linear_in_their_parts"
MAIN = "main_tower_learns_from_labels"

WRONG = [
    fails("arguments_are_never_changed", Shifting, "changes an argument of terms in place: heads.main; "),
    fails("arguments_are_never_changed", Taking, "changes an argument of terms in place: heads.main; "),
    fails("only_its_own_heads_are_read", OverNumpy, "leaves torch for numpy in terms, which has no gradient"),
    fails(LOSSES, NoTensors, "has a term 'main/hard' of type ndarray; give [N]"),
    fails(NAMES, OneName, "has auxiliary = 'aux'; it must be a tuple"),
    fails(NAMES, NamesMain, "names main more than once among main and auxiliary"),
    fails(NAMES, Dotted, "names a tower as no module can be named"),
    fails("only_its_own_heads_are_read", Misspelt, "reads the head 'aux', and there are main, auxiliary"),
    fails(LOSSES, NoTerms, "returns None from terms"),
    fails(LOSSES, Numbered, "names a term 0"),
    fails(LOSSES, Reduced, "has a term 'aux/soft' of shape [] for 24 rows"),
    fails(LOSSES, Constant, "has a term 'bias' of type float"),
    fails(LOSSES, LogOfLoss, "has a term 'aux/soft' of torch.float32 that is not finite"),
    fails(LINEAR, Agreeing, "has a term 'agree' of"),
    fails(LINEAR, Clipped, "has terms that are not linear in the losses"),
    fails("terms_of_a_row_are_its_own", Normalised, "mixes rows: term 'aux/soft', row 0, by"),
    fails("every_auxiliary_tower_learns", Idle, "builds towers that learn nothing: spare"),
    fails(MAIN, ServesNothing, "gives the main tower, which is served, nothing to learn"),
    fails(MAIN, Sum, "trains the main tower on something else than its labels"),
    fails("invalid_teacher_labels_move_no_head", ByMean, "(nan) move a head: the gradient differs at head 'aux'"),
    fails("valid_teacher_labels_move_some_head", Deaf, "needs teacher labels and learns nothing from them"),
    fails("main_is_fed_as_it_is_served", Halves, "feeds the tower 'aux' features of [24, 2] in place of [24, 4]"),
    fails("main_is_fed_as_it_is_served", Dropping, "feeds the main tower other features in training"),
    fails("it_says_that_it_needs_a_teacher", Good, "does not say that it needs teacher labels", needs=frozenset()),
]
