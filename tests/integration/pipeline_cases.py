"""The small feed, the small models and the Trainer of the integration tests."""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf

from recdistill_core import errors
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.interfaces import SampleSource
from recdistill_core.rawlog import RawLog
from recdistill_core.registry import installed
from recdistill_lightning import DistillationDataModule, Optimisation, ReadOrder, TeacherModule
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.run import Run

FEED = {"name": "simulator", "users": 60, "items": 80, "impressions": 3000, "history_length": 15}
TEACHER = {
    "name": "hstu",
    "width": 16,
    "layers": 1,
    "heads": 2,
    "max_length": 32,
    "history_stride": 8,
    "context_width": 4,
    "hidden": [16],
    "cross_layers": 1,
    "cross_rank": 4,
}
STUDENT = {"embedding": 4, "hidden": [8], "recent": 5}
#: The command line in this process: exit code, stdout, stderr.
Verb = Callable[..., tuple[int, str, str]]
#: The row whose label differs between the feed and its twin.
FLIPPED = 700
CONFIG: Mapping[str, Any] = {
    "name": "tiny",
    "task": "click",
    "split": {"test_from": "75%"},
    "seeds": [1, 2],
    "teacher": TEACHER,
    "teacher_training": {"lr": 0.003, "batch_size": 256, "window_hours": 72, "within": "user"},
    "students": [{"name": "dcn", **STUDENT}, {"name": "mlp", **STUDENT}],
    "student_training": {"batch_size": 256, "window_hours": 72},
    "evaluation": {"resamples": 100, "batch_size": 512},
    "threads": 1,
}


def simulated(**changes: Any) -> RawLog:
    """The feed as a raw log."""
    log: RawLog = make(installed(), "importer", {**FEED, **changes}).open()
    return log


def config(dataset: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The run configuration, on an imported dataset or on the importer, with ``changes``."""
    source = {"path": str(dataset)} if dataset else {"importer": FEED}
    return {**CONFIG, "dataset": source, **changes}


def run_of(out: Path, plain: Mapping[str, Any], say: Any = lambda line: None) -> Run:
    """A run of a configuration, in this process."""
    return Run(make_plan(plain, installed()), out, installed(), say)


def write_config(path: Path, plain: Mapping[str, Any]) -> Path:
    """The configuration as a YAML file."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(plain))))
    return path


def command(*words: object) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-c", "from recdistill_core.cli import main; main()", *map(str, words)]


def environment() -> dict[str, str]:
    """One thread, and warnings as Python shows them to a user."""
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    return {**plain, "OMP_NUM_THREADS": "1"}


def teacher_module(source: SampleSource, tasks: tuple[str, ...] = ("click",), **settings: Any) -> TeacherModule:
    """A small teacher that always starts from the same weights."""
    torch.manual_seed(5)
    teacher = make(installed(), "teacher", {**TEACHER, **settings}, BuildContext(source.schema, tasks))
    return TeacherModule(teacher, tasks=tasks, optimisation=Optimisation(lr=1e-2))


def teacher_tables(source: SampleSource) -> dict[str, torch.Tensor]:
    """Embeddings of every id of the untrained small teacher."""
    teacher = teacher_module(source).teacher
    sizes = {"item": 81, "creator": 13}
    return {kind: teacher.id_embedding(kind, torch.arange(size)).detach() for kind, size in sizes.items()}


def data_module(source: SampleSource, module: Any, rows: int = 1500, **settings: Any) -> DistillationDataModule:
    """The first ``rows`` rows, in small batches."""
    order = settings.pop("order", ReadOrder(batch_size=128, window_hours=48, within="user"))
    return DistillationDataModule(source, order, train=(0, rows), history=module.history, **settings)


class Before(L.Callback):
    """The batch of each step, and a copy of the teacher before it."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TeacherModule)
        self.steps.append((batch, copy.deepcopy(pl_module.teacher)))


def fit(module: L.LightningModule, data: DistillationDataModule, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """Fit with a Trainer as a user would make it, without files, on from a ``checkpoint``; returns the Trainer."""
    checkpoint = settings.pop("checkpoint", None)
    plain: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": data.epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 1.0 if data.test_rows else 0,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning's own use of torch.utils._pytree
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
        trainer = L.Trainer(**{**plain, **settings}, callbacks=list(callbacks))
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    return trainer


def answer(done: tuple[int, str, str], code: int = 0) -> Any:
    """The one JSON document on stdout."""
    assert done[0] == code, f"exit {done[0]}\n{done[1]}\n{done[2]}"
    return json.loads(done[1])


def refused(done: tuple[int, str, str], kind: str, *expected: str) -> None:
    """It failed with the code of this kind of error, and its one JSON document says why."""
    code = getattr(errors, kind).exit_code
    found = answer(done, code)
    assert (found["kind"], found["exit_code"]) == (kind, code), found
    for text in expected:
        assert text in found["error"], found["error"]
