from __future__ import annotations

import numpy as np
import pytest

from tritrack.bench.load_generator.arrivals import CHUNK, poisson_arrivals


def test_the_seed_says_when_requests_are_due():
    due = poisson_arrivals(50.0, seed=3, n_requests=2000)
    np.testing.assert_array_equal(due, poisson_arrivals(50.0, seed=3, n_requests=2000))
    np.testing.assert_allclose(due, poisson_arrivals(100.0, seed=3, n_requests=2000) * 2, rtol=1e-12)
    assert (due != poisson_arrivals(50.0, seed=4, n_requests=2000)).all()
    assert (np.diff(due, prepend=0.0) > 0).all()


@pytest.mark.parametrize("duration", [0.001, 1.0, 100.0])
def test_a_duration_takes_as_many_as_fall_into_it(duration):
    due = poisson_arrivals(30.0, seed=3, duration=duration)
    more = poisson_arrivals(30.0, seed=3, n_requests=len(due) + 1)
    np.testing.assert_allclose(due, more[:-1], rtol=1e-12)
    assert more[-1] >= duration
    assert duration < 100.0 or len(due) > 2 * CHUNK  # the gaps of several draws


def test_gaps_are_exponential():
    gaps = np.diff(poisson_arrivals(20.0, seed=5, n_requests=100_001))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.02)
    counts = np.histogram(np.cumsum(gaps), bins=np.arange(0, 4900, 1.0))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)  # of a Poisson distribution


def test_one_of_duration_and_number_is_wanted():
    with pytest.raises(ValueError, match="duration or n_requests"):
        poisson_arrivals(1.0, seed=1)
