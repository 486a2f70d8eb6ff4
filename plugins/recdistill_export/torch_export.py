"""``torch.export``: the graph and its weights in one ``.pt2`` archive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram

from recdistill_core.errors import IntegrityError, UsageError
from recdistill_core.files import whole_or_absent
from recdistill_core.interfaces import ServingModule
from recdistill_core.serving import Loaded, with_named_inputs


class TorchExport:
    """Writes what ``torch.export.load(path).module()(**inputs)`` runs, for any number of rows ``N``.

    The file holds the graph and the weights: no row of the inputs it was traced with and no path of this machine.

    Args:
        tolerance: see :class:`recdistill_core.interfaces.Exporter`.
    """

    suffix = ".pt2"

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def export(self, module: ServingModule, inputs: Mapping[str, Tensor], path: Path) -> None:
        """See :meth:`recdistill_core.interfaces.Exporter.export`."""
        rows = {name: {0: Dim("rows")} for name in inputs}
        program = torch.export.export(with_named_inputs(module, inputs), (), dict(inputs), dynamic_shapes=rows)
        program.example_inputs = None  # rows of the log
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        with whole_or_absent(path) as place:
            torch.export.save(program, place)

    def load(self, path: Path) -> Loaded:
        """See :meth:`recdistill_core.interfaces.Exporter.load`.

        Raises:
            IntegrityError: if the file cannot be read.
        """
        try:
            program = torch.export.load(path)
        except Exception as error:  # torch raises many kinds
            raise IntegrityError(
                f"the exported model cannot be read: {error}", where=str(path), fix="export the student again"
            ) from error
        served, names = program.module(), _input_names(program)

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
            if set(inputs) != set(names):
                raise UsageError(
                    f"the exported model takes {', '.join(names)}, got {', '.join(inputs) or 'nothing'}",
                    where=str(path),
                    fix="give the tensors of Student.inputs, by name",
                )
            with torch.no_grad():
                logits = served(**{name: torch.tensor(inputs[name]) for name in names})
            return {task: logit.numpy() for task, logit in logits.items()}

        return run


def _input_names(program: ExportedProgram) -> list[str]:
    _, named = program.call_spec.in_spec.children()
    return list(named.context)
