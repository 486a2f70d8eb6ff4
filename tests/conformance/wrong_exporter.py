"""Exporters that break their contract: the shipped one with one fault each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from wrong import Wrong, wrong

from recdistill_export.torch_export import TorchExport


class Fixed(TorchExport):
    """The number of rows it was traced with, and no other."""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        torch.export.save(torch.export.export(module, (), dict(inputs)), path)


class Loose(TorchExport):
    """Promises nothing."""

    def __init__(self) -> None:
        super().__init__(math.inf)


class Rounded(TorchExport):
    """Logits in halves."""

    def load(self, path: Path) -> Any:
        run = super().load(path)
        return lambda inputs: {task: (2 * logit).round() / 2 for task, logit in run(inputs).items()}


class Probable(TorchExport):
    """Probabilities, one column."""

    def load(self, path: Path) -> Any:
        run = super().load(path)
        return lambda inputs: {task: logit[:, None] for task, logit in run(inputs).items()}


class Wrapping(TorchExport):
    """Reads unknown ids from the end of a vocabulary, as negative indices do."""

    def load(self, path: Path) -> Any:
        run = super().load(path)
        return lambda inputs: run({name: x % 3 if x.dtype.kind == "i" else x for name, x in inputs.items()})


class Pinned(TorchExport):
    """Writes where the model lay."""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        super().export(module, inputs, path.with_name("weights.pt2"))
        path.write_text(json.dumps(str(path.with_name("weights.pt2"))))

    def load(self, path: Path) -> Any:
        return super().load(Path(json.loads(path.read_text())))


class Misnamed(TorchExport):
    """Writes a file and says it is a folder."""

    suffix = ""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        super().export(module, inputs, path.with_name("x.pt2"))
        path.with_name("x.pt2").rename(path)


class Pickled(TorchExport):
    """Pickles whatever the module refers to."""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        torch.save(module, path)

    def load(self, path: Path) -> Any:
        return torch.load(path, weights_only=False)


class Sampled(TorchExport):
    """Keeps the rows it was traced with."""

    suffix = ""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        path.mkdir()
        super().export(module, inputs, path / "model.pt2")
        (path / "sample.bin").write_bytes(b"".join(tensor.numpy().tobytes() for tensor in inputs.values()))


class Halving(TorchExport):
    """Exports in half precision and forgets to put the module back."""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        super().export(module, inputs, path)
        module.half().train().requires_grad_(False)


class Littering(TorchExport):
    """Writes a header before it traces."""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        path.write_bytes(b"header")
        super().export(module, inputs, path)


class Silent(TorchExport):
    """Writes weights, and never looks at what the module does."""

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        torch.save(module.state_dict(), path)


def exporter(check: str, kind: Callable[..., Any], fault: str) -> Wrong:
    return wrong(check, "exporter", lambda config, context: kind() if kind is Loose else kind(1e-4), fault)


PARITY = "loaded_logits_are_the_modules_own"
WRONG = [
    exporter(PARITY, Loose, "promises a tolerance of inf; a logit that far off is another one"),
    exporter(PARITY, Rounded, " for 1 rows; it promises 0.0001"),
    exporter(PARITY, Fixed, "fails for 1 rows: AssertionError: Guard failed: "),
    exporter(
        PARITY,
        Probable,
        "fails for 1 rows: IntegrityError: what was exported gives {'click': 'float32 [1, 1]',",
    ),
    exporter("unknown_ids_are_mapped_as_by_the_module", Wrapping, "for rows with the id -1, which no vocabulary has"),
    exporter("it_loads_where_it_was_moved_to", Pinned, "the exported model cannot be read"),
    exporter("it_writes_one_file_or_folder", Pinned, "writes ['model.pt2', 'weights.pt2'] where 'model.pt2' alone"),
    exporter("it_writes_one_file_or_folder", Misnamed, "writes a file and has the suffix ''"),
    exporter("auxiliary_towers_are_absent", Pickled, "writes the weights of an auxiliary tower into model.pt2/"),
    exporter("no_row_of_the_log_is_written", Sampled, "were given to trace with, into sample.bin"),
    exporter("the_module_is_left_as_it_was", Halving, "changes the module that it exports: "),
    exporter("a_failed_export_leaves_nothing_behind", Littering, "leaves model.pt2 behind when an export fails"),
    exporter("a_failed_export_leaves_nothing_behind", Silent, "says nothing when the module that it exports raises"),
]
