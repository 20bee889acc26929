"""Power laws through measured points: what a time or a memory grows like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import linregress

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """``y = factor * x ** exponent``.

    Attributes
    ----------
    factor, exponent
        Of the law.
    error
        Standard error of the exponent; None of two points, which any law fits.
    n_points
        Points that it was fitted to.
    smallest, largest
        Range of x of these points; beyond it the law is extrapolated.
    """

    factor: float
    exponent: float
    error: float | None
    n_points: int
    smallest: float
    largest: float

    def at(self, x: float) -> float:
        """Return y."""
        return float(self.factor * x**self.exponent)

    def where(self, y: float) -> float:
        """Return the x that has this y, of a law that rises."""
        return float((y / self.factor) ** (1.0 / self.exponent))


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit a power law by least squares in log-log.

    Parameters
    ----------
    x, y
        Points, all above 0.

    Returns
    -------
    PowerLaw or None
        None where there are not two different x.

    Raises
    ------
    ValueError
        Where a number is not above 0.
    """
    if not all(number > 0 for number in (*x, *y)):
        raise ValueError("a power law takes numbers above 0")
    if len(set(x)) < 2:
        return None
    line = linregress(np.log(x), np.log(y))
    return PowerLaw(
        factor=float(np.exp(line.intercept)),
        exponent=float(line.slope),
        error=float(line.stderr) if len(x) > 2 else None,
        n_points=len(x),
        smallest=min(x),
        largest=max(x),
    )
