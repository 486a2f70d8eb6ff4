"""What a component is handed stays as it was: logits, weights and heads are other components' tensors too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.interfaces import Debiaser, DistillationLoss, HeadStrategy
from recdistill_core.testing.cases import EXERCISES, Case, check
from recdistill_core.testing.compare import differences, leaves

#: kind -> the methods that a run hands tensors to, with the interface whose parameters name them.
METHODS: Mapping[str, tuple[type[Any], tuple[str, ...]]] = {
    "loss": (DistillationLoss, ("forward",)),
    "debiaser": (Debiaser, ("weight", "correct", "training_offset", "training_logit")),
    "strategy": (HeadStrategy, ("terms",)),
}


@check(*METHODS)
def arguments_are_never_changed(case: Case) -> None:
    """No tensor that a method is handed beside the batch is changed in place: logits, weights, heads."""
    made = case.build()
    interface, methods = METHODS[case.entry.kind]
    for method in methods:
        parameters = tuple(inspect.signature(getattr(interface, method)).parameters)[1:]
        object.__setattr__(made, method, _watched(case, getattr(made, method), method, parameters))
    EXERCISES[case.entry.kind](case, made)


def _watched(case: Case, call: Callable[..., Any], method: str, names: tuple[str, ...]) -> Callable[..., Any]:
    """``call``, which fails the case where it changes an argument; ``names`` are those of its parameters."""

    def run(*given: Any, **named: Any) -> Any:
        handed = dict(zip(names, given, strict=False)) | named
        handed = {name: value for name, value in handed.items() if not isinstance(value, Batch)}
        values, versions = _copies(handed), _versions(handed)
        try:
            return call(*given, **named)
        finally:
            changed = sorted({*differences(values, _copies(handed)), *differences(versions, _versions(handed))})
            case.require(
                not changed,
                f"changes an argument of {method} in place: {', '.join(changed)}; the raw student, other terms and "
                "other debiasers read it too: work on a copy (x * 2 or x.clamp(...), not x.mul_(2) or x.clamp_(...))",
            )

    return run


def _copies(handed: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value.detach().clone() for path, value in leaves(handed).items() if isinstance(value, Tensor)}


def _versions(handed: Mapping[str, Any]) -> dict[str, int]:
    """How often each tensor has been written to; a write of the same numbers counts."""
    return {path: value._version for path, value in leaves(handed).items() if isinstance(value, Tensor)}
