"""Undoes the sampling of the log: negatives dropped, positives dropped, or every impression first logged negative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recdistill_core import BuildContext, Component, hookimpl
from recdistill_core.errors import WiringError

if TYPE_CHECKING:
    from recdistill_core import Debiaser

MODES = ("downsampled", "fake_negative")


@dataclass(frozen=True)
class SamplingConfig:
    """Correction of known sampling rates.

    Attributes:
        keep_positive: ``{task: rate}`` in (0, 1]; overrides the rates that the dataset's schema gives.
        keep_negative: likewise, for the same tasks.
        mode: ``downsampled`` (rows of a class are kept with its rate) or ``fake_negative`` (every impression is logged
            as a negative at once and each positive again as a positive; then each row is kept with its class's rate).
        max_logit: ``fake_negative`` only; corrected logits above it are linear, in [1, 20].
    """

    keep_positive: dict[str, float] = field(default_factory=dict)
    keep_negative: dict[str, float] = field(default_factory=dict)
    mode: str = "downsampled"
    max_logit: float = 5.0

    def __post_init__(self) -> None:
        for name, rates in (("keep_positive", self.keep_positive), ("keep_negative", self.keep_negative)):
            for task, rate in rates.items():
                if not 0.0 < rate <= 1.0:
                    raise ValueError(f"{name} of task {task!r} must lie in (0, 1], got {rate}")
        alone = sorted(set(self.keep_positive) ^ set(self.keep_negative))
        if alone:
            raise ValueError(f"task {alone[0]!r} needs both keep_positive and keep_negative (1.0 where all are kept)")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not 1.0 <= self.max_logit <= 20.0:
            raise ValueError(f"max_logit must lie in [1, 20], got {self.max_logit}")


def needs(config: SamplingConfig) -> frozenset[str]:
    """``keep_rates``, unless the configuration gives them."""
    return frozenset() if config.keep_positive else frozenset({"keep_rates"})


def build(config: SamplingConfig, context: BuildContext) -> Debiaser:
    """The debiaser :class:`recdistill_sampling.debias.Sampling`.

    Raises:
        WiringError: if neither the configuration nor the dataset knows the keep rates of a task to be trained.
    """
    overrides = {task: (rate, config.keep_negative[task]) for task, rate in config.keep_positive.items()}
    if context.schema is not None:
        _check_tasks(context, overrides)
    from recdistill_sampling.debias import Sampling

    return Sampling(overrides, fake_negative=config.mode == "fake_negative", max_logit=config.max_logit)


def _check_tasks(context: BuildContext, overrides: Mapping[str, tuple[float, float]]) -> None:
    schema = context.require_schema()
    unknown = [task for task in context.tasks if task not in overrides and task not in schema.keep_rates]
    if unknown:
        raise WiringError(
            f"debiaser 'sampling' does not know the keep rates of task {unknown[0]!r}",
            where=f"the dataset gives those of: {', '.join(schema.keep_rates) or 'no task'}",
            fix=f"set keep_positive: {{{unknown[0]}: ...}} and keep_negative: {{{unknown[0]}: ...}}; 1.0 = all kept",
        )


@hookimpl
def recdistill_debiasers() -> list[Component]:
    """``sampling``."""
    return [
        Component(
            "sampling",
            SamplingConfig,
            build,
            "Corrects probabilities for known keep rates of positives and negatives",
            needs=needs,
            api_version=1,
        )
    ]
