"""Quantiles of measured times, where there are enough of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES_BEYOND = 10
"""Samples that must lie beyond a quantile, on its thinner side: it moves with each of fewer."""


def quantile(samples: NDArray[np.float64], q: float) -> float | None:
    """Return a quantile, q from 0.5 on, of at least 10 / (1 - q) samples; None of fewer (20 for a median)."""
    # Rounded: 10 / (1 - 0.95) is a little more than 200 in floating point.
    if len(samples) < round(SAMPLES_BEYOND / (1 - q), 6):
        return None
    return float(np.quantile(samples, q))


def median_interval(samples: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return an interval that holds the median 19 times of 20, whatever the distribution; None of too few samples.

    Its ends are two of the samples, as far from the middle as the binomial distribution asks for (W. J. Conover,
    Practical Nonparametric Statistics).
    """
    from scipy.stats import quantile_test  # a second to import, and `tritrack load` wants no interval

    if len(samples) == 0:
        return None
    interval = quantile_test(samples, p=0.5).confidence_interval(confidence_level=0.95)
    return (
        None if np.isnan([interval.low, interval.high]).any() else (float(interval.low), float(interval.high))
    )
