from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from tritrack.stages.columns import search_ranges


def compared(order, first, last):
    """Every pair that the ranges hold, as (lower, higher) indices of hits, in any order."""
    return [
        tuple(sorted((int(order[hit]), int(order[other]))))
        for row in range(len(first))
        for hit in range(order.size)
        for other in range(first[row, hit], last[row, hit])
    ]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 6), st.floats(-2.0, 0.5))
def test_every_pair_within_the_radius_is_compared_once(seed, n_hits, dim, log_radius):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(0.0, 10.0 ** rng.uniform(-2.0, 0.0, dim), (n_hits, dim)).astype(np.float32)
    radius = 10.0**log_radius
    order, first, last = search_ranges(embedding, radius=radius)
    assert sorted(order.tolist()) == list(range(n_hits))
    pairs = compared(order, first, last)
    assert len(set(pairs)) == len(pairs)
    apart = np.linalg.norm(embedding[:, None].astype(np.float64) - embedding, axis=-1)
    near = {(i, j) for i, j in np.argwhere(apart <= radius).tolist() if i < j}
    assert near <= set(pairs)


def test_few_others_are_compared():
    # Of a square of 40 x 40 radii, 0.2 % is a circle of the radius; of the ranges' half circles, squares are the most.
    rng = np.random.default_rng(0)
    embedding = rng.uniform(0.0, 40.0, (3000, 3)).astype(np.float32) * np.array([1.0, 1.0, 0.0], np.float32)
    _, first, last = search_ranges(embedding, radius=1.0)
    share = np.maximum(last - first, 0).sum() / (3000 * 2999 / 2)
    assert np.pi / 1600 < share < 12.0 / 1600
