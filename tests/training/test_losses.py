"""The losses: against plain ones, and falling on a toy event."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tritrack.stages.card import Windows
from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork
from tritrack.training import losses
from tritrack.training.losses import embedding_loss, filter_loss, gnn_loss
from tritrack.training.sample import make_sample, pair_targets, path_pairs

OPEN = Windows(max_z0=1e9, max_curvature=1e9, overlap=1e9)


class Points(torch.nn.Module):
    """An embedding that is given, one point a hit."""

    def __init__(self, points):
        super().__init__()
        self.points = torch.nn.Parameter(torch.from_numpy(points.astype(np.float32)))

    def forward(self, hits):
        return self.points[: len(hits)]


class Scores(torch.nn.Module):
    """Logits that are given by the pair, and a record of the pairs that were asked for."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.3))
        self.asked = None

    def logits(self, hits, pairs):
        self.asked = pairs.numpy()
        return self.slope * (pairs[0] - pairs[1])


def all_pairs(n_hits):
    return np.stack(np.triu_indices(n_hits, k=1)).astype(np.int32)


def cross_entropy(sample, pairs):
    """Weighted mean of -log of the probability of the right answer, pair by pair."""
    target, weight = pair_targets(sample, pairs)
    probability = 1 / (1 + np.exp(-0.3 * (pairs[0] - pairs[1]).astype(np.float64)))
    surprise = -np.log(np.where(target, probability, 1 - probability))
    return (weight * surprise).sum() / weight.sum()


def test_embedding_loss(hand_made):
    sample = make_sample(hand_made)
    points = np.random.default_rng(1).uniform(0, 1, (9, 3)).astype(np.float32)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    expected = 0.0
    for gap, gap_weight in ((1, losses.GAP_WEIGHT[0]), (2, losses.GAP_WEIGHT[1])):
        a, b = path_pairs(sample, gap=gap)
        weight = np.minimum(sample.weight[a], 1) ** 2
        expected += gap_weight * (weight * distance[a, b] ** 2).sum() / max(weight.sum(), 1)
    same = (sample.particle[:, None] == sample.particle[None]) & (sample.particle[:, None] >= 0)
    stranger = ~same & (distance < losses.MARGIN) & ~np.eye(9, dtype=bool)
    push = (np.maximum(losses.MARGIN - distance, 0) ** 2)[stranger].sum()
    expected += losses.NEGATIVE_WEIGHT * push / 9  # nine queries: every hit
    loss = embedding_loss(Points(points), sample, np.random.default_rng(2), windows=OPEN)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_strangers_that_the_windows_throw_out_cost_nothing(hand_made):
    sample = make_sample(hand_made)
    network = Points(np.random.default_rng(1).uniform(0, 1, (9, 3)))
    values = [
        float(embedding_loss(network, sample, np.random.default_rng(2), windows=windows).detach())
        for windows in (
            OPEN,
            Windows(max_z0=0, max_curvature=0, overlap=1e9),
            Windows(max_z0=0, max_curvature=0, overlap=0),
        )
    ]
    assert values[0] == values[1]
    attraction = 0.0
    points = network.points.detach().numpy().astype(np.float64)
    for gap, gap_weight in enumerate(losses.GAP_WEIGHT, start=1):
        a, b = path_pairs(sample, gap=gap)
        weight = np.minimum(sample.weight[a], 1) ** 2
        attraction += (
            gap_weight * (weight * np.square(points[a] - points[b]).sum(axis=1)).sum() / max(weight.sum(), 1)
        )
    assert values[2] == pytest.approx(attraction, rel=1e-5)


def test_a_share_of_the_hard_negatives_stands_for_all(helices, monkeypatch):
    sample = make_sample(helices(1))
    points = np.random.default_rng(1).uniform(0, 0.5, (len(sample.hits), 2))
    network = Points(points)
    whole = float(embedding_loss(network, sample, np.random.default_rng(2), windows=OPEN).detach())
    monkeypatch.setattr(losses, "N_HARD_NEGATIVES", 4000)  # of about 40,000
    shares = [
        float(embedding_loss(network, sample, np.random.default_rng(i), windows=OPEN).detach())
        for i in range(5)
    ]
    assert len(set(shares)) == 5
    assert shares == pytest.approx([whole] * 5, rel=0.1)


def test_gnn_loss_is_over_all_pairs(hand_made):
    sample, pairs = make_sample(hand_made), all_pairs(9)
    assert float(gnn_loss(Scores(), sample, pairs).detach()) == pytest.approx(
        cross_entropy(sample, pairs), rel=1e-5
    )


def test_filter_loss_takes_all_true_pairs_and_a_share_of_the_others(hand_made, monkeypatch):
    sample, pairs = make_sample(hand_made), all_pairs(9)
    target, weight = pair_targets(sample, pairs)
    network = Scores()
    # Without a limit all pairs count, for those of weight 0 add nothing.
    loss = float(filter_loss(network, sample, pairs, np.random.default_rng(1)).detach())
    assert loss == pytest.approx(cross_entropy(sample, pairs), rel=1e-5)
    assert network.asked.shape[1] == (weight > 0).sum()
    monkeypatch.setattr(losses, "N_FILTER_NEGATIVES", 4)
    filter_loss(network, sample, pairs, np.random.default_rng(1))
    asked_target, asked_weight = pair_targets(sample, network.asked)
    assert asked_target.sum() == target.sum()
    assert (~asked_target).sum() == 4
    assert (asked_weight > 0).all()


def test_no_pairs(hand_made):
    sample, none = make_sample(hand_made), np.empty((2, 0), dtype=np.int32)
    assert float(gnn_loss(Scores(), sample, none).detach()) == 0
    assert float(filter_loss(Scores(), sample, none, np.random.default_rng(1)).detach()) == 0


def test_an_event_without_particles_or_hits(helices):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = EmbeddingNetwork(width=8, layers=1, dim=3)
    for n_noise in (4, 0):
        sample = make_sample(helices(1, n_particles=0, n_noise=n_noise))
        loss = embedding_loss(network, sample, np.random.default_rng(1), windows=OPEN)
        loss.backward()
        assert bool(torch.isfinite(loss))


@pytest.mark.parametrize("kind", ["embedding", "filter", "gnn"])
def test_losses_fall(helices, kind):
    event = helices(1, n_particles=10, n_noise=5)
    sample, pairs = make_sample(event), all_pairs(event.n_hits)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network, loss_of = {
            "embedding": lambda: (
                EmbeddingNetwork(width=32, layers=2, dim=4),
                partial(embedding_loss, windows=OPEN),
            ),
            "filter": lambda: (
                FilterNetwork(widths=(16, 8)),
                lambda net, sample, rng: filter_loss(net, sample, pairs, rng),
            ),
            "gnn": lambda: (
                GnnNetwork(width=8, steps=2),
                lambda net, sample, _: gnn_loss(net, sample, pairs[:, ::7]),
            ),
        }[kind]()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    values = []
    for _ in range(25):
        loss = loss_of(network, sample, np.random.default_rng(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]
