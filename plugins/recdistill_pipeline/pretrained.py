"""What a teacher takes over from a sequence model that was pre-trained: read it, check that it saw no outcome of a row
whose logit is captured later, copy the chosen parameters, and keep the frozen ones out of training.

The folder holds ``model.safetensors``, ``seen.safetensors`` (``{parameter: [rows] bool}`` rows of a table whose value
occurs in the sequences), ``config.json`` and ``manifest.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recdistill_core.errors import IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode, SampleSource
from recdistill_lightning.modules import TeacherModule
from recdistill_pipeline.checkpoint import load_weights
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.rundir import checked_file, read_json

FORMAT, VERSION = "recdistill-pretrained", 1
MANIFEST, CONFIG, MODEL, SEEN = "manifest.json", "config.json", "model.safetensors", "seen.safetensors"
#: How a teacher's parameters are named inside the module that trains it.
PREFIX = "teacher."


@dataclass(frozen=True)
class Pretrained:
    """A folder that ``teacher pretrain`` wrote.

    Attributes:
        folder: where. snapshot: the dataset's. cutoff: ms UTC; no event at or after it was used.
        weights: sha256 of the model file.
    """

    folder: Path
    snapshot: str
    cutoff: int
    weights: str

    @classmethod
    def open(cls, folder: Path) -> Pretrained:
        """Open a folder.

        Raises:
            UsageError: if it is none, or of another format. IntegrityError: if its manifest is damaged.
        """
        if not (folder / MANIFEST).exists():
            raise UsageError(
                "this folder holds no pre-trained model",
                where=f"pretrained.path: {folder}",
                fix="make one with 'recdistill teacher pretrain', or name its folder",
            )
        found = read_json(folder / MANIFEST)
        if found.get("format") != FORMAT or found.get("version") != VERSION:
            raise UsageError(
                f"the folder is {found.get('format', 'of no known format')} version {found.get('version')}, "
                f"and this recdistill reads {FORMAT} version {VERSION}",
                where=str(folder / MANIFEST),
                fix="pre-train again with this version",
            )
        try:
            return cls(folder, str(found["dataset"]), int(found["cutoff"]), str(found["files"][MODEL]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the manifest lacks what a transfer needs: {error!r}",
                where=str(folder / MANIFEST),
                fix="pre-train again, or restore the file",
            ) from error

    def parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters by name, and ``{table: [rows] bool}`` which of a table's rows pre-training has seen.

        Raises:
            IntegrityError: if a file is absent or was changed since it was written.
        """
        return load_weights(checked_file(self.folder, MODEL)), load_weights(checked_file(self.folder, SEEN))


def require_pretrained(plan: Plan, source: SampleSource, split: Split, steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a pre-trained model that this run must not start from, before anything is trained.

    Args:
        plan, source, split: of the run. steps: manifests of its finished steps.

    Raises:
        LeakError: if it has seen events that are not earlier than the first training row, or, where labels are leaky
            on purpose, than the first test row.
        UsageError: if it was made from another dataset, or is another one than that of the run's finished teachers.
    """
    if not plan.config.pretrained.path:
        return
    found = _opened(plan, source, split)
    for step, manifest in steps.items():
        before = manifest.get("pretrained")
        if manifest.get("kind") in ("teacher", "fold") and before and before["weights"] != found.weights:
            raise UsageError(
                "the pre-trained model is another one than the one that this run was started with",
                where=f"{step} was trained from weights {before['weights'][:16]}, {found.folder} has "
                f"{found.weights[:16]}",
                fix="give another --out, or bring the earlier one back",
            )


def _opened(plan: Plan, source: SampleSource, split: Split) -> Pretrained:
    """The run's pre-trained model, which has seen none of the outcomes that it must not have seen."""
    found = Pretrained.open(Path(plan.config.pretrained.path))
    if found.snapshot != source.snapshot_id:
        raise UsageError(
            f"the pre-trained model is of another dataset: {found.snapshot}, and the run's is {source.snapshot_id}",
            where=f"pretrained.path: {found.folder}",
            fix="pre-train on this dataset: equal ids are other items in another one",
        )
    leaky = plan.config.capture.mode == CaptureMode.LEAKY.value
    row, name = (split.test[0], "test") if leaky else (split.teacher[0], "training")
    first = int(source.column("event_time")[row])
    if found.cutoff > first:
        raise LeakError(
            f"the model was pre-trained on events up to {_iso(found.cutoff)}, and the first {name} row is of "
            f"{_iso(first)}: outcomes of rows whose logits are captured or tested later would be in its embeddings",
            where=f"pretrained.path: {found.folder}",
            fix="pre-train with an earlier 'until' (the default is the run's first training row), or let the teacher "
            "train from a later row with split.train_from",
        )
    return found


def take_over(plan: Plan, module: TeacherModule, source: SampleSource, split: Split) -> dict[str, Any]:
    """Load and freeze what ``pretrained`` says; rows whose events were seen count as trained on from here on.

    Returns:
        ``{"pretrained": facts}`` for the manifest and the labels' version; ``{}`` without pre-training.

    Raises:
        LeakError, UsageError: as :func:`require_pretrained`.
        UsageError: for a pattern that finds nothing, a parameter that the teacher lacks or that has another shape, or
            where nothing would be left to train.
    """
    config = plan.config.pretrained
    if not config.path:
        return {}
    found = _opened(plan, source, split)  # again: the folder may have been replaced since the run began
    weights, seen = found.parameters()
    chosen = _found(config.transfer, list(weights), "pretrained.transfer", f"the pre-trained model in {found.folder}")
    frozen = _found(config.freeze, chosen, "pretrained.freeze", "what is transferred")
    transferred = {name: _load(module, name, weights[name], seen.get(name)) for name in chosen}
    for name in frozen:
        module.hold(PREFIX + name, seen.get(name))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UsageError(
            "every parameter of the teacher would be frozen",
            where="pretrained.freeze",
            fix="freeze fewer: the default leaves all but the embeddings of tokens to training",
        )
    early = source.column("event_time") < found.cutoff
    module.trained.add(source.column("example_id")[early])
    return {
        "pretrained": {
            "weights": found.weights,
            "cutoff": found.cutoff,
            "transferred": transferred,
            "frozen": frozen,
        }
    }


def _found(patterns: Iterable[str], names: list[str], where: str, owner: str) -> list[str]:
    """Names that some pattern finds, in their order; every pattern must find one."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UsageError(
                f"{pattern!r} finds no parameter in {owner}",
                where=where,
                fix=f"its parameters are: {', '.join(names)}",
            )
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]


def _load(module: TeacherModule, name: str, value: Tensor, rows: Tensor | None) -> str:
    """Copy one parameter, or the seen rows of a table; says how much."""
    known = {key.removeprefix(PREFIX): part for key, part in module.named_parameters() if key.startswith(PREFIX)}
    if name not in known:
        raise UsageError(
            f"the teacher has no parameter {name!r}, which pretrained.transfer chose",
            where="teacher",
            fix=f"transfer fewer, or configure the teacher as the model was; the teacher has: {', '.join(known)}",
        )
    mine = known[name]
    if mine.shape != value.shape:
        raise UsageError(
            f"{name!r} has shape {list(value.shape)} in the pre-trained model and {list(mine.shape)} in the teacher",
            where="teacher",
            fix="give the teacher the width, length and added_action that the model was pre-trained with",
        )
    with torch.no_grad():
        if rows is None:
            mine.copy_(value)
            return "all"
        mine[rows] = value[rows].to(mine.dtype)
    return f"{int(rows.sum())} of {len(rows)} rows"


def _iso(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds")
