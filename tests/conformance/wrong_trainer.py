"""Trainers that break their contract: the shipped one with one fault each."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from wrong import Wrong, wrong

from recdistill_lightning import TrainerConfig
from recdistill_lightning.trainer import LightningTrainer


class Trainer(LightningTrainer):
    """``lightning.Trainer`` on the CPU."""

    def __init__(self) -> None:
        super().__init__(TrainerConfig(accelerator="cpu"))


class Copying(Trainer):
    """Trains a copy."""

    def fit(self, module: Any, data: Any, **more: Any) -> None:
        super().fit(copy.deepcopy(module), data, **more)


class Exploding(Trainer):
    """Ends in numbers that are none."""

    def fit(self, module: Any, data: Any, **more: Any) -> None:
        super().fit(module, data, **more)
        with torch.no_grad():
            next(module.parameters()).fill_(float("nan"))


class Hasty(Trainer):
    """One pass, whatever is asked for."""

    def fit(self, module: Any, data: Any, *, epochs: int, **more: Any) -> None:
        super().fit(module, data, epochs=1, **more)


class Sampling(Trainer):
    """Half of the rows of each pass."""

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Any, out: Path, title: str) -> None:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), limit_train_batches=3, **quiet
        )
        trainer.fit(module, datamodule=data)


class Deaf(Trainer):
    """Forgets the callbacks."""

    def fit(self, module: Any, data: Any, *, callbacks: Any, **more: Any) -> None:
        super().fit(module, data, callbacks=[], **more)


class Untidy(Trainer):
    """Writes into the current folder."""

    def fit(self, module: Any, data: Any, **more: Any) -> None:
        super().fit(module, data, **more)
        Path("notes.txt").write_text("done")


class Beside(Trainer):
    """Writes beside the folder that it was given."""

    def fit(self, module: Any, data: Any, *, out: Path, **more: Any) -> None:
        super().fit(module, data, out=out, **more)
        out.with_name("checkpoints").mkdir()


class Restless(Trainer):
    """Starts from weights that no seed reaches."""

    fits = 0

    def fit(self, module: Any, data: Any, **more: Any) -> None:
        Restless.fits += 1
        with torch.no_grad():
            next(module.parameters()).add_(0.01 * Restless.fits)
        super().fit(module, data, **more)


class Swallowing(Trainer):
    """Goes on, whatever happens."""

    def fit(self, module: Any, data: Any, **more: Any) -> None:
        with contextlib.suppress(Exception):
            super().fit(module, data, **more)


class Hiding(Trainer):
    """Says that something happened, and not what."""

    def fit(self, module: Any, data: Any, **more: Any) -> None:
        failed = False
        try:
            super().fit(module, data, **more)
        except Exception:
            failed = True
        if failed:
            raise RuntimeError("training failed")


def trainer(check: str, kind: Callable[[], Any], fault: str) -> Wrong:
    return wrong(check, "trainer", lambda config, context: kind(), fault)


WRONG = [
    trainer("the_modules_own_parameters_move", Copying, "leaves parameters as they were: "),
    trainer("the_modules_own_parameters_move", Exploding, "makes parameters NaN or infinite"),
    trainer("every_epoch_is_run", Hasty, "makes 1 passes; 3 were asked for"),
    trainer("every_epoch_is_run", Sampling, "reads 48 rows in pass 1; the data has 96"),
    trainer("callbacks_are_run", Deaf, "calls on_fit_start of a callback 0 times; 1 were due"),
    trainer("it_writes_only_below_out", Untidy, "writes notes.txt outside the folder that it was given"),
    trainer("it_writes_only_below_out", Beside, "writes checkpoints outside the folder that it was given"),
    trainer("one_seed_gives_one_set_of_weights", Restless, "ends in other weights under one seed: "),
    trainer("an_exception_reaches_the_caller", Swallowing, "swallows an exception of a training step"),
    trainer("an_exception_reaches_the_caller", Hiding, "raises RuntimeError for a step that failed, without its cause"),
]
