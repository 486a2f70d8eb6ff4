"""How teacher labels reach the student: what a head strategy composes, and what it may ask of the wiring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.schedule import RampConfig


class LossParts(Protocol):
    """What a head strategy composes; debiasing, masks and weights are already inside."""

    def hard(self, logit: Tensor) -> Tensor:
        """``[N]`` task loss of a head's served logits ``[N]``; 0 where the label is not observed."""

    def soft(self, logit: Tensor, *, target: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """``[N]`` distillation loss of a head's served logits ``[N]``; 0 where the teacher has no label.

        Args:
            logit: ``[N]``.
            target: ``[N]`` logits to learn instead of the teacher's, on the rows where there is a teacher's; gets no
                gradient, and the debiasers' corrections as the teacher's would.
            weight: ``[N]`` >= 0, multiplies the loss; gets no gradient.
        """

    def teacher(self) -> tuple[Tensor, Tensor]:
        """``(logit [N], valid [N] bool)`` of the teacher, uncorrected; 0 where it has no label."""

    def teachers(self) -> list[tuple[Tensor, Tensor]]:
        """The same of each teacher, where the student learns from several; else of the one there is."""

    def label(self) -> tuple[Tensor, Tensor]:
        """``(label [N], observed [N] bool)``; 0 where it is not observed. For what a loss weighs, never for a logit."""


class HeadStrategy(nn.Module):
    """How teacher labels reach the student.

    Attributes:
        auxiliary: names of the auxiliary towers to build beside ``main``; they exist only in training.
        learning_rate: of the strategy's own parameters, where it has some; None: the student's.
    """

    auxiliary: tuple[str, ...] = ()
    learning_rate: float | None = None

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """``{name: [N]}``, summed and averaged over rows by the wiring.

        Args:
            heads: ``{"main": [N], auxiliary name: [N]}`` served logits of one task.
            parts: the hard and the soft loss of one head.
        """
        raise NotImplementedError

    def features(self, head: str, features: Tensor) -> Tensor:
        """``[N, D]`` that the tower ``head`` is fed; by default the backbone's ``features [N, D]`` as they are.

        Only the gradient may differ, as with :func:`scale_gradient`, for the tower ``main``: it is served on the
        backbone's own.
        """
        return features


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient times a factor backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """``values``, bit for bit; what flows back through them is multiplied by ``factor`` (ExFM, arXiv 2502.17494).

    A head that is fed ``scale_gradient(features, b)`` learns as before, and the backbone learns ``b`` times as much
    from it.
    """
    scaled: Tensor = _ScaleGradient.apply(values, factor)  # type: ignore[no-untyped-call]  # torch ships it without types
    return scaled


class Paced(nn.Module):
    """Part of a strategy or a loss that is another one from batch to batch, such as a schedule or a count.

    ``StudentModule`` calls :meth:`advance` once in every training step, whatever the number of heads that have used it.
    What it remembers belongs into buffers, so that a restored checkpoint goes on where it was.
    """

    def advance(self, batch: Batch) -> None:
        """``batch``, of which the candidates are no part, has been learnt from."""
        raise NotImplementedError


class Ramp(Paced):
    """A value that goes from ``start`` to ``ramp.to`` and stays there; a constant without ``ramp``.

    Args:
        start: value of the first batch. ramp: where it goes, or None.
    """

    at: Tensor

    def __init__(self, start: float, ramp: RampConfig | None = None) -> None:
        super().__init__()
        self.start, self.ramp = start, ramp
        self.register_buffer("at", torch.zeros((), dtype=torch.int64), persistent=ramp is not None)

    def advance(self, batch: Batch) -> None:
        """One more batch is done."""
        if self.ramp is not None:
            self.at += 1

    def value(self) -> float:
        """The value of the batch at hand."""
        return self.start if self.ramp is None else self.ramp.value(self.start, int(self.at))
