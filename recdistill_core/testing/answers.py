"""Tell an answer that is no tensor, or has no gradient, in words of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recdistill_core.testing.cases import Case


def tensor(case: Case, answer: Any, method: str) -> Tensor:
    """``answer`` of ``method``, once it is a tensor."""
    __tracebackhide__ = True
    if answer is None:
        case.fail(f"returns None from {method}; return a tensor [N] (is the return statement missing?)")
    if not isinstance(answer, Tensor):
        kind = f"{type(answer).__module__}.{type(answer).__qualname__}".removeprefix("builtins.")
        case.fail(f"returns a {kind} from {method}; return a torch tensor [N], which carries the gradient")
    return answer


def gradient(case: Case, values: Tensor, logit: Tensor, of: str) -> Tensor:
    """Gradient ``[N]`` of the sum of ``values`` for ``logit``; the case fails where there is no path to it."""
    __tracebackhide__ = True
    found = None
    if values.requires_grad:
        (found,) = torch.autograd.grad(values.sum(), logit, allow_unused=True)
    if found is None:
        case.fail(
            f"passes no gradient to {of}, so that nothing is learnt through it; no detach() of it, no item(), numpy, "
            "torch.no_grad() or new tensor of its values on the way"
        )
    return found


@contextmanager
def in_torch(case: Case, method: str) -> Iterator[None]:
    """Put torch's refusal to turn a tensor into an array in words: its own advice, to detach, would be wrong here."""
    __tracebackhide__ = True
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if "numpy" in str(error).lower() or "ScalarType" in str(error):
            case.fail(f"leaves torch for numpy in {method}, which has no gradient and no bfloat16; stay with tensors")
        raise
