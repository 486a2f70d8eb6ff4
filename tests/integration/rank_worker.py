"""What one of the processes that train together does; ``test_ranks`` starts them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from pipeline_cases import STUDENT, data_module, fit, teacher_module
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from recdistill_core import BuildContext, Objective, TeacherSignal, installed, make
from recdistill_core.errors import RecdistillError
from recdistill_core.interfaces import SampleSource
from recdistill_lightning import (
    LogitCapture,
    Optimisation,
    ReadOrder,
    StudentModule,
    TeacherModule,
    TrainedExamples,
    capture_after_training,
    load_sharded,
    save_full_weights,
)
from recdistill_lightning.sharding import FSDP2Strategy
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_prune import GrowPrune, IdeaPrune

#: Windows of this order end in batches of one request, of which one of two processes has nothing.
ORDER = ReadOrder(batch_size=86, window_hours=48, within="user")
ROWS, TEST, SAVE_AT, DIE_AT = 2000, (2000, 2300), 7, 5


class Losses(L.Callback):
    """The logged loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.values.append(float(trainer.callback_metrics["train/click/main/hard"]))


class Save(L.Callback):
    """A checkpoint in the midst of the first epoch, and one at its end."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == SAVE_AT:
            trainer.save_checkpoint(self.out / "mid.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.out / "end.ckpt")


class Die(L.Callback):
    """Ends one process without a word, as a machine that loses its power does."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == DIE_AT and trainer.global_rank == self.rank:
            os._exit(9)


def world() -> int:
    return int(os.environ.get("RANKS", "1"))  # Lightning takes WORLD_SIZE away after a fit


def teacher(source: SampleSource, **settings: Any) -> TeacherModule:
    """In float64, so that what remains between two ways of adding up is nothing but the order of the sums.

    Only the first process has the weights that all of them must start from.
    """
    module = teacher_module(source, layers=2, **settings)
    module.teacher.double()
    module.optimisation = Optimisation(lr=1e-3, warmup_steps=5, decay=True)
    if os.environ.get("RANK", "0") != "0":
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
    return module


