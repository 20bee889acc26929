from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

numba = pytest.importorskip("numba")

from tritrack.export.cases import drawn_hits
from tritrack.stages.pair_order import (
    _count_out,
    group,
    group_by_first,
    inner_first,
    orient_pairs,
    sort_pairs,
)

MOST_THREADS = numba.config.NUMBA_NUM_THREADS


@pytest.fixture(params=[1, MOST_THREADS], ids=["one thread", "all threads"])
def threads(request):
    before = numba.get_num_threads()
    numba.set_num_threads(request.param)
    yield
    numba.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("n", "n_keys"), [(0, 0), (0, 3), (1, 1), (2, 5), (7, 2), (1000, 1), (5000, 700)])
def test_group_is_a_stable_sort(n, n_keys):
    keys = np.random.default_rng(n).integers(0, max(n_keys, 1), n).astype(np.int32)
    starts, order = group(keys, n_keys)
    assert order.dtype == np.int32
    assert order.tolist() == np.argsort(keys, kind="stable").tolist()
    assert starts.tolist() == np.searchsorted(keys[order], np.arange(n_keys + 1)).tolist()


@pytest.mark.parametrize("n_parts", [1, 2, 7, 40])
def test_parts_of_any_number_sort_alike(n_parts):
    keys = np.random.default_rng(n_parts).integers(0, 9, 31).astype(np.int32)
    order = np.empty(keys.size, dtype=np.int32)
    starts = _count_out(keys, np.zeros((n_parts, 9), dtype=np.int64), order)
    assert order.tolist() == np.argsort(keys, kind="stable").tolist()
    assert starts.tolist() == np.searchsorted(np.sort(keys), np.arange(10)).tolist()


def test_inner_hit_comes_first_and_ties_go_to_the_lower_index():
    hits = np.array([[3, 0, 0], [0, 0, 1], [0, 3, 0], [0, 0, -2]], dtype=np.float32)
    pairs = np.array([[0, 2, 0, 1], [1, 0, 3, 3]], dtype=np.int32)
    assert inner_first(hits, pairs).T.tolist() == [[1, 0], [0, 2], [3, 0], [1, 3]]
    assert group_by_first(inner_first(hits, pairs), 4).T.tolist() == [[0, 2], [1, 0], [1, 3], [3, 0]]


@settings(deadline=None, max_examples=50)
@given(n_hits=st.integers(2, 300), n_pairs=st.integers(0, 2000), seed=st.integers(0, 2**32 - 1))
def test_the_contracts_order(n_hits, n_pairs, seed):
    rng = np.random.default_rng(seed)
    hits = np.round(drawn_hits(n_hits=n_hits, seed=seed), -2)  # several at one distance from the origin
    pairs = rng.integers(0, n_hits, (2, n_pairs)).astype(np.int32)
    distance = np.square(hits.astype(np.float64)).sum(axis=1)
    a, b = pairs
    turn = (distance[b] < distance[a]) | ((distance[b] == distance[a]) & (b < a))
    expected = np.where(turn, pairs[::-1], pairs)
    expected = expected[:, np.lexsort(expected[::-1])]
    assert np.array_equal(orient_pairs(hits, pairs), expected)
    assert np.array_equal(sort_pairs(expected, n_hits), expected)
