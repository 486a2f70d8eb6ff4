"""Logits of three models of several seeds whose expected log loss, and so whose eta, is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_pipeline.statistics_bootstrap import Draws, student_weights

Array = NDArray[np.float64]
#: The true logit of a row is normal.
MEAN, SPREAD = -1.0, 1.2
#: Added to every logit, so that a seed's shift moves the log loss in proportion and not by its square alone.
BIAS = 0.6


@dataclass(frozen=True)
class World:
    """Where the noise comes from. A logit is the row's true logit plus normal errors with these standard deviations.

    Attributes:
        users: users, with ``1 + Poisson(4)`` rows each.
        kept: of an error that a model makes in every seed: what its inputs do not tell; raw, teacher, distilled.
        between_seeds: of a shift of a whole model of one seed.
        within: of an error of one row in one seed.
    """

    users: int
    kept: tuple[float, float, float] = (1.0, 0.4, 0.65)
    between_seeds: float = 0.0
    within: float = 0.0

    def true_losses(self) -> Array:
        """``[3]`` expected log loss, by Gauss-Hermite quadrature over the true logit and the error."""
        node, weight = np.polynomial.hermite_e.hermegauss(60)
        weight = weight / weight.sum()
        truth = MEAN + SPREAD * node[:, None]
        found = []
        for kept in self.kept:
            error = BIAS + np.sqrt(kept**2 + self.between_seeds**2 + self.within**2) * node[None, :]
            found.append(weight @ _log_loss(truth + error, _sigmoid(truth)) @ weight)
        return np.array(found)

    def true_eta(self) -> float:
        """Eta of the expected log losses."""
        raw, teacher, distilled = self.true_losses()
        return float((raw - distilled) / (raw - teacher))

    def losses(self, rng: np.random.Generator, seeds: int) -> tuple[NDArray[np.int64], Array]:
        """One experiment: ``user [N]`` in ``[0, users)`` and log losses ``[3, seeds, N]``."""
        user = np.repeat(np.arange(self.users), 1 + rng.poisson(4, self.users))
        truth = rng.normal(MEAN, SPREAD, len(user))
        label = (rng.random(len(user)) < _sigmoid(truth)).astype(np.float64)
        kept = np.array(self.kept)[:, None, None] * rng.normal(size=(3, 1, len(user)))
        shift = self.between_seeds * rng.normal(size=(3, seeds, 1))
        within = self.within * rng.normal(size=(3, seeds, len(user))) if self.within else 0.0
        return user, _log_loss(truth + BIAS + kept + shift + within, label)


def fast_draws(user: NDArray[np.int64], losses: Array, resamples: int, seed: int) -> Draws:
    """What ``draw`` gives for the mean of ``losses [M, S, N]`` over rows, by one product for all resamples."""
    rng = np.random.default_rng(seed)
    users, (models, seeds, _) = int(user.max()) + 1, losses.shape
    rows = np.bincount(user)
    total = np.stack([np.bincount(user, weights=one) for one in losses.reshape(models * seeds, -1)], axis=1)
    weights = np.stack(
        [np.bincount(rng.integers(users, size=users), minlength=users).astype(np.float64) for _ in range(resamples)]
    )
    samples = (weights @ total / (weights @ rows)[:, None]).reshape(resamples, models, seeds)
    by_seed = student_weights(rng, resamples, seeds) if seeds > 1 else np.zeros((resamples, seeds))
    return Draws(losses.mean(axis=2), samples, by_seed, resamples, 0, users, seeds > 1)


def _sigmoid(logit: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _log_loss(logit: Array, label: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, logit) - label * logit)
