"""Random numbers that depend on the seed and on what they are for, never on the order in which they are asked for.

Each purpose ("prolog", "tasks", ...) and each job has its own stream, so adding a draw in one place changes nothing
in another, and the same seed gives the same bytes whichever way the simulation is computed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Draws:
    """Streams of one seed (a whole number >= 0)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, purpose: str, *index: int) -> np.random.Generator:
        """The stream of a purpose and, if need be, of a job or node index."""
        return np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.seed, zlib.crc32(purpose.encode()), *index]))
        )

    def spread(self, purpose: str, sigma: float, shape: Sequence[int], *index: int) -> Floats:
        """Lognormal factors of median 1 and the given sigma; exactly 1 when sigma is 0."""
        if sigma == 0:
            return np.ones(tuple(shape))
        return np.exp(self.stream(purpose, *index).normal(0.0, sigma, tuple(shape)))

    def struck(self, purpose: str, probability: float, count: int, *index: int) -> NDArray[np.bool_]:
        """Which of `count` things an event of this probability strikes."""
        if probability <= 0:
            return np.zeros(count, dtype=np.bool_)
        if probability >= 1:
            return np.ones(count, dtype=np.bool_)
        return self.stream(purpose, *index).random(count) < probability
