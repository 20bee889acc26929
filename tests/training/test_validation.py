"""What is kept of the pairs, and the cuts during the training, with networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.events.event import EventError
from tritrack.stages.card import Windows
from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork
from tritrack.training.sample import make_sample, pair_targets, path_pairs
from tritrack.training.validation import (
    FILTER_RECALL,
    GRAPH_RECALL,
    PairCounts,
    choose_filter_cut,
    choose_radius,
    count_pairs,
    is_counted,
    validate_embedding,
    validate_filter,
    validate_gnn,
)

OPEN = Windows(max_z0=1e9, max_curvature=1e9, overlap=1e9)


def test_counts_of_a_hand_made_event(hand_made):
    sample = make_sample(hand_made)
    # Consecutive on the hard particle, one skipped, consecutive on the soft one, of two particles.
    pairs = np.array([[3, 3, 4, 3], [5, 1, 0, 4]], dtype=np.int32)
    assert is_counted(sample, pairs).tolist() == [True, False, False, False]
    counts = count_pairs(sample, pairs)
    assert counts == PairCounts(counted=3, kept=1, edges=4, right=3)
    assert counts.efficiency == pytest.approx(1 / 3)
    assert counts.purity == pytest.approx(3 / 4)
    assert counts + counts == PairCounts(counted=6, kept=2, edges=8, right=6)


def test_shares_of_nothing_are_no_numbers():
    nothing = PairCounts(counted=0, kept=0, edges=0, right=0)
    assert np.isnan([nothing.efficiency, nothing.purity]).all()


@pytest.mark.parametrize("recall", [0.5, 0.9, 1.0])
def test_radius(helices, known, recall):
    samples = [make_sample(helices(i, n_particles=30)) for i in (1, 2)]
    radius = choose_radius(known(lambda hits: hits / 1000), samples, recall=recall)
    steps = np.concatenate(
        [
            np.linalg.norm(np.diff(sample.hits[path_pairs(sample, gap=1)] / 1000, axis=0)[0], axis=1)
            for sample in samples
        ]
    )
    assert steps.size == 2 * 30 * 9
    assert np.mean(steps <= radius) == pytest.approx(recall, abs=1 / steps.size)


def test_soft_particles_do_not_choose_the_radius(hand_made, known):
    sample = make_sample(hand_made)
    places = np.zeros((9, 1))
    places[0] = 1000  # a hit of a particle of 0.5 GeV
    places[6] = 2
    assert 0 < choose_radius(known(lambda _: places), [sample], recall=0.99) <= 2


@pytest.mark.parametrize("recall", [0.5, 0.98, 1.0])
def test_filter_cut(helices, known, graph_of, recall):
    samples = [make_sample(helices(i, n_particles=30)) for i in (1, 2)]
    graphs = [(sample, graph_of(sample)) for sample in samples]
    network = known(lambda _, pairs: (pairs[0] * 31 + pairs[1] * 17) % 1009 / 1009)
    cut = choose_filter_cut(network, graphs, recall=recall)
    scores = np.concatenate(
        [network(torch.from_numpy(s.hits), torch.from_numpy(p)).numpy()[is_counted(s, p)] for s, p in graphs]
    )
    assert np.mean(scores >= cut) == pytest.approx(recall, abs=2 / scores.size)


@pytest.mark.parametrize("n_noise", [0, 5])
def test_nothing_to_choose_on(helices, known, n_noise):
    sample = make_sample(helices(1, n_particles=0, n_noise=n_noise))
    none = np.empty((2, 0), dtype=np.int32)
    with pytest.raises(EventError, match="no pair of hits"):
        choose_radius(known(lambda hits: hits), [sample], recall=0.99)
    with pytest.raises(EventError, match="no pair of hits"):
        choose_filter_cut(known(lambda _, pairs: pairs[0]), [(sample, none)], recall=0.99)


def test_curves_of_fresh_networks(helices, graph_of):
    samples = [make_sample(helices(i, n_particles=30)) for i in (1, 2)]
    graphs = [(sample, graph_of(sample)) for sample in samples]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        embedding = EmbeddingNetwork(width=8, layers=1, dim=3)
        filter_, gnn = FilterNetwork(widths=(8, 4)), GnnNetwork(width=4, steps=1)
    of_embedding = validate_embedding(embedding, samples, windows=OPEN)
    assert of_embedding.edge_efficiency == pytest.approx(GRAPH_RECALL, abs=0.01)
    of_filter = validate_filter(filter_, graphs)
    assert of_filter.edge_efficiency == pytest.approx(FILTER_RECALL, abs=0.01)
    of_gnn = validate_gnn(gnn, graphs)
    for validation in (of_embedding, of_filter, of_gnn):
        assert 0 < validation.loss < 100
    share_right = np.mean(np.concatenate([pair_targets(s, p)[0] for s, p in graphs]))
    assert of_filter.edge_purity == pytest.approx(share_right, abs=0.05)
