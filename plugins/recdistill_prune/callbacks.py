"""Lightning callbacks that change how many hidden neurons of a student take part in training."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from recdistill_core.errors import UsageError, suggest
from recdistill_core.ranks import sum_over_ranks
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.modules import StudentModule
from recdistill_prune import check_cycles, check_schedule
from recdistill_prune.neurons import erase, hidden_layers, mask_gradients, regrow, shrink, widen

logger = logging.getLogger(__name__)
Widths = dict[str, int]


class _Pruning(L.Callback):
    """What both callbacks share: masks, importance, and a plan of widths over batches.

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
        self._seed = torch.initial_seed() if self._given_seed is None else self._given_seed
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
        layers = hidden_layers(pl_module)
        self.plan = self.targets(_total_batches(trainer), {name: layer.width for name, layer in layers.items()})
        for name, layer in layers.items():
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
        for name, layer in hidden_layers(pl_module).items():
            mask_gradients(layer, self.live[name])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Change the widths where the plan says so."""
        self.batches += 1
        if self.batches not in self.plan:
            return
        draw = torch.Generator().manual_seed(self._seed + self.batches)
        for name, layer in hidden_layers(pl_module).items():
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
        self._hooks = []

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


class IdeaPrune(_Pruning):
    """Train an enlarged student, prune it step by step, let it recover, in one fit (IDEA Prune, arXiv 2503.05920).

    The widths of hidden layers fall in equal cuts; see :func:`recdistill_prune.hidden_layers` for which these are. When
    the fit has ended the module is really smaller. The learning rate should have one schedule over the whole fit
    (``OneCosine``, or ``decay=True``); where it rises after the first cut a warning says so.

    Args:
        enlarge: > 1: the student is given this many times its hidden neurons before training, and ends as it was built.
        final: the other way: start with the student as built, and end with this share of its neurons, in (0, 1), or
            with these widths ``{layer: W}``; layers that are not named keep theirs. Give this or ``enlarge``.
        begin, end: shares of the batches, ``0 < begin <= end < 1``, after which the first and the last cut is made.
        cuts: number of cuts, >= 1.
        seed: of the weights that are drawn; None: torch's initial seed. No global generator is drawn from.

    Attributes:
        recovering: True once the last cut is made.

    Raises:
        ValueError: if a setting is out of range.
        UsageError: at the start of the fit, if there is nothing to prune, a width is larger than the layer's, or the
            cuts do not fit in the training.
    """

    def __init__(
        self,
        *,
        enlarge: float | None = None,
        final: float | Mapping[str, int] | None = None,
        begin: float = 0.25,
        end: float = 0.6,
        cuts: int = 10,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        if (enlarge is None) == (final is None):
            raise ValueError("give either enlarge or final")
        if isinstance(final, float | int) and not 0.0 < final < 1.0:
            raise ValueError(f"final must lie in (0, 1) or name widths, got {final}")
        check_schedule(begin, end, cuts, 2.0 if enlarge is None else enlarge)
        self.enlarge, self.final = enlarge, final
        self.begin, self.end, self.cuts = begin, end, cuts
        self._start: Widths = {}
        self._end: Widths = {}
        self._rate, self._told = math.inf, False

    def prepare(self, module: StudentModule) -> None:
        """See :class:`IdeaPrune`."""
        built = {name: layer.width for name, layer in hidden_layers(module).items()}
        if self.enlarge is None:
            self._end = _final_widths(built, self.final)
        elif built != self._start:  # it is, where a fit that was interrupted begins anew
            self._start = {name: math.ceil(width * self.enlarge) for name, width in built.items()}
            self._end = built
            widen(module, self._start, torch.Generator().manual_seed(self._seed))
        self._rate, self._told = math.inf, False

    def targets(self, total: int, start: Widths) -> dict[int, Widths]:
        """See :class:`IdeaPrune`."""
        first, last = max(1, int(self.begin * total)), int(self.end * total)
        if last - first + 1 < self.cuts or last >= total:
            raise UsageError(
                f"{self.cuts} cuts do not fit in a training of {total} batches, between batch {first} and {last}",
                where="IdeaPrune",
                fix="train longer, in smaller batches, or with fewer cuts",
            )
        spaces = max(1, self.cuts - 1)
        places = [first + (last - first) * number // spaces for number in range(self.cuts)]
        return {
            place: {name: width - (width - self._end[name]) * number // self.cuts for name, width in start.items()}
            for number, place in enumerate(places, 1)
        }

    @property
    def recovering(self) -> bool:
        """True once the last cut is made."""
        return bool(self.plan) and self.batches >= max(self.plan)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Cut where the plan says so, and look whether the learning rate rises again."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.batches < min(self.plan) or self._told:
            return
        rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        if self._rate < rate:
            logger.warning(
                "IdeaPrune: the learning rate rises from %.3g to %.3g at batch %s, after the first cut; use one "
                "schedule without a second warm-up, such as recdistill_prune.OneCosine",
                self._rate,
                rate,
                f"{self.batches:,}",
            )
            self._told = True
        self._rate = rate

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the erased neurons out of the module."""
        super().on_fit_end(trainer, pl_module)
        if self._finished:
            shrink(pl_module, self.live)


