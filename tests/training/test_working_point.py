"""The choice of the cuts, with networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.events.event import EventError
from tritrack.stages.labelling import LABELLINGS
from tritrack.training.sample import make_sample, pair_targets, path_pairs
from tritrack.training.working_point import (
    FILTER_RECALL,
    GNN_CUTS,
    GRAPH_RECALL,
    choose_filter_cut,
    choose_gnn_cut,
    choose_radius,
    measure,
    score_graphs,
)


class Known(torch.nn.Module):
    """Answers with a function of its arrays."""

    def __init__(self, function):
        super().__init__()
        self.none = torch.nn.Parameter(torch.zeros(()))
        self.function = function

    def forward(self, *tensors):
        return torch.from_numpy(np.asarray(self.function(*(t.numpy() for t in tensors)), dtype=np.float32))


def graph_of(sample):
    """True pairs of consecutive hits and as many wrong ones, inner hit first."""
    right = path_pairs(sample, gap=1)
    rng = np.random.default_rng(1)
    wrong = rng.integers(0, len(sample.hits), right.shape)
    wrong = wrong[:, ~pair_targets(sample, wrong)[0]]
    pairs = np.concatenate([right, wrong], axis=1)
    r = np.linalg.norm(sample.hits, axis=1)
    inner_first = np.where(r[pairs[0]] <= r[pairs[1]], pairs, pairs[::-1])
    return np.unique(inner_first, axis=1).astype(np.int32)


def test_radius(helices):
    samples = [make_sample(helices(i, n_particles=30)) for i in (1, 2)]
    embedding = Known(lambda hits: hits / 1000)
    radius = choose_radius(embedding, samples)
    steps = np.concatenate(
        [
            np.linalg.norm(np.diff(sample.hits[path_pairs(sample, gap=1)] / 1000, axis=0)[0], axis=1)
            for sample in samples
        ]
    )
    assert steps.size == 2 * 30 * 9
    assert np.mean(steps <= radius) == pytest.approx(GRAPH_RECALL, abs=1 / steps.size)


def test_soft_particles_do_not_choose_the_radius(hand_made):
    sample = make_sample(hand_made)
    sample.weight[sample.particle == 3] = 0.49
    places = np.zeros((9, 1))
    places[0] = 1000  # a hit of that particle
    places[6] = 2
    assert 0 < choose_radius(Known(lambda _: places), [sample]) <= 2


def consecutive(sample, pairs):
    return pair_targets(sample, pairs)[0] & (np.abs(sample.rank[pairs[0]] - sample.rank[pairs[1]]) == 1)


def test_filter_cut(helices):
    samples = [make_sample(helices(i, n_particles=30)) for i in (1, 2)]
    graphs = [(sample, graph_of(sample)) for sample in samples]
    network = Known(lambda _, pairs: (pairs[0] * 31 + pairs[1] * 17) % 1009 / 1009)
    cut = choose_filter_cut(network, graphs)
    scores = np.concatenate(
        [network(torch.from_numpy(s.hits), torch.from_numpy(p)).numpy()[consecutive(s, p)] for s, p in graphs]
    )
    assert np.mean(scores >= cut) == pytest.approx(FILTER_RECALL, abs=2 / scores.size)


def test_gnn_cut(helices):
    graphs = [(s := make_sample(helices(i)), graph_of(s)) for i in (1, 2)]
    truth = {s.hits.tobytes(): s for s, _ in graphs}

    def score(hits, pairs):
        target, _ = pair_targets(truth[hits.tobytes()], pairs)
        return np.where(target, 0.52, 0.48)

    scored = score_graphs(Known(score), graphs)
    labelling, cut = choose_gnn_cut(scored)
    assert cut == 0.5
    assert labelling in LABELLINGS
    metrics = measure(scored, labelling=labelling, cut=cut)
    assert metrics["efficiency"] == 1
    assert metrics["fake_rate"] == metrics["unmatched_rate"] == 0


def test_no_tracks_at_any_cut(helices):
    sample = make_sample(helices(1))
    scored = score_graphs(Known(lambda _, pairs: np.zeros(pairs.shape[1])), [(sample, graph_of(sample))])
    labelling, cut = choose_gnn_cut(scored)
    assert cut in GNN_CUTS
    metrics = measure(scored, labelling=labelling, cut=cut)
    assert metrics["efficiency"] == 0
    assert "fake_rate" not in metrics  # of no tracks there is no share


@pytest.mark.parametrize("n_noise", [0, 5])
def test_nothing_to_choose_on(helices, n_noise):
    sample = make_sample(helices(1, n_particles=0, n_noise=n_noise))
    none = np.empty((2, 0), dtype=np.int32)
    with pytest.raises(EventError, match="no pair of hits"):
        choose_radius(Known(lambda hits: hits), [sample])
    with pytest.raises(EventError, match="no pair of hits"):
        choose_filter_cut(Known(lambda _, pairs: pairs[0]), [(sample, none)])
