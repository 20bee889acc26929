"""The stages on tensors give what the compiled ones give; on the CPU here, on a GPU where there is one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from tritrack.export.cases import drawn_edges, drawn_helices, drawn_hits
from tritrack.stages import chains_gpu, graph, graph_gpu, labelling, labelling_gpu
from tritrack.stages.card import Windows
from tritrack.stages.contract import ContractError
from tritrack.stages.pair_order import orient_pairs
from tritrack.stages.reference import component_labels, radius_pairs
from tritrack.stages.windows import possible_pairs

OPEN = Windows(max_z0=1e12, max_curvature=1e12, overlap=1e12)
TIGHT = Windows(max_z0=200, max_curvature=0.002, overlap=15)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def on(device, *arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]


def search(device, hits, embedding, *, k=None, **how):
    build = graph_gpu.radius_graph if k is None else partial(graph_gpu.knn_graph, k=k)
    pairs = build(*on(device, hits, embedding), **how)
    assert pairs.device.type == device
    return pairs.cpu().numpy()


def cloud(*, n_hits, dim, seed, scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-2, 0, dim)
    embedding = (rng.normal(0.0, spread, (n_hits, dim)) * scale + offset).astype(np.float32)
    return drawn_hits(n_hits=n_hits, seed=seed), embedding


def nearest_pairs(hits, embedding, *, k, radius, windows, **_):
    """Every distance, and the first k of each hit."""
    squared = np.zeros((len(hits), len(hits)), np.float32)
    for axis in embedding.T:
        squared += np.square(axis[:, None] - axis)
    np.fill_diagonal(squared, np.inf)
    by_distance = np.argsort(squared, axis=1, kind="stable")[:, :k]
    hit = np.repeat(np.arange(len(hits)), by_distance.shape[1])
    neighbour = by_distance.ravel()
    near = squared[hit, neighbour] <= np.float32(radius) ** 2
    both = np.sort(np.stack([hit, neighbour])[:, near], axis=0)
    pairs = np.unique(both, axis=1).astype(np.int32)
    return orient_pairs(hits, pairs[:, possible_pairs(hits, pairs, windows=windows)])


CLOUDS = {
    "one dimension": {"n_hits": 300, "dim": 1, "seed": 1},
    "eight dimensions": {"n_hits": 3000, "dim": 8, "seed": 2},
    "tiny, far from the origin": {"n_hits": 500, "dim": 4, "seed": 3, "scale": 1e-3, "offset": 100.0},
    "large": {"n_hits": 500, "dim": 4, "seed": 4, "scale": 1e6},
}


@pytest.mark.parametrize("windows", [OPEN, TIGHT], ids=["open", "tight"])
@pytest.mark.parametrize("name", CLOUDS)
def test_the_graph_is_the_compiled_searchs(device, name, windows):
    options = CLOUDS[name]
    hits, embedding = cloud(**options)
    for share in (0.02, 0.3):
        how = {"radius": share * options.get("scale", 1.0), "windows": windows, "max_pairs": 1 << 30}
        wanted = graph.radius_graph(hits, embedding, **how)
        found = search(device, hits, embedding, **how)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
        assert share == 0.02 or wanted.shape[1] > 0


@pytest.mark.parametrize("windows", [OPEN, TIGHT], ids=["open", "tight"])
@pytest.mark.parametrize("name", CLOUDS)
def test_the_nearest_are_those_of_all_distances(device, name, windows):
    options = CLOUDS[name]
    hits, embedding = cloud(**options)
    within = 0.3 * options.get("scale", 1.0)
    for k, radius in ((1, within), (5, within), (5, 1e9), (3000, within)):
        how = {"k": k, "radius": radius, "windows": windows, "max_pairs": 1 << 30}
        wanted = nearest_pairs(hits, embedding, **how)
        found = search(device, hits, embedding, **how)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
        assert wanted.shape[1] > 0


def test_the_nearest_are_those_of_the_host(device):
    hits, embedding = cloud(n_hits=500, dim=4, seed=9)
    how = {"k": 4, "radius": 0.2, "windows": replace(TIGHT, min_chain=2), "max_pairs": 1 << 30}
    np.testing.assert_array_equal(
        search(device, hits, embedding, **how), graph.knn_graph(hits, embedding, **how)
    )


@pytest.mark.parametrize("min_chain", [2, 3, 4])
@pytest.mark.parametrize("at_once", [1, 1000, 1 << 24])
def test_chains_are_the_compiled_ones(device, monkeypatch, min_chain, at_once):
    monkeypatch.setattr(chains_gpu, "MOST_AT_ONCE", at_once)
    hits, _ = drawn_helices(n_tracks=12, seed=3)
    hits = np.concatenate([hits, hits[::9] + np.float32(3.0)])  # close pairs, too
    windows = replace(TIGHT, min_chain=min_chain)
    wanted = graph.radius_graph(hits, hits, radius=1e4, windows=windows, max_pairs=1 << 30)
    found = search(device, hits, hits, radius=1e4, windows=windows, max_pairs=1 << 30)
    np.testing.assert_array_equal(found, wanted)
    every = graph.radius_graph(hits, hits, radius=1e4, windows=TIGHT, max_pairs=1 << 30)
    assert 0 < wanted.shape[1] < every.shape[1]


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("sizes", [(7, 11), (64, 3), (1, 1)])
def test_tiles_do_not_show(device, monkeypatch, sizes, k):
    hits, embedding = cloud(n_hits=150, dim=3, seed=5)
    how = {"k": k, "radius": 0.3, "windows": OPEN, "max_pairs": 1 << 30}
    wanted = search(device, hits, embedding, **how)
    monkeypatch.setattr(graph_gpu, "TILE_ROWS", sizes[0])
    monkeypatch.setattr(graph_gpu, "TILE_COLUMNS", sizes[1])
    np.testing.assert_array_equal(search(device, hits, embedding, **how), wanted)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_rough_products_lose_no_pair(device, precision):
    """Where torch may round what it multiplies, more pairs are looked at."""
    hits, embedding = cloud(n_hits=2000, dim=8, seed=2)
    how = {"radius": 0.3, "windows": OPEN, "max_pairs": 1 << 30}
    wanted = graph.radius_graph(hits, embedding, **how)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = search(device, hits, embedding, **how)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, wanted)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_wild_graphs(n_hits, dim, seed, at_one_place, far):
    hits, embedding = cloud(n_hits=n_hits, dim=dim, seed=seed)
    if n_hits and at_one_place:
        embedding = embedding[np.random.default_rng(seed).integers(0, max(n_hits // 3, 1), n_hits)]
        hits = np.round(hits, -3)
    if n_hits and far:
        embedding[0] += 1e6
    for windows in (OPEN, TIGHT):
        how = {"radius": 0.1, "windows": windows, "max_pairs": 1 << 30}
        found = search("cpu", hits, embedding, **how)
        wanted = graph.radius_graph(hits, embedding, **how)
        np.testing.assert_array_equal(found, wanted)
        # Of so many neighbours nothing is left out; of few at one place it is any, but no pair twice or of its own.
        np.testing.assert_array_equal(search("cpu", hits, embedding, k=max(n_hits, 1), **how), wanted)
        few = {tuple(pair) for pair in search("cpu", hits, embedding, k=2, **how).T.tolist()}
        assert few <= {tuple(pair) for pair in wanted.T.tolist()}


def test_the_graph_is_the_references(device):
    hits, embedding = cloud(n_hits=400, dim=5, seed=6)
    wanted, distance = radius_pairs(hits, embedding, radius=0.2, windows=TIGHT)
    found = search(device, hits, embedding, radius=0.2, windows=TIGHT, max_pairs=1 << 30)
    at_the_edge = np.abs(distance - 0.2) <= 1e-6
    assert not at_the_edge.any()  # else the seed is a bad one
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("n_hits", [0, 1])
def test_too_few_hits(device, n_hits, k):
    hits, embedding = np.ones((n_hits, 3), np.float32), np.ones((n_hits, 4), np.float32)
    assert search(device, hits, embedding, k=k, radius=1.0, windows=OPEN, max_pairs=0).shape == (2, 0)


@pytest.mark.parametrize("k", [None, 29])
def test_over_the_limit(device, k):
    hits, embedding = np.ones((30, 3), np.float32), np.ones((30, 4), np.float32)
    with pytest.raises(
        ContractError, match="graph has more pairs of hits than the model's limit max_pairs, 434"
    ):
        search(device, hits, embedding, k=k, radius=1.0, windows=OPEN, max_pairs=434)


def label(device, hits, edges, score, *, cut):
    labels = labelling_gpu.components(*on(device, hits, edges, score), cut=cut)
    assert labels.device.type == device
    assert labels.dtype == torch.int64
    return labels.cpu().numpy()


@pytest.mark.parametrize(("n_hits", "n_edges"), [(0, 0), (1, 0), (5, 0), (40, 30), (500, 300), (5000, 6000)])
def test_labels_are_the_compiled_and_the_references(device, n_hits, n_edges):
    hits = drawn_hits(n_hits=n_hits, seed=1)
    edges = drawn_edges(n_hits=n_hits, n_edges=n_edges, seed=2) if n_hits else np.empty((2, 0), np.int32)
    score = np.random.default_rng(3).random(n_edges, dtype=np.float32)
    for cut in (0.0, 0.3, 0.999):
        labels = label(device, hits, edges, score, cut=cut)
        np.testing.assert_array_equal(labels, labelling.components(hits, edges, score, cut=cut))
        np.testing.assert_array_equal(labels, component_labels(n_hits, edges, score, cut=cut))


def test_labels_of_long_paths(device):
    """The worst case of a search that only asks its neighbours: one path through all hits, in no order."""
    path = np.random.default_rng(4).permutation(20_000).astype(np.int32)
    edges, score = np.stack([path[:-1], path[1:]]), np.ones(19_999, np.float32)
    hits = np.zeros((20_000, 3), np.float32)
    np.testing.assert_array_equal(label(device, hits, edges, score, cut=0.5), np.zeros(20_000, np.int64))


def test_a_score_at_the_cut_joins(device):
    hits, edges = drawn_helices(n_tracks=4, seed=1)
    score = np.full(edges.shape[1], 0.3, np.float32)
    wanted = labelling.components(hits, edges, score, cut=0.3)
    np.testing.assert_array_equal(label(device, hits, edges, score, cut=0.3), wanted)
    assert wanted.max() >= 0