def train(source: SampleSource, out: Path, strategy: Any, *callbacks: L.Callback, **settings: Any) -> TeacherModule:
    """Two passes with a capture, validated at their end; leaves weights, labels and what it found in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    module = teacher(source)
    module.measures = torch.nn.ModuleDict({name: make(installed(), "metric", name) for name in ("ne", "gauc")})
    data = data_module(source, module, rows=ROWS, order=ORDER, test=TEST, batch_epochs=2)
    capture, losses = LogitCapture(ParquetLogitStore(out / "labels")), Losses()
    trainer = fit(module, data, capture, losses, *callbacks, strategy=strategy, devices=world(), **settings)
    save_full_weights(module, out / "model.safetensors")
    leave(
        out,
        losses=losses.values,
        trained=module.trained.ids().tolist(),
        steps=trainer.global_step,
        committed=capture.committed and [capture.committed.version, capture.committed.count],
        sharded=[name for name, part in module.named_modules() if isinstance(part, FSDPModule)],
        metrics={name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
    )
    return module


def go_on(source: SampleSource, out: Path, checkpoint: Path, strategy: Any) -> None:
    """Train on from a checkpoint; leaves weights and what the teacher was trained on."""
    out.mkdir(parents=True, exist_ok=True)
    module = teacher(source)
    data = data_module(source, module, rows=ROWS, order=ORDER, batch_epochs=2)
    trainer = fit(module, data, strategy=strategy, devices=world(), checkpoint=checkpoint)
    save_full_weights(module, out / "model.safetensors")
    leave(out, trained=module.trained.ids().tolist(), steps=trainer.global_step)


def leave(out: Path, **found: Any) -> None:
    """What this process found, as JSON."""
    (out / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def ddp(source: SampleSource, out: Path) -> None:
    train(source, out, "ddp", Save(out))


def fsdp2(source: SampleSource, out: Path) -> None:
    module = train(source, out, FSDP2Strategy(), Save(out))
    rows = torch.arange(*TEST).numpy()
    batches = [source.batch(part, module.history) for part in (rows[:150], rows[150:299], rows[299:])]
    store = ParquetLogitStore(out / "after")
    made = capture_after_training(module, batches, store, view="v", facts={}, source=source)
    assert (made.count, made.version) == (300, module.teacher.fingerprint())


def clipped(source: SampleSource, out: Path) -> None:
    train(source, out, FSDP2Strategy(), gradient_clip_val=0.05, accumulate_grad_batches=2)


def mixed(source: SampleSource, out: Path, strategy: Any = None) -> None:
    """Layers are gathered in bfloat16, and their gradients added up in float32."""
    out.mkdir(parents=True, exist_ok=True)
    module = teacher(source)
    module.teacher.float()
    data, losses = data_module(source, module, rows=ROWS, order=ORDER), Losses()
    settings = {"devices": world(), "precision": "bf16-mixed", "strategy": strategy or FSDP2Strategy()}
    fit(module, data, losses, **settings)
    leave(out, losses=losses.values, types=sorted({str(parameter.dtype) for parameter in module.parameters()}))


def student(source: SampleSource, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    module = a_student(source)
    fit(module, student_data(source, module), strategy="ddp", devices=world())
    save_full_weights(module, out / "model.safetensors")


def pruned(source: SampleSource, out: Path) -> None:
    for name, pruning in prunings().items():
        module = a_student(source)
        torch.manual_seed(int(os.environ.get("RANK", "0")))  # what is drawn must be the first process's
        fit(module, student_data(source, module), pruning, strategy="ddp", devices=world())
        (out / name).mkdir(parents=True, exist_ok=True)
        save_full_weights(module, out / name / "model.safetensors")


def prunings() -> dict[str, L.Callback]:
    return {"idea": IdeaPrune(enlarge=3.0, cuts=2), "grow": GrowPrune(cycles=1)}


def a_student(source: SampleSource) -> StudentModule:
    torch.manual_seed(3)
    built = make(installed(), "student", {"name": "mlp", **STUDENT}, BuildContext(source.schema, ("click",)))
    objective = Objective("click", make(installed(), "strategy", "rec_distill"), make(installed(), "loss", "soft_ce"))
    return StudentModule(built, {"click": objective})


def student_data(source: SampleSource, module: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    logits, valid = torch.randn(source.num_rows, generator=generator), torch.rand(source.num_rows, generator=generator)
    labels = TeacherSignal({"click": logits}, {"click": valid > 0.3}, version="made up")
    return data_module(source, module, rows=ROWS, order=ReadOrder(127, 48, "shuffle"), labels=labels)


def resume(source: SampleSource, out: Path) -> None:
    for name in ("mid", "end"):
        go_on(source, out / name, Path(os.environ["CHECKPOINTS"]) / f"{name}.ckpt", FSDP2Strategy())


def resume_ddp(source: SampleSource, out: Path) -> None:
    go_on(source, out, Path(os.environ["CHECKPOINTS"]) / "mid.ckpt", "ddp")


def plain(source: SampleSource, out: Path) -> None:
    """Without a Trainer: the weights of a sharded checkpoint in a module that is not sharded."""
    out.mkdir(parents=True, exist_ok=True)
    module = teacher(source)
    load_sharded(Path(os.environ["CHECKPOINTS"]) / "mid.ckpt", module)
    save_full_weights(module, out / "model.safetensors")


def second_dies(source: SampleSource, out: Path) -> None:
    train(source, out, "ddp", Die(1))


def first_dies(source: SampleSource, out: Path) -> None:
    train(source, out, FSDP2Strategy(), Die(0))


def seen_before(source: SampleSource, out: Path) -> None:
    """An example of the second process's share was trained on before."""
    refused(out, LogitCapture(ParquetLogitStore(out / "labels"), trained=TrainedExamples(seen(source))), source)


def seen(source: SampleSource) -> Any:
    module = teacher(source)
    data = data_module(source, module, rows=ROWS, order=ORDER)
    return list(data.training_batches())[3].example_id.numpy()[-1:]


def refused(out: Path, callback: L.Callback, source: SampleSource) -> None:
    out.mkdir(parents=True, exist_ok=True)
    module = teacher(source)
    try:
        fit(module, data_module(source, module, rows=ROWS, order=ORDER), callback, strategy="ddp", devices=world())
    except RecdistillError as error:
        leave(out, kind=type(error).__name__, text=str(error))


def no_share(source: SampleSource, out: Path) -> None:
    """Batches of the user's own that do not say what the other process has."""
    out.mkdir(parents=True, exist_ok=True)
    module = teacher(source)
    batches = DataLoader([source.batch(torch.arange(10).numpy(), module.history)], batch_size=None)  # type: ignore[arg-type]  # a list will do
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        L.Trainer(max_epochs=1, accelerator="cpu", devices=world(), strategy="ddp", **quiet).fit(module, batches)
    except RecdistillError as error:
        leave(out, kind=type(error).__name__, text=str(error))


SCENARIOS: dict[str, Callable[[SampleSource, Path], None]] = {
    entry.__name__: entry
    for entry in (
        ddp,
        fsdp2,
        clipped,
        mixed,
        student,
        pruned,
        resume,
        resume_ddp,
        plain,
        second_dies,
        first_dies,
        seen_before,
        no_share,
    )
}


def run(dataset: Path, out: Path, scenarios: tuple[str, ...], surroundings: Mapping[str, str], log: Path) -> None:
    """Run scenarios as the process that the environment says; what it says goes to ``log``."""
    os.environ.update(surroundings)
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for scenario in scenarios:
        SCENARIOS[scenario](ParquetSource(dataset), out / scenario)
