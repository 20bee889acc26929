from __future__ import annotations

import numpy as np
import pytest

from tritrack.stages import filtering
from tritrack.stages.contract import ContractError
from tritrack.stages.filtering import score_pairs, select_edges

PAIRS = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], dtype=np.int32)


@pytest.mark.parametrize(
    ("score", "cut", "kept"),
    [
        ([0.1, 0.9, 0.2, 0.8], 0.5, [1, 3]),
        ([0.1, 0.1, 0.1, 0.1], 0.1, [0, 1, 2, 3]),  # the cut itself is kept, as a float32
        ([0.1, 0.1, 0.1, 0.1], 0.2, []),
        ([0.0, 1.0, 0.0, 1.0], 0.0, [0, 1, 2, 3]),
    ],
)
def test_keeps_scores_that_reach_the_cut(score, cut, kept):
    selected = select_edges(PAIRS, np.array(score, dtype=np.float32), cut=cut, max_edges=4)
    assert selected.dtype == np.int32
    assert selected.flags.c_contiguous
    assert selected.tolist() == PAIRS[:, kept].tolist()


def test_more_edges_than_the_limit_are_refused():
    message = "the filter keeps 3 edges, the model's limit max_edges is 2"
    with pytest.raises(ContractError, match=message):
        select_edges(PAIRS, np.array([1, 1, 0, 1], dtype=np.float32), cut=0.5, max_edges=2)


def test_a_score_that_is_no_number_is_no_low_one():
    with pytest.raises(ContractError, match="PAIR_SCORE: the network overflows on these hits"):
        select_edges(PAIRS, np.array([1, np.nan, 0, 1], dtype=np.float32), cut=0.5, max_edges=4)


def test_no_edges():
    none = select_edges(np.empty((2, 0), dtype=np.int32), np.empty(0, dtype=np.float32), cut=0.5, max_edges=0)
    assert none.shape == (2, 0)


@pytest.mark.parametrize("n_edges", [0, 1, 4, 5, 8, 11])
def test_pairs_are_scored_in_pieces(monkeypatch, n_edges):
    monkeypatch.setattr(filtering, "PAIRS_AT_ONCE", 4)
    seen = []

    def network(hits, edge_index):
        seen.append(edge_index.shape[1])
        assert edge_index.flags.c_contiguous
        return hits[edge_index[0], 0] + hits[edge_index[1], 1]

    hits = np.random.default_rng(0).random((6, 3), dtype=np.float32)
    edges = np.random.default_rng(1).integers(0, 6, (2, n_edges), dtype=np.int32)
    score = score_pairs(network, hits, edges)
    assert score.dtype == np.float32
    assert score.tolist() == (hits[edges[0], 0] + hits[edges[1], 1]).tolist()
    assert sum(seen) == n_edges
    assert max(seen, default=0) <= 4
