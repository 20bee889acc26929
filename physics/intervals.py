"""Binomial shares and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import betaincinv

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.682689492137086
"""Coverage of every interval: one standard deviation of a Gaussian, as on the field's plots."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Shares of counts with central Clopper-Pearson intervals, of any shape (a scalar has shape []).

    Attributes
    ----------
    value
        float64, successes / trials; NaN without trials.
    low, high
        float64, the interval; 0 and 1 without trials, which tell nothing.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def to_json(self) -> Any:
        """Return {"value", "low", "high"}, or for a vector a list of them; a NaN value is None."""
        if self.value.ndim:
            return [
                Share(value=value, low=low, high=high).to_json()
                for value, low, high in zip(
                    *(np.array(part) for part in (self.value, self.low, self.high)), strict=True
                )
            ]
        value = None if np.isnan(self.value) else float(self.value)
        return {"value": value, "low": float(self.low), "high": float(self.high)}

    @classmethod
    def from_json(cls, found: Any) -> Share:
        """Read back what `to_json` gave."""
        if isinstance(found, list):
            parts = [cls.from_json(one) for one in found]
            value, low, high = (
                np.array([getattr(part, name) for part in parts], dtype=np.float64)
                for name in ("value", "low", "high")
            )
            return cls(value=value, low=low, high=high)
        # None, for no trials, becomes NaN.
        value, low, high = (np.array(found[name], dtype=np.float64) for name in ("value", "low", "high"))
        return cls(value=value, low=low, high=high)


def share(successes: ArrayLike, trials: ArrayLike) -> Share:
    """Divide counts and give the central Clopper-Pearson interval.

    Clopper-Pearson (Biometrika 26 (1934) 404) never covers less than it says, whatever the true share; that
    makes it the choice for efficiencies close to 1.

    Parameters
    ----------
    successes, trials
        Counts of one shape, 0 <= successes <= trials.
    """
    passed = np.asarray(successes, dtype=np.float64)
    total = np.asarray(trials, dtype=np.float64)
    failed = total - passed
    tail = (1 - CONFIDENCE) / 2
    some, short = passed > 0, failed > 0
    # Beta quantiles do not exist where a parameter is 0; the bound is then the end of the range.
    low = np.where(some, betaincinv(np.where(some, passed, 1), failed + 1, tail), 0.0)
    high = np.where(short, betaincinv(passed + 1, np.where(short, failed, 1), 1 - tail), 1.0)
    value = np.where(total > 0, passed / np.maximum(total, 1), np.nan)
    return Share(value=value, low=low, high=high)
