"""Clopper-Pearson intervals against scipy.stats and at their ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from tritrack.physics.intervals import CONFIDENCE, share


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 100), (37, 100), (100, 100), (9_000, 10_000)])
def test_equals_scipy(k, n):
    wanted = binomtest(k, n).proportion_ci(CONFIDENCE, method="exact")
    got = share(k, n)
    if 0 < k < n:
        np.testing.assert_allclose([got.low, got.high], [wanted.low, wanted.high], rtol=1e-8)
    # central: the same tail is left out on either side, also where one side is the end of the range
    assert got.low <= k / n <= got.high
    assert got.value == k / n


def test_ends_and_nothing():
    got = share([0, 5, 0], [5, 5, 0])
    tail = (1 - CONFIDENCE) / 2
    np.testing.assert_allclose(got.low, [0, tail ** (1 / 5), 0])
    np.testing.assert_allclose(got.high, [1 - tail ** (1 / 5), 1, 1])
    assert got.to_json()[2] == {"value": None, "low": 0.0, "high": 1.0}
    assert share(0, 0).to_json() == {"value": None, "low": 0.0, "high": 1.0}
    assert share(1, 4).to_json()["value"] == 0.25
