"""The exporter itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recdistill_core.errors import IntegrityError, UsageError
from recdistill_core.files import whole_or_absent
from recdistill_core.interfaces import ServingModule
from recdistill_core.serving import Loaded, with_named_inputs
from torch import Tensor
from torch.export import Dim

from recdistill_myplugin import MyPluginConfig


class MyPluginExporter:
    """Writes ``PATH/model.pt2`` and ``PATH/signature.json``; the folder is whole or absent.

    Args:
        config: holds ``tolerance``.

    Attributes:
        suffix: empty, since it writes a folder. tolerance: largest absolute difference of a logit that it promises.
    """

    suffix = ""

    def __init__(self, config: MyPluginConfig) -> None:
        self.tolerance = config.tolerance

    def export(self, module: ServingModule, inputs: Mapping[str, Tensor], path: Path) -> None:
        """Write ``module`` for any number of rows ``N``.

        Args:
            module: in eval mode; left as it was.
            inputs: ``{name: [N, ...]}``: names, types and widths to trace with.
            path: absent so far; its parent exists.
        """
        rows = {name: {0: Dim("rows")} for name in inputs}
        program = torch.export.export(with_named_inputs(module, inputs), (), dict(inputs), dynamic_shapes=rows)
        program.example_inputs = None  # they are rows of somebody's log
        with torch.no_grad():
            tasks = list(module(**inputs))
        signature = {
            "inputs": {
                name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["rows", *tensor.shape[1:]]}
                for name, tensor in inputs.items()
            },
            "logits": tasks,
        }
        with whole_or_absent(path) as place:
            place.mkdir()
            torch.export.save(program, place / "model.pt2")
            (place / "signature.json").write_text(json.dumps(signature, indent=2) + "\n", encoding="utf-8")

    def load(self, path: Path) -> Loaded:
        """What :meth:`export` wrote, as a function of the named arrays ``[N, ...]`` to logits ``{task: [N]}`` float32.

        Raises:
            IntegrityError: if a file is absent or damaged.
        """
        try:
            names = sorted(json.loads((path / "signature.json").read_text(encoding="utf-8"))["inputs"])
            served = torch.export.load(path / "model.pt2").module()
        except Exception as error:  # torch and json raise many kinds
            raise IntegrityError(
                f"the exported model cannot be read: {error}", where=str(path), fix="export the student again"
            ) from error

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
            if sorted(inputs) != names:
                raise UsageError(f"the model takes {', '.join(names)}, got {', '.join(inputs)}", where=str(path))
            with torch.no_grad():
                logits = served(**{name: torch.tensor(array) for name, array in inputs.items()})
            return {task: logit.numpy() for task, logit in logits.items()}

        return run
