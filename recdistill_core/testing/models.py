"""How checks run a teacher or a student, and how they compare its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch, History, TeacherSignal
from recdistill_core.interfaces import TrainableTeacher
from recdistill_core.testing.cases import Case, NotApplicable

#: What rounding explains where the order of float32 sums may change: hundreds of roundings of 6e-8, relative to the
#: larger of 1 and the logit. Inputs are changed by much more than that.
ROUNDING = 1e-4
SEED = 5

Logits = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """One way in which a model gives logits: ``name`` for messages, ``run(batch)`` the logits ``{task: [N]}``."""

    name: str
    run: Callable[[Batch], Mapping[str, Tensor]]

    def __call__(self, batch: Batch) -> Logits:
        """Logits without gradient, safe from later changes in place."""
        return {task: logit.detach().clone() for task, logit in self.run(batch).items()}


def served(case: Case, made: Any = None) -> Way:
    """What is served or stored of a teacher (``score``) or a student (the main tower in eval mode).

    Args:
        case: with the component.
        made: used at every call, where given, and stirred; else every call has a new build, so that nothing which an
            earlier call left, a cache by example say, hides what moves.
    """
    kept = None if made is None else _scorer(case, made)
    name = "score" if case.entry.kind == "teacher" else "the main tower in eval mode"
    return Way(name, lambda batch: (kept or _scorer(case, case.build()))(batch))


def _scorer(case: Case, made: Any) -> Callable[[Batch], Mapping[str, Tensor]]:
    stir(made)
    if case.entry.kind == "teacher":
        return lambda batch: made.score(batch).logits
    main = stir(made.tower()).eval()
    made.eval()
    return lambda batch: main(made.backbone(batch))


def in_training(case: Case, *, dropout: bool = True) -> Way:
    """The forward pass of training, with a new build at every call, so that no call sees what an earlier one left.

    Args:
        case: with a student or a trainable teacher.
        dropout: False turns dropout modules off, for batches whose sizes differ.
    """

    def run(batch: Batch) -> Mapping[str, Tensor]:
        made = stir(case.build())
        model = nn.ModuleList([made] if case.entry.kind == "teacher" else [made, stir(made.tower())]).train()
        if not dropout:
            without_dropout(model)
        torch.manual_seed(SEED)
        if case.entry.kind == "teacher":
            scores: Mapping[str, Tensor] = made.training_scores(batch).logits
            return scores
        logits: Mapping[str, Tensor] = model[1](made.backbone(batch))
        return logits

    return Way("training_scores" if case.entry.kind == "teacher" else "the main tower in training mode", run)


def ways(case: Case, made: Any, *, dropout: bool = True) -> list[Way]:
    """All ways in which a model like ``made`` gives logits that somebody uses, each with a new build at every call."""
    trains = case.entry.kind == "student" or isinstance(made, TrainableTeacher)
    return [served(case), *([in_training(case, dropout=dropout)] if trains else [])]


def trainable(made: Any) -> TrainableTeacher:
    """``made``, or NotApplicable for a teacher that recdistill does not train."""
    if not isinstance(made, TrainableTeacher):
        raise NotApplicable("it is no TrainableTeacher, so recdistill does not train it")
    return made


def module_of(made: Any) -> Any:
    """``made``, or NotApplicable for a teacher that is no torch module."""
    if not isinstance(made, nn.Module):
        raise NotApplicable("it is no torch module, so its weights and features are its own affair")
    return made


def stir(made: Any) -> Any:
    """The same module with seeded noise on its weights, so that those which start at zero or near it matter.

    Vectors that are not zero may have to stay positive (scales, variances): those change by a tenth of themselves.
    """
    if isinstance(made, nn.Module):
        draw = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for weight in made.parameters():
                if not weight.requires_grad or nn.parameter.is_lazy(weight):
                    continue
                noise = 0.1 * torch.randn(weight.shape, generator=draw).to(weight)
                weight.add_(noise * weight if weight.ndim < 2 and bool(weight.any()) else noise)
    return made


def without_dropout(model: nn.Module) -> nn.Module:
    """The same module with every dropout turned off, that inside torch's attention and recurrent layers included."""
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]  # a plain attribute of these layers
    return model


def moved(
    before: Logits, after: Logits, *, rows: Tensor | None = None, tolerance: float = 0.0, of: str = "task"
) -> str:
    """Where two answers differ, as ``task 'click', row 3, by 0.12``; an empty string where they do not.

    Args:
        before: ``{task: [N]}``. after: ``{task: [N]}``.
        rows: ``[N]`` bool, those to compare; None compares all.
        tolerance: largest difference allowed, relative to the larger of 1 and the logit.
        of: what the keys name.
    """
    for name, old in before.items():
        new = after[name]
        if new.shape != old.shape:
            return f"{of} {name!r}, whose shape was {list(old.shape)} and is {list(new.shape)}"
        gap = (new.double() - old.double()).abs()
        same = (gap <= tolerance * old.double().abs().clamp(min=1.0)) | (new.isnan() & old.isnan())
        differs = ~same if rows is None else ~same & rows
        if bool(differs.any()):
            row = int(differs.nonzero()[0])
            return f"{of} {name!r}, row {row}, by {float(gap[row]):.3g}"
    return ""


def unrepeatable(case: Case, way: Way, batch: Batch, first: Logits) -> None:
    """Fail where another build of the same seed does not give the batch its ``first`` logits again."""
    where = moved(first, way(batch))
    case.require(
        not where,
        f"gives other logits when {way.name} of an equal build gets the same batch again ({where}), so leaks cannot be "
        "told from chance: draw from torch's seeded generator alone",
    )


def blended(first: Batch, second: Batch, take: Tensor) -> Batch:
    """Rows of ``first``, and those of ``second`` where ``take [N]``; with the histories of both."""

    def pick(mine: Any, theirs: Any) -> Any:
        if isinstance(mine, Mapping):
            return {key: pick(mine[key], theirs[key]) for key in mine}
        return torch.where(take.view(-1, *[1] * (mine.ndim - 1)), theirs, mine) if isinstance(mine, Tensor) else mine

    plain = {name: pick(value, getattr(second, name)) for name, value in vars(first).items() if name != "history"}
    signal = first.teacher
    if signal is not None and second.teacher is not None:
        columns = {name: pick(value, getattr(second.teacher, name)) for name, value in vars(signal).items()}
        plain["teacher"] = TeacherSignal(**columns)
    return Batch(**plain, history=_joined(first.history, second.history, take))


def _joined(first: History | None, second: History | None, take: Tensor) -> History | None:
    if first is None or second is None:
        return None
    return History(
        events={name: torch.cat([column, second.events[name]]) for name, column in first.events.items()},
        offsets=torch.cat([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        row_to_history=torch.where(take, second.row_to_history + len(first.offsets) - 1, first.row_to_history),
        row_end=torch.where(take, second.row_end, first.row_end),
    )


def cut(past: History, end: int) -> History:
    """Histories of their first ``end`` events; rows that see more see these."""
    kept = event_places(past) < end
    return History(
        events={name: column[kept] for name, column in past.events.items()},
        offsets=torch.cat([past.offsets[:1], past.lengths.clamp(max=end).cumsum(0)]),
        row_to_history=past.row_to_history,
        row_end=past.row_end.clamp(max=end),
    )


def event_places(past: History) -> Tensor:
    """``[E]`` the place of each event in its history."""
    return torch.arange(int(past.offsets[-1])) - torch.repeat_interleave(past.offsets[:-1], past.lengths)


def reason(error: Exception) -> str:
    """An exception on one line, for messages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
