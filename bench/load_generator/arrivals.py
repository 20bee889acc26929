"""When the requests of an open loop are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 1024
"""Gaps drawn at a time; the arrivals do not depend on it."""


def poisson_arrivals(
    rate: float, *, seed: int, duration: float | None = None, n_requests: int | None = None
) -> NDArray[np.float64]:
    """Draw the arrivals of a Poisson process: independent, exponential gaps of mean 1 / rate, the first from 0 on.

    Of one seed, the arrivals at twice the rate are the same at half the times.

    Parameters
    ----------
    rate
        Mean arrivals a second, above 0.
    seed
        Of the gaps.
    duration, n_requests
        Seconds within which the arrivals fall, or their number: one of the two.

    Returns
    -------
    ndarray
        float64 [n], seconds from the start, rising.
    """
    rng = np.random.default_rng(seed)
    if n_requests is not None:
        some: NDArray[np.float64] = np.cumsum(rng.exponential(1 / rate, size=n_requests))
        return some
    if duration is None:
        raise ValueError("poisson_arrivals: duration or n_requests wanted")
    gaps = rng.exponential(1 / rate, size=CHUNK)
    while gaps.sum() <= duration:
        gaps = np.append(gaps, rng.exponential(1 / rate, size=CHUNK))
    arrivals: NDArray[np.float64] = np.cumsum(gaps)
    return arrivals[arrivals < duration]
