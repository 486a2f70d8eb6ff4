"""Bootstrap of AUC over users: sorted once and weighted by user, against sorting the drawn rows each time.

python benchmarks/bench_metrics.py [--json]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from reporting import arguments, seconds, show

from recdistill_core import installed, make

ROWS, USERS = 100_000, 20_000


def by_sorting(logit: NDArray[Any], label: NDArray[Any], user: NDArray[Any], weights: NDArray[Any]) -> float:
    """AUC of rows weighted by their users, from scratch; ties are not looked at."""
    order = np.argsort(logit)
    weight, clicked = weights[user[order]], label[order] == 1
    below = np.cumsum(np.where(clicked, 0.0, weight))
    return float((weight * below)[clicked].sum() / (weight[clicked].sum() * below[-1]))


def measure() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    logit, user = draw.normal(-2, 1, ROWS), draw.integers(USERS, size=ROWS)
    label = (draw.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    weights = draw.poisson(1.0, USERS).astype(np.float64)
    evaluate = make(installed(), "metric", "auc").prepare(logit, label, user)
    assert abs(evaluate(weights) - by_sorting(logit, label, user, weights)) < 1e-9
    again = seconds(lambda: by_sorting(logit, label, user, weights))
    once = seconds(lambda: evaluate(weights))
    return [
        {"a resample of 100,000 rows": "sorted each time", "milliseconds": 1000 * again, "times": 1.0},
        {"a resample of 100,000 rows": "sorted once", "milliseconds": 1000 * once, "times": again / once},
    ]


if __name__ == "__main__":
    show({"AUC, one bootstrap resample over 20,000 users": measure()}, arguments(__doc__ or "").json)
