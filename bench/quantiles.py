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
