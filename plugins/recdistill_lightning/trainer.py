"""The trainer of the command line: a plain ``lightning.Trainer``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from recdistill_core.errors import RecdistillError
from recdistill_lightning import TrainerConfig


class LightningTrainer:
    """Builds a fresh ``L.Trainer`` for each fit. Its own checkpoints are off: weights are saved as safetensors."""

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Sequence[Any], out: Path, title: str) -> None:
        """See :meth:`recdistill_core.interfaces.Trainer.fit`.

        Raises:
            RecdistillError: if training was interrupted by a signal; Lightning alone would end the process, with
                exit code 0 after SIGTERM.
        """
        out.mkdir(parents=True, exist_ok=True)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        bar = [RichProgressBar(leave=False)] if sys.stderr.isatty() else []
        config = self.config
        with warnings.catch_warnings():
            # one process reads memory-mapped columns faster than workers could copy them; there is no validation here
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*logging interval.*")
            warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
            trainer = L.Trainer(
                accelerator=config.accelerator,
                devices=config.devices,
                strategy=config.strategy,
                precision=config.precision,  # type: ignore[arg-type]  # a string of Lightning's own vocabulary
                gradient_clip_val=config.gradient_clip_val or None,
                accumulate_grad_batches=config.accumulate_grad_batches,
                log_every_n_steps=config.log_every_n_steps,
                max_epochs=epochs,
                callbacks=[*callbacks, *bar],
                logger=CSVLogger(out, name="", version="log"),
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=bool(bar),
                num_sanity_val_steps=0,
                limit_val_batches=0,
                use_distributed_sampler=False,
            )
            stopped: SystemExit | None = None
            try:
                trainer.fit(module, datamodule=data)
            except SystemExit as stop:  # Lightning's answer to SIGINT and SIGTERM; for SIGTERM it says 0
                stopped = stop
        if stopped is not None or trainer.received_sigterm:
            raise RecdistillError(
                f"{title} was interrupted", fix="run the same command again; finished steps are kept"
            ) from stopped
