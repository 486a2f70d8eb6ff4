"""What exporters share: a module with named inputs to trace, and the comparison of what was written with the module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recdistill_core.errors import IntegrityError
from recdistill_core.interfaces import ServingModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What :meth:`recdistill_core.interfaces.Exporter.load` returns.
Loaded = Callable[["Mapping[str, NDArray[Any]]"], "dict[str, NDArray[np.float32]]"]


def with_named_inputs(module: ServingModule, names: Iterable[str]) -> nn.Module:
    """The module behind a ``forward`` whose keyword arguments are ``names``, for tools that read a signature.

    ``torch.export`` and what builds on it give a dynamic ``N`` only to arguments that the signature names::

        named = with_named_inputs(module, inputs)
        rows = {name: {0: torch.export.Dim("rows")} for name in inputs}
        program = torch.export.export(named, (), dict(inputs), dynamic_shapes=rows)
    """

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            logits: dict[str, Tensor] = self.module(**inputs)
            return logits

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    Named.forward.__signature__ = inspect.Signature([first, *named])  # type: ignore[attr-defined]  # inspect reads it
    return Named()


def largest_difference(
    module: ServingModule, loaded: Loaded, inputs: Mapping[str, Tensor], *, where: str | None = None
) -> float:
    """Largest absolute difference of a logit between the module and what an exporter wrote, on the same rows.

    Args:
        module: the module that was exported. loaded: what the exporter's ``load`` returned.
        inputs: ``{name: [N, ...]}``, on the CPU. where: what is compared, for messages.

    Returns:
        the difference over all rows and tasks; infinite where one of the two is NaN or infinite and they differ.

    Raises:
        IntegrityError: if tasks, shapes or types are not those of the module.
    """
    import numpy as np

    with torch.no_grad():
        wanted = {task: logit.numpy() for task, logit in module(**inputs).items()}
    found = loaded({name: tensor.numpy() for name, tensor in inputs.items()})
    shapes = {task: f"{logit.dtype} {list(logit.shape)}" for task, logit in wanted.items()}
    got = {task: f"{np.asarray(logit).dtype} {list(np.shape(logit))}" for task, logit in found.items()}
    if got != shapes:
        raise IntegrityError(
            f"what was exported gives {got}, the module gives {shapes}",
            where=where,
            fix="return one float32 array of N logits per task",
        )
    largest = 0.0
    for task, logit in wanted.items():
        if logit.size and not np.array_equal(logit, found[task], equal_nan=True):
            each = float(np.abs(logit.astype(np.float64) - found[task]).max())
            largest = max(largest, each) if math.isfinite(each) else math.inf
    return largest
