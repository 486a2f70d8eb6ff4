"""The trainer itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.profilers import SimpleProfiler
from recdistill_core.errors import RecdistillError

from recdistill_myplugin import MyPluginConfig


class MyPluginTrainer:
    """Builds a fresh ``L.Trainer`` for each fit. It saves no checkpoint: a run saves the weights itself.

    Args:
        config: holds ``clip`` and ``accelerator``.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        self.config = config

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Sequence[Any], out: Path, title: str) -> None:
        """Train ``module`` in place.

        Args:
            module: a ``LightningModule``. data: a ``LightningDataModule``.
            epochs: passes to make; the data module says what each of them reads.
            callbacks: must run; one of them captures the teacher's logits.
            out: folder for the profile; nothing is written outside it.
            title: names the fit in messages.

        Raises:
            RecdistillError: if a signal interrupted it; Lightning alone would end the process, with exit code 0.
        """
        out.mkdir(parents=True, exist_ok=True)
        trainer = L.Trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            accelerator=self.config.accelerator,
            devices=1,
            gradient_clip_val=self.config.clip,
            profiler=SimpleProfiler(dirpath=out, filename="profile"),
            default_root_dir=out,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        stopped: SystemExit | None = None
        with warnings.catch_warnings():
            # one process reads memory-mapped columns faster than workers could copy them
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
            try:
                trainer.fit(module, datamodule=data)
            except SystemExit as stop:
                stopped = stop
        if stopped is not None or trainer.received_sigterm:
            raise RecdistillError(f"{title} was interrupted", fix="run the same command again") from stopped
