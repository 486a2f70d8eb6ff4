"""The trainer of the command line: a plain ``lightning.Trainer``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from recdistill_core.errors import RecdistillError, UsageError
from recdistill_lightning import TrainerConfig
from recdistill_lightning.data import DistillationDataModule

logger = logging.getLogger(__name__)
FEW_UPDATES = 100


class LightningTrainer:
    """Builds a fresh ``L.Trainer`` for each fit. Its own checkpoints are off: weights are saved as safetensors."""

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Sequence[Any], out: Path, title: str) -> None:
        """See :meth:`recdistill_core.interfaces.Trainer.fit`.

        Raises:
            UsageError: if Lightning would have to start the other processes: it would run the whole command again.
            RecdistillError: if training was interrupted by a signal; Lightning alone would end the process, with
                exit code 0 after SIGTERM.
        """
        out.mkdir(parents=True, exist_ok=True)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        bar = [RichProgressBar(leave=False)] if sys.stderr.isatty() else []
        config = self.config
        updates = _tell_updates(data, config.accumulate_grad_batches, title)
        with warnings.catch_warnings():
            # one process reads memory-mapped columns faster than workers could copy them; there is no validation here
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*logging interval.*")
            warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
            trainer = _trainer(
                accelerator=config.accelerator,
                devices=config.devices,
                strategy=_strategy(config.strategy),
                num_nodes=config.num_nodes,
                precision=config.precision,
                gradient_clip_val=config.gradient_clip_val or None,
                accumulate_grad_batches=config.accumulate_grad_batches,
                log_every_n_steps=max(1, min(config.log_every_n_steps, updates)),
                max_epochs=epochs,
                callbacks=[*callbacks, *bar],
                logger=CSVLogger(out, name="", version=""),
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=bool(bar),
                num_sanity_val_steps=0,
                limit_val_batches=0,
                use_distributed_sampler=False,
            )
            _require_started(trainer)
            stopped: SystemExit | None = None
            with _environment_kept():
                try:
                    trainer.fit(module, datamodule=data)
                except SystemExit as stop:  # Lightning's answer to SIGINT and SIGTERM; for SIGTERM it says 0
                    stopped = stop
        if stopped is not None or trainer.received_sigterm:
            raise RecdistillError(
                f"{title} was interrupted", fix="run the same command again; finished steps are kept"
            ) from stopped


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Lightning tells itself by variables such as LOCAL_RANK that processes were started, and leaves them there.

    A later fit of this process with two devices would take itself for a started one, and wait for the other.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _strategy(name: str) -> Any:
    """What ``L.Trainer`` takes as strategy."""
    if name != "fsdp2":
        return name
    from recdistill_lightning.sharding import FSDP2Strategy  # torch takes seconds to import FSDP

    return FSDP2Strategy()


def _require_started(trainer: L.Trainer) -> None:
    """Refuse to start processes by running the command of this one again."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and environment is not None and not environment.creates_processes_externally:
        raise UsageError(
            f"these settings take {trainer.world_size} processes, and this is the only one",
            where="trainer: devices, num_nodes",
            fix='set devices: "1", or train in several processes with a script that torchrun starts, as '
            "docs/sharded-training.md shows; a run may read the labels that it writes",
        )


def _trainer(**settings: Any) -> L.Trainer:
    """``L.Trainer(**settings)``, its refusals as ours."""
    try:
        return L.Trainer(**settings)
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(
            f"Lightning refuses the trainer's settings: {str(error).splitlines()[0]}",
            where="trainer",
            fix="'recdistill plugins show lightning' lists the settings; accelerator 'auto' takes what there is",
        ) from error


def _tell_updates(data: Any, accumulate: int, title: str) -> int:
    """Say how many updates a fit will make, and warn where they are few; returns their number."""
    if not isinstance(data, DistillationDataModule):
        return sys.maxsize
    updates = data.updates(accumulate)
    logger.info("%s: %s updates in %s passes", title, f"{updates:,}", data.epochs)
    if updates < FEW_UPDATES:
        logger.warning("%s: so few updates rarely train a model; lower batch_size or raise batch_epochs", title)
    return updates
