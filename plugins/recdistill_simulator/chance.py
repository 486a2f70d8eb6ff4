"""Random numbers as a function of (seed, purpose, place): no state, so any part of the log can be drawn on its own.

The hash is the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection on 64 bits, applied once per
key part.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class Chance:
    """Uniform numbers of one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))

    def uniform(self, purpose: str, *place: NDArray[np.int64]) -> NDArray[np.float64]:
        """Numbers in [0, 1), one per place; ``place`` are int64 arrays of shapes that broadcast together."""
        key = _mix(self._seed ^ np.uint64(zlib.crc32(purpose.encode())))
        for part in place:
            key = _mix(key ^ part.astype(np.uint64))
        return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator for things drawn once, such as the items."""
        return np.random.default_rng([int(self._seed[0]), zlib.crc32(purpose.encode())])


def _mix(value: Keys) -> Keys:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
