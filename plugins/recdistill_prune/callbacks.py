"""The callbacks: when a student's hidden layers change their width, and to what."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from recdistill_core.errors import UsageError, suggest
from recdistill_lightning.modules import StudentModule
from recdistill_prune import check_cycles, check_schedule
from recdistill_prune.masks import Pruning, Widths
from recdistill_prune.neurons import hidden_layers, shrink, widen

logger = logging.getLogger(__name__)


class IdeaPrune(Pruning):
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


class GrowPrune(Pruning):
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
