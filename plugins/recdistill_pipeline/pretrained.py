"""What a teacher takes over from a sequence model that was pre-trained: read it, check that it saw no outcome of a row
whose logit is captured later, copy the chosen parameters, and keep the frozen ones out of training.

The folder holds ``model.safetensors``, ``seen.safetensors`` (``{parameter: [rows] bool}`` rows of a table whose value
occurs in the sequences), ``config.json`` and ``manifest.json``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from recdistill_core.errors import IntegrityError, LeakError, UsageError
from recdistill_core.fingerprint import file_sha256
from recdistill_core.interfaces import CaptureMode, SampleSource
from recdistill_lightning.modules import TeacherModule
from recdistill_pipeline.checkpoint import load_weights
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.models import build_teacher
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import PretrainedConfig
from recdistill_pipeline.rundir import read_json

FORMAT, VERSION = "recdistill-pretrained", 1
MANIFEST, CONFIG, MODEL, SEEN = "manifest.json", "config.json", "model.safetensors", "seen.safetensors"
#: How a teacher's parameters are named inside the module that trains it.
PREFIX = "teacher."
_AGAIN = "pre-train again, or restore the file"


@dataclass(frozen=True)
class Pretrained:
    """A folder that ``teacher pretrain`` wrote.

    Attributes:
        folder: where. snapshot: the dataset's. cutoff: ms UTC; no event at or after it was used.
        weights: sha256 of the model file. files: ``{name: sha256}`` of all that was written with the manifest.
    """

    folder: Path
    snapshot: str
    cutoff: int
    weights: str
    files: Mapping[str, str]

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
        try:
            found = read_json(folder / MANIFEST)
        except IntegrityError as error:
            raise IntegrityError(error.what, where=str(folder / MANIFEST), fix=_AGAIN) from error
        if not isinstance(found, dict) or not {"format", "version"} <= set(found):
            raise IntegrityError(
                "this is not the manifest of a pre-trained model: it names no format and version",
                where=str(folder / MANIFEST),
                fix=_AGAIN,
            )
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise UsageError(
                f"the folder is {found['format']} version {found['version']}, "
                f"and this recdistill reads {FORMAT} version {VERSION}",
                where=str(folder / MANIFEST),
                fix="pre-train again with this version",
            )
        try:
            files = {name: str(found["files"][name]) for name in (MODEL, SEEN, CONFIG)}
            return cls(folder, str(found["dataset"]), int(found["cutoff"]), files[MODEL], files)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the manifest lacks what a transfer needs: {error!r}",
                where=str(folder / MANIFEST),
                fix=_AGAIN,
            ) from error

    def checked(self) -> Pretrained:
        """Itself, after every file was read once.

        Raises:
            IntegrityError: if a file is absent or was changed since it was written.
        """
        for name, wanted in self.files.items():
            path = self.folder / name
            if not path.is_file() or file_sha256(path) != wanted:
                raise IntegrityError(
                    "a file of the pre-trained model is absent or was changed since it was written",
                    where=str(path),
                    fix=_AGAIN,
                )
        return self

    def names(self) -> list[str]:
        """Names of its parameters."""
        with safetensors.safe_open(self.folder / MODEL, framework="pt") as file:
            return list(file.keys())

    def parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters by name, and ``{table: [rows] bool}`` which of a table's rows pre-training has seen.

        Raises:
            IntegrityError: if a file is absent or was changed since it was written.
        """
        self.checked()
        return load_weights(self.folder / MODEL), load_weights(self.folder / SEEN)


def require_folder(plan: Plan) -> None:
    """Refuse what is wrong with the folder itself, or finds nothing in it, before a dataset is imported.

    Raises:
        UsageError: if there is no model, or for a pattern that finds nothing. IntegrityError: if a file is damaged.
    """
    config = plan.config.pretrained
    if config.path:
        found = Pretrained.open(Path(config.path)).checked()
        _chosen(config, found.names(), found.folder)


def require_pretrained(plan: Plan, source: SampleSource, split: Split, steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Refuse a pre-trained model that this run must not or cannot start from, before anything is trained.

    Args:
        plan, source, split: of the run. steps: manifests of its finished steps.

    Returns:
        What is taken over and what is not, in a line; empty without pre-training.

    Raises:
        IntegrityError: if a file of the folder is absent or damaged.
        LeakError: if it has seen events that are not earlier than the first training row, or, where labels are leaky
            on purpose, than the first test row.
        UsageError: if it was made from another dataset, or is another one than that of the run's finished teachers,
            or as :func:`take_over`, which a teacher that is thrown away tries out.
    """
    if not plan.config.pretrained.path:
        return ""
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
    module = build_teacher(plan, source.schema, plan.config.seeds[0])
    taken = take_over(plan, module, source, split)["pretrained"]["transferred"]
    own = [name.removeprefix(PREFIX) for name, _ in module.named_parameters() if name.startswith(PREFIX)]
    return (
        f"taken over from {found.folder}: {len(taken)} parameters, {_groups(taken)}; not taken over: "
        f"{_groups(set(found.names()) - set(taken))}; at the teacher's own start: {_groups(set(own) - set(taken))}"
    )


def _groups(names: Iterable[str]) -> str:
    """``layers (8), tokens``: how many parameters each part of a model has."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in sorted(counts.items())) or "none"


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
    chosen, frozen = _chosen(config, list(weights), found.folder)
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


def _chosen(config: PretrainedConfig, names: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Which of the model's parameters are transferred, and which of these are frozen."""
    chosen = _found(config.transfer, names, "pretrained.transfer", f"the pre-trained model in {folder}")
    return chosen, _found(config.freeze, chosen, "pretrained.freeze", "what is transferred")


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
