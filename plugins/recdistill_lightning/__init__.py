"""Lightning wiring: modules, data module and callbacks for one's own trainer script.

Importing a name here imports Lightning; the hook module itself does not.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recdistill_core import BuildContext, Component, hookimpl
from recdistill_core.errors import suggest

if TYPE_CHECKING:
    from recdistill_lightning.candidates import CandidateDraw, CandidateItems, CandidateLabels
    from recdistill_lightning.capture import LogitCapture
    from recdistill_lightning.capture_after import capture_after_training
    from recdistill_lightning.checkpoints import load_sharded, save_sharded
    from recdistill_lightning.data import DistillationDataModule, ReadOrder, align_labels, read_labels
    from recdistill_lightning.embedding_snapshot import EmbeddingSnapshot
    from recdistill_lightning.embeddings import EmbeddingDistillation, IdEmbeddings
    from recdistill_lightning.feature_view import FeatureView
    from recdistill_lightning.folds import Fold, make_folds
    from recdistill_lightning.modules import Optimisation, StudentModule, TeacherModule
    from recdistill_lightning.sharding import FSDP2Strategy, save_full_weights
    from recdistill_lightning.state_capture import StateCapture, states_after_training, states_with_later
    from recdistill_lightning.state_compressor import StateCompressor
    from recdistill_lightning.state_source import StateSource
    from recdistill_lightning.states import States, read_states, write_states
    from recdistill_lightning.trained import TrainedExamples

_HOMES = {
    "CandidateDraw": "candidates",
    "CandidateLabels": "candidates",
    "CandidateItems": "candidates",
    "DistillationDataModule": "data",
    "EmbeddingDistillation": "embeddings",
    "EmbeddingSnapshot": "embedding_snapshot",
    "FSDP2Strategy": "sharding",
    "FeatureView": "feature_view",
    "Fold": "folds",
    "IdEmbeddings": "embeddings",
    "LogitCapture": "capture",
    "Optimisation": "modules",
    "ReadOrder": "data",
    "StateCapture": "state_capture",
    "StateCompressor": "state_compressor",
    "StateSource": "state_source",
    "States": "states",
    "StudentModule": "modules",
    "TeacherModule": "modules",
    "TrainedExamples": "trained",
    "capture_after_training": "capture_after",
    "align_labels": "data",
    "load_sharded": "checkpoints",
    "make_folds": "folds",
    "read_labels": "data",
    "read_states": "states",
    "states_after_training": "state_capture",
    "states_with_later": "state_capture",
    "write_states": "states",
    "save_full_weights": "sharding",
    "save_sharded": "checkpoints",
}

__all__ = [
    "CandidateDraw",
    "CandidateItems",
    "CandidateLabels",
    "DistillationDataModule",
    "EmbeddingDistillation",
    "EmbeddingSnapshot",
    "FSDP2Strategy",
    "FeatureView",
    "Fold",
    "IdEmbeddings",
    "LogitCapture",
    "Optimisation",
    "ReadOrder",
    "StateCapture",
    "StateCompressor",
    "StateSource",
    "States",
    "StudentModule",
    "TeacherModule",
    "TrainedExamples",
    "align_labels",
    "capture_after_training",
    "load_sharded",
    "make_folds",
    "read_labels",
    "read_states",
    "save_full_weights",
    "save_sharded",
    "states_after_training",
    "states_with_later",
    "write_states",
]


STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"recdistill_lightning.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'recdistill_lightning' has no attribute {name!r}")


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of ``lightning.Trainer``; the names are Lightning's own.

    More than one process must be started by ``torchrun`` in a script of one's own; ``recdistill run`` trains in one.

    Attributes:
        accelerator, devices, precision: as for ``lightning.Trainer``.
        strategy: ``auto``, ``ddp`` (every process has the whole model), ``ddp_find_unused_parameters_true`` (for
            a model some of whose parameters take no part in some steps) or ``fsdp2`` (the model is cut over the
            processes; see ``recdistill_lightning.FSDP2Strategy``).
        num_nodes: machines, >= 1.
        gradient_clip_val: norm to clip gradients to, 0 for none. accumulate_grad_batches: >= 1.
        log_every_n_steps: steps between rows of the CSV log, >= 1.
    """

    accelerator: str = "auto"
    devices: str = "1"
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    gradient_clip_val: float = 0.0
    accumulate_grad_batches: int = 1
    log_every_n_steps: int = 50

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}"
                f"{suggest(self.strategy, STRATEGIES)}"
            )
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes must be >= 1, got {self.num_nodes}")
        if self.gradient_clip_val < 0:
            raise ValueError(f"gradient_clip_val must be >= 0, got {self.gradient_clip_val}")
        if min(self.accumulate_grad_batches, self.log_every_n_steps) < 1:
            raise ValueError(
                "accumulate_grad_batches and log_every_n_steps must be >= 1, got "
                f"{self.accumulate_grad_batches} and {self.log_every_n_steps}"
            )


def build(config: TrainerConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_lightning.trainer.LightningTrainer`."""
    from recdistill_lightning.trainer import LightningTrainer

    return LightningTrainer(config)


@hookimpl
def recdistill_trainers() -> list[Component]:
    """``lightning``."""
    example = {"accelerator": "cpu", "log_every_n_steps": 2}
    return [Component("lightning", TrainerConfig, build, "lightning.Trainer with a CSV log", example, api_version=1)]
