from __future__ import annotations

import time
from functools import partial

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.stages import graph
from tritrack.stages.card import Windows
from tritrack.stages.contract import ContractError
from tritrack.stages.graph import FLAT_SEARCH_HITS
from tritrack.stages.reference import radius_pairs
from tritrack.stages.stage import set_compiled_threads

NO_LIMIT = 1 << 30
OPEN = Windows(max_z0=1e12, max_curvature=1e12, overlap=1e12)

radius_graph = partial(graph.radius_graph, windows=OPEN)
knn_graph = partial(graph.knn_graph, windows=OPEN)


@st.composite
def clouds(draw):
    """Hits and points in a learned space of any dimension and scale, some of them at one place."""
    n_hits, dim = draw(st.integers(0, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = 10.0 ** rng.uniform(draw(st.integers(-3, 0)), 0.0, dim)
    points = rng.normal(0.0, spread, (n_hits, dim)) * 10.0 ** draw(st.integers(-6, 6))
    points += draw(st.sampled_from([0.0, 1.0, -1e4]))
    if n_hits and draw(st.booleans()):
        points = points[rng.integers(0, max(n_hits // 3, 1), n_hits)]
    if n_hits and draw(st.booleans()):
        points[0] += 1e8  # one hit far from all others
    hits = rng.normal(0.0, 500.0, (n_hits, 3))
    if draw(st.booleans()):
        hits = np.round(hits, -3)  # several hits at one distance from the origin
    scale = np.abs(np.diff(points, axis=0)).max(initial=1e-9)
    radius = float(np.float32(scale * 10.0 ** draw(st.floats(-3.0, 1.0))))
    return hits.astype(np.float32), points.astype(np.float32), radius


def sure_pairs(hits, embedding, radius, windows=OPEN):
    """All pairs, and those so close to the radius that float32 may put them on either side."""
    pairs, distance = radius_pairs(hits, embedding, radius=radius * (1 + 1e-5), windows=windows)
    either = np.abs(distance[tuple(pairs)] - radius) <= 1e-5 * radius
    return {tuple(pair) for pair in pairs.T.tolist()}, {tuple(pair) for pair in pairs[:, either].T.tolist()}


def check_order(hits, pairs):
    assert pairs.dtype == np.int32
    keys = pairs[0].astype(np.int64) * len(hits) + pairs[1]
    assert (np.diff(keys) > 0).all()
    inner, outer = np.square(hits.astype(np.float64)).sum(axis=1)[pairs]
    assert ((inner < outer) | ((inner == outer) & (pairs[0] < pairs[1]))).all()


@settings(deadline=None, max_examples=150)
@given(clouds())
def test_radius_graph_is_every_pair_within_the_radius(cloud):
    hits, embedding, radius = cloud
    pairs = radius_graph(hits, embedding, radius=radius, max_pairs=NO_LIMIT)
    check_order(hits, pairs)
    wanted, either = sure_pairs(hits, embedding, radius)
    found = {tuple(pair) for pair in pairs.T.tolist()}
    assert wanted - either <= found <= wanted


@settings(deadline=None, max_examples=150)
@given(clouds(), st.floats(0, 2000), st.floats(0, 0.01), st.floats(0, 500), st.booleans())
def test_windows_leave_the_pairs_of_the_reference(cloud, max_z0, max_curvature, overlap, knn):
    hits, embedding, radius = cloud
    windows = Windows(max_z0=max_z0, max_curvature=max_curvature, overlap=overlap)
    build = partial(graph.knn_graph, k=len(hits)) if knn else graph.radius_graph
    pairs = build(hits, embedding, radius=radius, windows=windows, max_pairs=NO_LIMIT)
    check_order(hits, pairs)
    wanted, either = sure_pairs(hits, embedding, radius, windows)
    # The reference divides where the search multiplies: at the very edge they may differ.
    inner, outer = (
        sure_pairs(
            hits,
            embedding,
            radius,
            Windows(max_z0=max_z0 * by, max_curvature=max_curvature * by, overlap=overlap * by),
        )[0]
        for by in (1 - 1e-9, 1 + 1e-9)
    )
    found = {tuple(pair) for pair in pairs.T.tolist()}
    assert (wanted & inner) - either <= found <= wanted | outer


@pytest.mark.parametrize(
    ("a", "b", "passes"),
    [
        ((30, 0, 10), (70, 0, 10), True),  # straight from the beam line
        ((30, 0, 230), (70, 0, 370), True),  # z0 = 125 mm
        ((30, 0, 260), (70, 0, 270), False),  # z0 = 252.5 mm
        ((70, 0, 270), (30, 0, 260), False),  # the other way round
        ((30, 0, 0), (0, 70, 0), False),  # a quarter turn
        ((30, 0, 0), (69, 3, 0), True),  # a curvature of 0.0022 / mm against the limit of 0.003
        ((30, 0, 0), (69, 5, 0), False),  # of 0.0037 / mm
        ((500, 0, 900), (499, 8, 905), True),  # neighbours on overlapping modules, whatever their direction
        ((0, 0, 50), (0, 0, 90), True),  # on the beam line nothing can be told
    ],
)
def test_windows_by_hand(a, b, passes):
    hits = np.array([a, b], dtype=np.float32)
    windows = Windows(max_z0=250, max_curvature=0.003, overlap=15)
    pairs = graph.radius_graph(hits, hits, radius=1e4, windows=windows, max_pairs=NO_LIMIT)
    assert pairs.shape[1] == passes


@settings(deadline=None, max_examples=60)
@given(clouds(), st.integers(1, 50))
def test_knn_graph_holds_the_nearest_within_the_radius(cloud, k):
    hits, embedding, radius = cloud
    pairs = knn_graph(hits, embedding, k=k, radius=radius, max_pairs=NO_LIMIT)
    check_order(hits, pairs)
    wanted, either = sure_pairs(hits, embedding, radius)
    found = {tuple(pair) for pair in pairs.T.tolist()}
    assert found <= wanted
    if k >= len(hits):
        assert wanted - either <= found


def test_knn_graph_has_the_threads_of_the_compiled_loops():
    import faiss

    for threads in (2, 1):
        set_compiled_threads(threads)
        knn_graph(
            np.ones((9, 3), np.float32), np.eye(9, dtype=np.float32), k=1, radius=9.0, max_pairs=NO_LIMIT
        )
        assert faiss.omp_get_max_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)


def test_knn_graph_keeps_k_neighbours():
    along = np.arange(8, dtype=np.float32)[:, None] ** 1.1
    hits = np.repeat(along + 1, 3, axis=1)
    pairs = knn_graph(hits, along, k=1, radius=100.0, max_pairs=NO_LIMIT)
    assert pairs.T.tolist() == [[i, i + 1] for i in range(7)]


def test_knn_graph_of_a_large_event_finds_most_pairs():
    rng = np.random.default_rng(0)
    n_hits = FLAT_SEARCH_HITS + 1
    embedding = rng.uniform(0.0, 1.0, (n_hits, 2)).astype(np.float32)
    hits = rng.normal(0.0, 500.0, (n_hits, 3)).astype(np.float32)
    exact = radius_graph(hits, embedding, radius=0.01, max_pairs=NO_LIMIT)
    found = knn_graph(hits, embedding, k=30, radius=0.01, max_pairs=NO_LIMIT)
    assert found.shape[1] > 0.97 * exact.shape[1]


@settings(deadline=None, max_examples=50)
@given(clouds(), st.randoms(use_true_random=False))
def test_permuted_hits_give_the_same_pairs(cloud, random):
    hits, embedding, radius = cloud
    order = np.array(random.sample(range(len(hits)), len(hits)), dtype=np.int64)
    pairs = radius_graph(hits, embedding, radius=radius, max_pairs=NO_LIMIT)
    permuted = order[radius_graph(hits[order], embedding[order], radius=radius, max_pairs=NO_LIMIT)]
    _, either = sure_pairs(hits, embedding, radius)
    difference = {frozenset(p) for p in pairs.T.tolist()} ^ {frozenset(p) for p in permuted.T.tolist()}
    assert difference <= {frozenset(p) for p in either}


@pytest.mark.parametrize("n_hits", [0, 1])
@pytest.mark.parametrize("build", [radius_graph, partial(knn_graph, k=3)], ids=["radius", "knn"])
def test_too_few_hits_give_no_pairs(n_hits, build):
    hits, embedding = np.ones((n_hits, 3), np.float32), np.ones((n_hits, 4), np.float32)
    pairs = build(hits, embedding, radius=1.0, max_pairs=0)
    assert pairs.shape == (2, 0)
    assert pairs.dtype == np.int32


# 700 hits are searched in three pieces, and have more pairs than there is room for at first.
@pytest.mark.parametrize("n_hits", [30, 700])
def test_hits_at_one_place_are_all_pairs(n_hits):
    hits, embedding = np.ones((n_hits, 3), np.float32), np.ones((n_hits, 4), np.float32)
    pairs = radius_graph(hits, embedding, radius=0.1, max_pairs=n_hits * (n_hits - 1) // 2)
    assert pairs.tolist() == [indices.tolist() for indices in np.triu_indices(n_hits, 1)]


@pytest.mark.parametrize("build", [radius_graph, partial(knn_graph, k=30)], ids=["radius", "knn"])
def test_over_the_limit(build):
    hits, embedding = np.ones((30, 3), np.float32), np.ones((30, 4), np.float32)
    assert build(hits, embedding, radius=1.0, max_pairs=435).shape == (2, 435)
    with pytest.raises(
        ContractError, match=r"graph has more pairs of hits than the model's limit max_pairs, 434"
    ):
        build(hits, embedding, radius=1.0, max_pairs=434)


def test_the_search_ends_at_the_limit(monkeypatch):
    searched = []
    search = graph._neighbours

    def count(*arguments):
        time.sleep(0.005)  # or all are done before the first is looked at
        searched.append(search(*arguments))
        return searched[-1]

    monkeypatch.setattr(graph, "_neighbours", count)
    n_hits = 40 * graph.HITS_AT_ONCE
    hits, embedding = np.ones((n_hits, 3), np.float32), np.ones((n_hits, 4), np.float32)
    with pytest.raises(ContractError, match="limit max_pairs, 1000"):
        radius_graph(hits, embedding, radius=1.0, max_pairs=1000)
    assert len(searched) < 40
    # Of a piece, too: to the end of the hit that goes over the limit.
    assert max(piece.shape[1] for piece in searched) <= 1000 + n_hits
