"""From the probability in a sampled log to the probability in the world."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import Debiaser


class Sampling(Debiaser):
    """The student's correction ``f_S`` of Rec-Distill (arXiv 2605.29755); cross-debias applies it to both logits.

    The paper's formula reaches us with two readings. These are derived from Bayes' rule instead and hold in
    simulation; reading the symbols as retention probabilities gives .663 for a true rate of .0299.

    With ``k+``, ``k-`` the probabilities that a positive, a negative row survives:

    - ``downsampled``: ``odds_true = odds_observed * k- / k+``, so ``f(z) = z + log(k- / k+)``; equal rates
      change nothing.
    - ``fake_negative``: of each impression a negative row is logged, and of each positive one a positive row too, so
      ``odds_observed = p k+ / k-`` and ``(1 - p) / p = e^-z * k+ / k- - 1``. With ``u = z + log(k- / k+) = log p``:
      ``f(z) = u - log(1 - e^u)``. This exists only for ``u < 0``: no stream of this kind has larger odds.

    A model, above all an untrained one, can still say ``u >= 0``. Beyond the ``u`` at which ``f`` reaches
    ``max_logit``, ``f`` goes on as a line of slope 1: finite, increasing, and with a gradient that leads back into
    the domain.

    Labels are learnt as they were logged, so a served logit is one of the sampled log. To serve a probability of the
    world, apply :meth:`correct` to it; rankings need not (``f`` is increasing).

    Args:
        keep_rates: ``{task: (k+, k-)}`` that override those of the batch.
        fake_negative: which of the two.
        max_logit: where the line begins; 5 means p = .9933.
    """

    def __init__(
        self,
        keep_rates: Mapping[str, tuple[float, float]] | None = None,
        *,
        fake_negative: bool = False,
        max_logit: float = 5.0,
    ) -> None:
        super().__init__()
        self.keep_rates = dict(keep_rates or {})
        self.fake_negative = fake_negative
        self.max_logit = max_logit

    def rates(self, batch: Batch, task: str) -> tuple[float, float]:
        """``(k+, k-)`` of a task.

        Raises:
            DataError: if neither the configuration nor the batch knows them.
        """
        known = self.keep_rates.get(task) or (batch.keep_rates or {}).get(task)
        if known is None:
            raise DataError(
                f"the keep rates of task {task!r} are not known",
                where="debiaser 'sampling'",
                fix="import the log with keep_rates, or set keep_positive and keep_negative of the debiaser",
            )
        return known

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        """``[N]`` logits of the probability before sampling; half precision is computed in float32.

        Raises:
            DataError: see :meth:`rates`.
        """
        positive, negative = self.rates(batch, task)
        wide = logit.float() if logit.dtype in (torch.float16, torch.bfloat16) else logit
        shifted = wide + (math.log(negative) - math.log(positive))
        return self._from_log_probability(shifted) if self.fake_negative else shifted

    def _from_log_probability(self, log_p: Tensor) -> Tensor:
        """``log(p / (1 - p))`` of ``log_p [N]``, a line of slope 1 beyond ``max_logit``."""
        limit = -math.log1p(math.exp(-self.max_logit))  # log sigmoid(max_logit)
        inside = log_p.clamp(max=limit)
        # log(1 - e^u): expm1 where e^u is near 1, log1p where it is near 0 (Maechler 2012, "Accurately computing ...")
        near_one = torch.log(-torch.expm1(inside.clamp(min=-math.log(2.0))))
        near_zero = torch.log1p(-torch.exp(inside.clamp(max=-math.log(2.0))))
        log_rest = torch.where(inside > -math.log(2.0), near_one, near_zero)
        return inside - log_rest + (log_p - limit).clamp(min=0.0)
