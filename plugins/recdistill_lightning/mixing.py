"""Chance that depends on numbers alone, not on who asks for it in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mix(values: Any) -> Any:
    """A hash of uint64 values (SplitMix64's finaliser; Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def uniform(keys: Any) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each uint64 key."""
    found: NDArray[np.float64] = (mix(keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found
