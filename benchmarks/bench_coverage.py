"""How often the 95% interval of eta holds the true eta, by method, number of seeds and of users, on simulated models.

python benchmarks/bench_coverage.py [--experiments 600] [--json]

An interval without bounds holds every value. ``S - 1 of S seeds`` is the bootstrap that draws seeds with replacement,
and ``normal`` Fieller's interval from its covariance; the two that ``recdistill evaluate`` gives are ``bootstrap`` and
``Fieller``; ``Satterthwaite`` is Fieller's with the quantile of Student's distribution at Satterthwaite's degrees of
freedom.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from reporting import parser, show
from scipy import stats
from simulated_models import World, fast_draws

from recdistill_pipeline.statistics import GAIN, GAIN_DISTILL, summarise
from recdistill_pipeline.statistics_bootstrap import Draws
from recdistill_pipeline.statistics_ratio import fieller, quantiles, ratio_samples

SEEDS, USERS, RESAMPLES = (2, 3, 5, 10), (100, 400), 400
WORLDS: dict[str, dict[str, float]] = {
    "users": {"between_seeds": 0.02, "within": 0.1},
    "seeds": {"between_seeds": 0.2, "within": 0.1},
    "both": {"between_seeds": 0.1, "within": 0.3},
    "users in seeds": {"between_seeds": 0.02, "within": 0.8},
}
Bounds = tuple[float, float] | None


def intervals(draws: Draws, rng: np.random.Generator) -> dict[str, Bounds]:
    """Of eta of log losses, by method; None for no bounds."""
    eta = summarise(draws, -1.0, 0.95)
    ours = None if eta.low is None or eta.high is None else (eta.low, eta.high)
    before, normal = drawn_seeds(draws, rng)
    return {
        "S - 1 of S seeds": before,
        "normal": normal,
        "bootstrap": ours,
        "Fieller": eta.fieller,
        "Satterthwaite": satterthwaite(draws),
    }


def drawn_seeds(draws: Draws, rng: np.random.Generator) -> tuple[Bounds, Bounds]:
    picked = rng.integers(draws.seeds, size=(len(draws.samples), draws.seeds - 1))
    means = np.take_along_axis(draws.samples, picked[:, None, :], axis=2).mean(axis=2)
    gain, distilled = -means @ GAIN, -means @ GAIN_DISTILL
    bounds = None if quantiles(gain, 0.95)[0] <= 0 else quantiles(ratio_samples(distilled, gain), 0.95)
    point = -draws.values()
    return bounds, fieller(float(GAIN_DISTILL @ point), float(GAIN @ point), np.cov(distilled, gain))


def satterthwaite(draws: Draws) -> Bounds:
    gains, point = np.stack([GAIN_DISTILL, GAIN]), -draws.values()
    numerator, denominator = gains @ point
    spread = draws.spread(GAIN_DISTILL - numerator / denominator * GAIN)
    degrees = (spread.users + spread.seeds) ** 2 / (
        spread.seeds**2 / (draws.seeds - 1) + spread.users**2 / (draws.users - 1)
    )
    covariance = spread.share * np.cov(gains @ draws.samples.mean(axis=2).T) + np.cov(gains @ draws.point) / draws.seeds
    return fieller(float(numerator), float(denominator), covariance, critical=float(stats.t.ppf(0.975, degrees)))


def measure(experiments: int) -> list[dict[str, Any]]:
    rows = []
    for name, noise in WORLDS.items():
        for users in USERS:
            world = World(users, **noise)
            truth = world.true_eta()
            for seeds in SEEDS:
                rng = np.random.default_rng([users, seeds])
                held: dict[str, list[bool]] = {}
                unbounded = 0
                for at in range(experiments):
                    found = intervals(fast_draws(*world.losses(rng, seeds), RESAMPLES, at), rng)
                    unbounded += found["bootstrap"] is None
                    for method, bounds in found.items():
                        held.setdefault(method, []).append(bounds is None or bounds[0] <= truth <= bounds[1])
                shares = {method: f"{np.mean(one):.1%}" for method, one in held.items()}
                rows.append({"noise": name, "users": users, "seeds": seeds} | shares | {
                    "without bounds": f"{unbounded / experiments:.1%}"
                })  # fmt: skip
    return rows


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--experiments", type=int, default=600, help="per row")
    given = options.parse_args()
    error = np.sqrt(0.95 * 0.05 / given.experiments)
    title = (
        f"Coverage of the 95% interval of eta, {given.experiments:,} experiments a row, Monte-Carlo error {error:.1%}"
    )
    show({title: measure(given.experiments)}, given.json)
