from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from tritrack.stages.compaction import LANES, append_places

BOUNDS = [0.5, 0.0, -1.0, np.inf, -np.inf, np.nan]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from([0.5, np.nextafter(np.float32(0.5), 1), *BOUNDS]) | st.floats(width=32),
        max_size=3 * LANES,
    ),
    st.sampled_from(BOUNDS),
    st.integers(0, 1000),
    st.integers(0, 3),
)
def test_places_of_what_is_at_most_a_bound(numbers, bound, first, n_before):
    values = np.array([*numbers, *[0.0] * LANES], dtype=np.float32)
    places = np.full(n_before + len(numbers), -7, dtype=np.int32)
    n_places = append_places(values, len(numbers), np.float32(bound), first, places, n_before)
    wanted = first + np.flatnonzero(np.array(numbers, dtype=np.float32) <= np.float32(bound))
    assert places[:n_places].tolist() == [-7] * n_before + wanted.tolist()


@pytest.mark.parametrize("n", [1, LANES - 1, LANES, LANES + 1, 4 * LANES])
def test_all_and_none(n):
    places = np.empty(n, dtype=np.int32)
    for value, n_places in ((1.0, n), (3.0, 0)):
        values = np.full(n + LANES, value, dtype=np.float32)
        assert append_places(values, n, np.float32(2.0), 0, places, 0) == n_places
    assert places.tolist() == list(range(n))
