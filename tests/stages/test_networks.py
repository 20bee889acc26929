from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tritrack.stages.card import Networks
from tritrack.stages.networks import PairLinear, build_networks, hit_features, pair_features

SIZES = Networks(
    embedding_width=16, embedding_layers=2, embedding_dim=4, filter_widths=(16, 8), gnn_width=8, gnn_steps=3
)


@pytest.fixture(scope="module")
def networks():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return {name: network.eval() for name, network in build_networks(SIZES).items()}


def hits_in_detector(n_hits, seed=0):
    rng = np.random.default_rng(seed)
    phi = rng.uniform(-np.pi, np.pi, n_hits)
    r, z = rng.uniform(30.0, 1000.0, n_hits), rng.uniform(-3000.0, 3000.0, n_hits)
    return torch.from_numpy(np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1))


def test_hit_features_by_hand():
    features = hit_features(torch.tensor([[300.0, 400.0, 1000.0]], dtype=torch.float64))
    eta = -np.log(np.tan(np.arctan2(500.0, 1000.0) / 2))
    assert features[0].tolist() == pytest.approx([0.5, 0.6, 0.8, 1.0, eta / 2, 0.3, 0.4])


def test_pair_features_of_a_circle():
    """A helix of 1 GeV in 2 T from (0, 0, z0) has one curvature and one z0 wherever it is measured."""
    radius, z0, slope = 1 / 6e-4, 20.0, 1.5
    turned = torch.tensor([0.05, 0.1, 0.3], dtype=torch.float64)
    x, y = radius * torch.sin(turned), radius * (1 - torch.cos(turned))
    r = torch.hypot(x, y)
    features = hit_features(torch.stack([x, y, z0 + slope * r], dim=1))
    pairs = pair_features(features, torch.tensor([[0, 0, 1], [1, 2, 2]]))
    # The curvature of the circle is 1 / radius: the feature is its asinh in units of 6e-4 / mm.
    np.testing.assert_allclose(pairs[:, 7].numpy(), np.arcsinh(1.0), rtol=1e-9)
    np.testing.assert_allclose(pairs[:, 6].numpy(), np.arcsinh(z0 / 50.0), rtol=1e-9)
    np.testing.assert_allclose(pairs[:, 0].numpy(), (r[[1, 2, 2]] - r[[0, 0, 1]]).numpy() / 1000, rtol=1e-9)


def test_pair_features_do_not_magnify_rounding_for_close_hits():
    """Hits microns apart in r: another engine's square root may round r, cos and sin phi the other way."""
    rng = np.random.default_rng(0)
    near = hits_in_detector(2000)
    far = near * torch.from_numpy(rng.uniform(1 - 1e-6, 1 + 1e-6, (2000, 1)))
    far[:, 2] += torch.from_numpy(rng.normal(0.0, 5.0, 2000))
    features = hit_features(torch.cat([near, far]).float())
    rounded = features.clone()
    rounded[::3, :3] = torch.nextafter(features[::3, :3], torch.tensor(torch.inf))
    edges = torch.stack([torch.arange(2000), torch.arange(2000, 4000)])
    difference = (pair_features(rounded, edges) - pair_features(features, edges)).abs()
    assert difference.max() < 1e-5


@pytest.mark.parametrize(
    "hits",
    [
        [[0, 0, 0], [0, 0, 0]],
        [[0, 0, -5], [0, 0, 5]],
        [[1e-6, 0, 1e4], [0, -1e-6, -1e4]],
        [[1e4, 1e4, 1e4], [1e4, 1e4, 1e4]],
        [[30, 0, -3000], [30, 0, 3000]],
    ],
)
def test_features_are_finite(hits):
    features = hit_features(torch.tensor(hits, dtype=torch.float32))
    pairs = pair_features(features, torch.tensor([[0, 1, 0], [1, 0, 0]]))
    assert torch.isfinite(features).all()
    assert torch.isfinite(pairs).all()


def test_pair_linear_is_one_linear_layer_over_both_hits_and_the_edge():
    layer = PairLinear(n_hit=3, n_edge=2, n_out=5).double()
    x, e = torch.randn(4, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    edge_index = torch.randint(0, 4, (2, 6))
    together = torch.cat([x[edge_index[0]], x[edge_index[1]], e], dim=1)
    weight = torch.cat([layer.inner.weight, layer.outer.weight, layer.edge.weight], dim=1)
    assert torch.allclose(layer(x, edge_index, e), together @ weight.T + layer.edge.bias)


@pytest.mark.parametrize(("n_hits", "n_edges"), [(0, 0), (1, 0), (5, 0), (5, 1), (50, 200)])
def test_shapes_and_dtypes(networks, n_hits, n_edges):
    hits = hits_in_detector(n_hits).float()
    edges = torch.randint(0, max(n_hits, 1), (2, n_edges), dtype=torch.int32)
    with torch.inference_mode():
        outputs = {
            "embedding": networks["embedding"](hits),
            "filter": networks["filter"](hits, edges),
            "gnn": networks["gnn"](hits, edges),
        }
    assert outputs["embedding"].shape == (n_hits, SIZES.embedding_dim)
    for stage in ("filter", "gnn"):
        assert outputs[stage].shape == (n_edges,)
        assert ((outputs[stage] >= 0) & (outputs[stage] <= 1)).all()
    assert {output.dtype for output in outputs.values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["filter", "gnn"])
def test_scores_do_not_depend_on_the_order_of_hits_or_edges(networks, stage):
    network = networks[stage].double()
    hits, edges = hits_in_detector(40), torch.randint(0, 40, (2, 150))
    hit_order, edge_order = torch.randperm(40), torch.randperm(150)
    with torch.inference_mode():
        score = network(hits, edges)
        permuted = network(hits[hit_order], torch.argsort(hit_order)[edges][:, edge_order])
    assert torch.allclose(permuted, score[edge_order])


def test_a_hit_without_edges_changes_nothing(networks):
    hits, edges = hits_in_detector(40), torch.randint(0, 40, (2, 150))
    network = networks["gnn"].double()
    with torch.inference_mode():
        more = network(torch.cat([hits, hits_in_detector(3, seed=1)]), edges)
        assert torch.allclose(more, network(hits, edges))
