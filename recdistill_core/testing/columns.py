"""Which columns of a batch a component reads, and whether it said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from recdistill_core.batch import Batch
from recdistill_core.testing.cases import EXERCISES, Case, check
from recdistill_core.testing.compare import differences, leaves

#: capability -> the batch of a dataset that does not give it.
WITHOUT: Mapping[str, Callable[[Batch], Batch]] = {
    "history": lambda batch: replace(batch, history=None),
    "position": lambda batch: replace(batch, position=None),
    "propensity": lambda batch: replace(batch, propensity=None),
    "keep_rates": lambda batch: replace(batch, keep_rates=None),
    "request_groups": lambda batch: replace(batch, request_id=torch.arange(len(batch))),
    "teacher": lambda batch: replace(batch, teacher=None),
}


@dataclass
class Altered(Case):
    """A case whose sample batches are changed before a component sees them."""

    change: Callable[[Batch], Batch] = lambda batch: batch

    def batch(self, made: Any = None, seed: int = 0) -> Batch:
        """The changed sample batch."""
        return self.change(super().batch(made, seed))


def altered(case: Case, name: str, change: Callable[[Batch], Batch]) -> Altered:
    """The same component with a folder of its own, called ``name``, and changed batches."""
    other = case.again(name)
    return Altered(other.entry, other.folder, other.schema, change=change)


@check("loss", "debiaser")
def it_reads_only_the_columns_it_declares(case: Case) -> None:
    """Without an optional column that is not in ``needs``, the answers are the same."""
    declared = case.entry.component.needs_of(case.config)
    whole = _answers(altered(case, "whole", lambda batch: batch))
    for column in WITHOUT:
        if column in declared:
            continue
        advice = "declare it in needs, so that a dataset without it is refused before training, or do without it"
        try:
            found = _answers(altered(case, f"without_{column}", WITHOUT[column]))
        except Exception as error:  # a component fails in its own way where a column is missing
            case.fail(f"fails where the batch has no {column} ({_short(error)}); {advice}")
        changed = ", ".join(differences(whole, found))
        case.require(not changed, f"answers differently where the batch has no {column} ({changed}); {advice}")


def _answers(case: Case) -> dict[str, Any]:
    """What a new object answers under one seed."""
    made = case.build()
    torch.manual_seed(1)
    return leaves(EXERCISES[case.entry.kind](case, made))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
