"""Position debiasers. Their parameters train with the student; serving never sees them.

Both rest on the position varying independently of relevance. Where a log always shows an item at one place, the item's
appeal and the place's are one number, and training divides it arbitrarily: :meth:`fit` warns.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import Debiaser
from recdistill_position.variation import measure

_LOG = logging.getLogger(__name__)


class _Positional(Debiaser):
    """One free number per position and task, in :attr:`free` ``[positions, T]``."""

    name: str

    def __init__(self, tasks: Sequence[str], positions: int, min_variation: float, initial: float) -> None:
        super().__init__()
        self.tasks, self.positions, self.min_variation = tuple(tasks), positions, min_variation
        self.free = nn.Embedding(positions, len(self.tasks))
        nn.init.constant_(self.free.weight, initial)
        self.variation: dict[str, float] = {}

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        """Measure whether the position varies given the item, and log a warning where it hardly does.

        Raises:
            DataError: if a batch has no positions, or a negative one.
        """
        self._task(task)
        rows = ((batch.item_id.cpu().numpy(), self.places(batch).cpu().numpy()) for batch in batches)
        self.variation[task] = share = measure(rows)
        if share < self.min_variation:
            _LOG.warning(
                "%s: of the variance of the position only %.1f%% is within items (min_variation is %g): the effect of "
                "the position cannot be told from that of the item; randomise some positions, or leave %s out",
                *(self.name, 100 * share, self.min_variation, self.name),
            )

    def places(self, batch: Batch) -> Tensor:
        """``[N]`` int64 positions in ``[0, positions)``; those further down become the last.

        Raises:
            DataError: if the batch has no positions, or a negative one.
        """
        if batch.position is None:
            raise DataError(
                "the batch has no positions",
                where=f"debiaser {self.name!r}",
                fix="import the log with a position column (0 = top)",
            )
        if bool((batch.position < 0).any()):
            row = int((batch.position < 0).nonzero()[0])
            raise DataError(
                f"position {int(batch.position[row])} is negative",
                where=f"debiaser {self.name!r}, row {row} of a batch, example {int(batch.example_id[row])}",
                fix="count positions from 0 at the top, and drop rows whose position is unknown",
            )
        return batch.position.clamp(max=self.positions - 1)

    def values(self, batch: Batch, task: str) -> Tensor:
        """``[N]`` free numbers of the rows' positions, float32, with gradient."""
        numbers: Tensor = self.free(self.places(batch))
        return numbers[:, self._task(task)].float()

    def _task(self, task: str) -> int:
        if task not in self.tasks:
            raise UsageError(
                f"debiaser {self.name!r} was not built for task {task!r}",
                where=f"its tasks: {', '.join(self.tasks) or 'none'}",
                fix="name the task when building it",
            )
        return self.tasks.index(task)


class PositionTower(_Positional):
    """``logit of the logged click = served logit + bias[position]`` (Zhao et al., RecSys 2019, section 4.3).

    The position is hidden from ``drop`` of the training rows, whose offset is 0. This keeps the served logit at the
    level of the average position; without it only the sum of the two would be determined.

    Args:
        tasks: one column of biases each. positions: number of distinct positions. drop: share of rows without it.
        min_variation: of the warning in :meth:`fit`.
    """

    name = "position_tower"

    def __init__(
        self, tasks: Sequence[str], *, positions: int = 50, drop: float = 0.1, min_variation: float = 0.1
    ) -> None:
        super().__init__(tasks, positions, min_variation, initial=0.0)
        self.drop = drop

    def training_offset(self, batch: Batch, task: str) -> Tensor | None:
        """``[N]`` biases in training mode, 0 where dropped; None in eval mode.

        Raises:
            DataError: see :meth:`places`. UsageError: for an unknown task.
        """
        if not self.training:
            return None
        bias = self.values(batch, task)
        return torch.where(torch.rand_like(bias) < self.drop, 0.0, bias)

    def report(self) -> Mapping[str, Any]:
        """Per fitted task: the biases ``[positions]`` as learnt so far, and the within-item share of the variance."""
        biases = self.free.weight.detach().float().cpu()
        return {
            task: {"within_item_variation": share, "bias": biases[:, self._task(task)].tolist()}
            for task, share in self.variation.items()
        }


class Pal(_Positional):
    """``P(click) = theta[position] * sigmoid(z)``, of which ``z`` is served (PAL: Guo et al., RecSys 2019, equation 4).

    ``theta = sigmoid(free parameter)``, and ``theta[0] = 1``: the model determines ``theta`` only up to a factor, and
    "everyone looks at the top" is the usual choice. So ``sigmoid(z)`` is the click probability at the top.

    Args:
        tasks: one column of ``theta`` each. positions: number of distinct positions.
        initial: ``theta`` before training. min_variation: of the warning in :meth:`fit`.
    """

    name = "pal"

    def __init__(
        self, tasks: Sequence[str], *, positions: int = 50, initial: float = 0.5, min_variation: float = 0.1
    ) -> None:
        super().__init__(tasks, positions, min_variation, initial=math.log(initial / (1.0 - initial)))

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        """``[N]`` log-odds of ``theta * sigmoid(z)`` in training mode; ``logit`` itself in eval mode.

        Computed as ``log theta - log(e^-z + 1 - theta)``, which is exact at both ends of the range of ``z``.

        Raises:
            DataError: see :meth:`places`. UsageError: for an unknown task.
        """
        if not self.training:
            return logit
        free = self.values(batch, task)
        wide = logit.float() if logit.dtype in (torch.float16, torch.bfloat16) else logit
        seen = functional.logsigmoid(free) - torch.logaddexp(-wide, functional.logsigmoid(-free))
        return torch.where(self.places(batch) == 0, wide, seen)

    def theta(self, task: str) -> Tensor:
        """``[positions]`` examination probabilities, relative to the top."""
        seen = torch.sigmoid(self.free.weight.detach()[:, self._task(task)].float())
        return torch.cat([torch.ones_like(seen[:1]), seen[1:]])

    def report(self) -> Mapping[str, Any]:
        """Per fitted task: ``theta [positions]`` as learnt so far, and the within-item share of the variance."""
        return {
            task: {"within_item_variation": share, "theta": self.theta(task).cpu().tolist()}
            for task, share in self.variation.items()
        }