class GrowPrune(_Pruning):
    """Narrow phases between wide ones; training ends at full size (alternate growth and pruning, arXiv 2105.01064).

    The batches are shared out as ``wide, narrow, wide, ..., narrow, wide``: ``cycles`` narrow phases of equal length,
    and ``cycles + 1`` wide ones. A narrow phase begins by erasing the least important neurons of every hidden layer. It
    ends by growing them again, with new incoming weights and outgoing weights of 0: nothing that the student says
    changes by that.

    Args:
        keep: share of the neurons of a layer that a narrow phase keeps, in (0, 1), rounded up.
        narrow: share of the batches that belong to narrow phases, in (0, 1).
        cycles: number of narrow phases, >= 1.
        seed: see :class:`IdeaPrune`.
    """

    def __init__(self, *, keep: float = 0.5, narrow: float = 0.5, cycles: int = 2, seed: int | None = None) -> None:
        super().__init__(seed)
        check_cycles(keep, narrow, cycles)
        self.keep, self.narrow, self.cycles = keep, narrow, cycles

    def targets(self, total: int, start: Widths) -> dict[int, Widths]:
        """See :class:`GrowPrune`."""
        wide, narrow = (1.0 - self.narrow) * total / (self.cycles + 1), self.narrow * total / self.cycles
        small = {name: math.ceil(width * self.keep) for name, width in start.items()}
        plan: dict[int, Widths] = {}
        for number in range(self.cycles):
            place = wide + number * (wide + narrow)
            plan[int(place)] = small
            plan[int(place + narrow)] = start
        edges = [0, *plan, total]
        if len(plan) < 2 * self.cycles or any(before >= after for before, after in itertools.pairwise(edges)):
            raise UsageError(
                f"{self.cycles} narrow phases and {self.cycles + 1} wide ones do not fit in {total} batches",
                where="GrowPrune",
                fix="train longer, in smaller batches, or with fewer cycles",
            )
        return plan


def _final_widths(built: Widths, final: float | Mapping[str, int] | None) -> Widths:
    """The widths that ``final`` stands for, of layers with the widths ``built``."""
    if not isinstance(final, Mapping):
        return {name: math.ceil(width * (final or 1.0)) for name, width in built.items()}
    known = ", ".join(f"{name}: {width}" for name, width in built.items())
    wrong = [name for name in final if name not in built]
    if wrong:
        raise UsageError(
            f"the student has no hidden layer {wrong[0]!r}{suggest(wrong[0], built)}",
            where="IdeaPrune",
            fix=f"it has {known}",
        )
    for name, width in final.items():
        if not 1 <= width <= built[name]:
            raise UsageError(
                f"final width {width} of {name} does not lie in [1, {built[name]}]",
                where="IdeaPrune",
                fix=f"pruning starts from {known}; build a wider student, or give enlarge",
            )
    return {**built, **final}


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
