"""What ``IdeaPrune`` and ``GrowPrune`` share: which neurons take part, how much they matter, and when that changes."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from recdistill_core.errors import UsageError
from recdistill_core.ranks import from_first, sum_over_ranks
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.modules import StudentModule
from recdistill_prune.neurons import HiddenLayer, erase, hidden_layers, mask_gradients, regrow

logger = logging.getLogger(__name__)
Widths = dict[str, int]


class Pruning(L.Callback):
    """Masks, importance, and a plan of widths over batches.

    An erased neuron has weights, gradients and optimiser moments of exactly 0 until it is grown again. A neuron's
    importance is the mean over rows of ``|h * dL/dh|``, ``h`` its activation, since the last change of width: the first
    order of what the loss of a row changes by when the neuron goes (Molchanov et al., CVPR 2019, arXiv 1906.10771).

    Attributes:
        live: ``{layer: [W] bool}``, which neurons take part.
        batches: training batches so far. plan: ``{batch after which widths change: widths}``.
    """

    def __init__(self, seed: int | None) -> None:
        self.live: dict[str, Tensor] = {}
        self.batches = 0
        self.plan: dict[int, Widths] = {}
        self._given_seed, self._seed = seed, 0
        self._score: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._layers: dict[str, HiddenLayer] = {}
        self._finished = False

    def targets(self, total: int, start: Widths) -> dict[int, Widths]:
        """``{batch after which widths change: widths}`` of a fit of ``total`` batches."""
        raise NotImplementedError

    def prepare(self, module: StudentModule) -> None:
        """Give the student the width with which training starts."""

    @property
    def widths(self) -> Widths:
        """Neurons that take part now, by layer."""
        return {name: int(live.sum()) for name, live in self.live.items()}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the module; what a checkpoint holds comes after this, and finds the widths of the start."""
        if stage != "fit":
            return
        name = type(self).__name__
        if not isinstance(pl_module, StudentModule):
            raise UsageError(
                f"{name} needs a StudentModule, got {type(pl_module).__name__}",
                fix="wrap the student in recdistill_lightning.StudentModule",
            )
        if self._finished:
            raise UsageError(f"this {name} has done its work in an earlier fit", fix="make a new one for every fit")
        # all processes must draw the same
        self._seed = from_first(torch.initial_seed() if self._given_seed is None else self._given_seed)
        self.prepare(pl_module)
        layers = hidden_layers(pl_module)
        self.live = {key: torch.ones(layer.width, dtype=torch.bool) for key, layer in layers.items()}
        self._score = {key: torch.zeros(layer.width) for key, layer in layers.items()}
        self.batches = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plan the changes of width, and listen to the neurons."""
        if pl_module.device_mesh is not None:
            raise UsageError(
                f"{type(self).__name__} cannot prune a model that is cut over processes",
                where="lightning.Trainer(strategy=...)",
                fix="train a student with strategy 'auto' or 'ddp'; it is small enough",
            )
        self._layers = hidden_layers(pl_module)
        self.plan = self.targets(_total_batches(trainer), {name: layer.width for name, layer in self._layers.items()})
        for name, layer in self._layers.items():
            self._score[name] = self._score[name].to(layer.before.weight.device)
            self._hooks.append(layer.after.register_forward_pre_hook(functools.partial(self._listen, name)))

    def _listen(self, name: str, linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the rows' ``|h * dL/dh|`` to the importance of a layer's neurons, once the gradient is known."""
        found = inputs[0]
        if linear.training and found.requires_grad and self.batches < max(self.plan, default=0):
            plain = found.detach()

            def add(gradient: Tensor) -> None:
                self._score[name] += (plain * gradient).abs().reshape(-1, plain.shape[-1]).sum(0)

            found.register_hook(add)  # type: ignore[no-untyped-call]  # torch ships it without types

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Keep gradients off erased neurons."""
        for name, layer in self._layers.items():
            mask_gradients(layer, self.live[name])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Change the widths where the plan says so."""
        self.batches += 1
        if self.batches not in self.plan:
            return
        draw = torch.Generator().manual_seed(self._seed + self.batches)
        for name, layer in self._layers.items():
            width = self.plan[self.batches][name]
            score, live = sum_over_ranks(self._score[name]).cpu(), self.live[name]
            if width < int(live.sum()):
                kept = torch.where(live, score, -1.0).argsort(descending=True, stable=True)[:width]
                self.live[name] = torch.zeros_like(live).index_fill(0, kept, True)
                erase(layer, ~self.live[name], trainer.optimizers)
            elif width > int(live.sum()):
                back = (~live).nonzero()[: width - int(live.sum()), 0]
                new = torch.zeros_like(live).index_fill(0, back, True)
                self.live[name] = live | new
                regrow(layer, new, draw)
            self._score[name].zero_()
        logger.info("batch %s: widths %s", f"{self.batches:,}", self.widths)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._layers = [], {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self.on_train_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where training ended before the last change of width."""
        last = max(self.plan, default=0)
        if self.batches < last:
            logger.warning(
                "%s: training ended after batch %s, the last change of width is due after batch %s; the student keeps "
                "its erased neurons",
                type(self).__name__,
                f"{self.batches:,}",
                f"{last:,}",
            )
        else:
            self._finished = True

    def state_dict(self) -> dict[str, Any]:
        """Masks, importance and place in the plan, for Lightning's checkpoints."""
        score = {name: value.cpu() for name, value in self._score.items()}
        return {"batches": self.batches, "live": dict(self.live), "score": score, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        self.batches, self._seed = state_dict["batches"], state_dict["seed"]
        self.live, self._score = dict(state_dict["live"]), dict(state_dict["score"])


def _total_batches(trainer: L.Trainer) -> int:
    """Training batches of the whole fit, of this process."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, DistillationDataModule):
        return data.total_steps
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:  # Lightning says -1 where neither batches nor steps are known
        raise UsageError(
            "the length of the training is not known, and with it the places where widths change",
            where="lightning.Trainer",
            fix="give max_epochs or max_steps",
        )
    return int(steps) * trainer.accumulate_grad_batches
