"""What the stages give from the torch modules, and pairs kept on disk."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.stages import filtering
from tritrack.stages.card import Windows
from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork, run_network
from tritrack.training.graphs import filtered_pairs, graph_pairs, kept, pair_scores


@pytest.fixture(scope="module")
def networks():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return (
            EmbeddingNetwork(width=8, layers=1, dim=3),
            FilterNetwork(widths=(8, 4)),
            GnnNetwork(width=4, steps=1),
        )


def test_graph_pairs_are_those_within_the_radius(networks, helices):
    hits = helices(1, n_particles=8).hits
    embedding, *_ = networks
    points = embedding(torch.from_numpy(hits)).detach().numpy().astype(np.float64)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    radius = float(np.quantile(distance, 0.1))
    windows = Windows(max_z0=1e9, max_curvature=1e9, overlap=1e9)
    pairs = graph_pairs(embedding, hits, radius=radius, windows=windows)
    assert pairs.dtype == np.int32
    assert pairs.shape[1] == np.count_nonzero(np.triu(distance <= radius, k=1))


def test_scores_in_chunks(networks, helices, monkeypatch):
    hits = helices(1, n_particles=4).hits
    pairs = np.stack(np.triu_indices(len(hits), k=1)).astype(np.int32)
    _, filter_, gnn = networks
    whole = pair_scores(filter_, hits, pairs)
    monkeypatch.setattr(filtering, "PAIRS_AT_ONCE", 97)
    np.testing.assert_allclose(pair_scores(filter_, hits, pairs), whole, rtol=1e-5)
    assert whole.shape == run_network(gnn, hits, pairs).shape == (pairs.shape[1],)
    cut = float(np.median(whole))
    left = filtered_pairs(filter_, hits, pairs, cut=cut)
    assert 0 < left.shape[1] < pairs.shape[1]


def test_no_pairs(networks, helices):
    hits, none = helices(1, n_particles=1).hits, np.empty((2, 0), dtype=np.int32)
    _, filter_, gnn = networks
    assert pair_scores(filter_, hits, none).shape == run_network(gnn, hits, none).shape == (0,)
    assert filtered_pairs(filter_, hits, none, cut=0.5).shape == (2, 0)


def test_kept_makes_once(tmp_path):
    path, pairs, made = tmp_path / "graph" / "event.npy", np.array([[1, 2], [3, 4]], dtype=np.int32), []

    def make():
        made.append(1)
        return pairs

    for _ in range(3):
        np.testing.assert_array_equal(kept(path, make), pairs)
    assert len(made) == 1
    assert [file.name for file in path.parent.iterdir()] == ["event.npy"]


def test_kept_leaves_no_half(tmp_path):
    def fail():
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        kept(tmp_path / "event.npy", fail)
    assert list(tmp_path.iterdir()) == []
