from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK
from tritrack.stages.labelling import LABELLINGS, components, number_tracks, walkthrough
from tritrack.stages.reference import component_labels, path_labels

CUT = 0.5


def hits_at(*distance):
    """Hits along x, so that their order from inside to outside is that of the distances."""
    return np.array([[d, 0, 0] for d in distance], dtype=np.float32).reshape(-1, 3)


def edges_of(*edges):
    rows = np.array(edges, dtype=np.float64).reshape(-1, 3)
    return rows[:, :2].T.astype(np.int32), rows[:, 2].astype(np.float32)


HAND_MADE = {
    # name: (distances, (inner, outer, score)..., components, walk-through)
    "no hits": ([], [], [], []),
    "one hit": ([1], [], [-1], [-1]),
    "isolated hits": ([1, 2, 3], [], [-1] * 3, [-1] * 3),
    "two hits are no track": ([1, 2, 3], [(0, 1, 0.9)], [-1] * 3, [-1] * 3),
    "one track": ([1, 2, 3], [(0, 1, 0.9), (1, 2, 0.9)], [0] * 3, [0] * 3),
    "the cut itself joins": ([1, 2, 3], [(0, 1, 0.5), (1, 2, 0.5)], [0] * 3, [0] * 3),
    "below the cut": ([1, 2, 3], [(0, 1, 0.9), (1, 2, 0.49)], [-1] * 3, [-1] * 3),
    "numbered by first hit": (
        [3, 1, 1, 2, 2, 3],
        [(2, 3, 0.9), (3, 5, 0.9), (1, 4, 0.6), (4, 0, 0.6)],
        [0, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 0, 1],
    ),
    # 0-1-2, then two ways on: 3-4 (better) and 5-6-7.
    "a branch": (
        [1, 2, 3, 4, 5, 4.5, 5.5, 6.5],
        [(0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.9), (3, 4, 0.9), (2, 5, 0.51), (5, 6, 0.6), (6, 7, 0.6)],
        [0] * 8,
        [0, 0, 0, 0, 0, 1, 1, 1],
    ),
    # Two tracks that cross in hit 2: the better goes through, what is left of the other is too short.
    "a crossing": (
        [1, 1.5, 2, 3, 3.5],
        [(0, 2, 0.9), (2, 3, 0.9), (1, 2, 0.6), (2, 4, 0.6)],
        [0] * 5,
        [0, -1, 0, 0, -1],
    ),
    "a skipped layer": ([1, 2, 3], [(0, 1, 0.8), (1, 2, 0.8), (0, 2, 0.9)], [0] * 3, [0] * 3),
    # Equal sums: the inner of the two goes with the track.
    "a tie": (
        [1, 2.5, 2, 3, 4],
        [(0, 1, 0.8), (0, 2, 0.8), (1, 3, 0.8), (2, 3, 0.8), (3, 4, 0.8)],
        [0] * 5,
        [0, -1, 0, 0, 0],
    ),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_hand_made(case):
    distance, edges, as_components, as_paths = HAND_MADE[case]
    hits = hits_at(*distance)
    assert components(hits, *edges_of(*edges), cut=CUT).tolist() == as_components
    labels = walkthrough(hits, *edges_of(*edges), cut=CUT)
    assert labels.dtype == np.int64
    assert labels.tolist() == as_paths


@st.composite
def graphs(draw, *, tied_scores):
    n_hits = draw(st.integers(0, 40))
    n_edges = draw(st.integers(0, 2 * n_hits)) if n_hits > 1 else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hits = rng.normal(0.0, 500.0, (n_hits, 3)).astype(np.float32)
    distance = np.square(hits.astype(np.float64)).sum(axis=1)
    edges = rng.integers(0, max(n_hits, 1), (2, n_edges), dtype=np.int32)
    edges = np.where(distance[edges[0]] <= distance[edges[1]], edges, edges[::-1])
    edges = np.unique(edges[:, edges[0] != edges[1]], axis=1)
    score = rng.choice([0.4, 0.5, 0.75, 1.0], edges.shape[1]) if tied_scores else rng.random(edges.shape[1])
    return hits, edges, score.astype(np.float32)


def check_labels(labels):
    tracks, first, counts = np.unique(labels[labels != NO_TRACK], return_index=True, return_counts=True)
    assert tracks.tolist() == list(range(tracks.size))
    assert (np.diff(first) > 0).all()
    assert (counts >= MIN_TRACK_HITS).all()


@settings(deadline=None, max_examples=150)
@given(graphs(tied_scores=False))
def test_same_as_the_plain_ones(graph):
    hits, edges, score = graph
    assert np.array_equal(
        components(hits, edges, score, cut=CUT), component_labels(len(hits), edges, score, cut=CUT)
    )
    assert np.array_equal(walkthrough(hits, edges, score, cut=CUT), path_labels(hits, edges, score, cut=CUT))


def as_sets(labels):
    return {
        frozenset(np.flatnonzero(labels == track).tolist()) for track in set(labels.tolist()) - {NO_TRACK}
    }


@settings(deadline=None, max_examples=100)
@given(graphs(tied_scores=True), st.randoms(use_true_random=False))
@pytest.mark.parametrize("method", sorted(LABELLINGS))
def test_permuted_hits_give_the_same_tracks(method, graph, random):
    hits, edges, score = graph
    order = np.array(random.sample(range(len(hits)), len(hits)), dtype=np.int64)
    new_index = np.argsort(order)
    permuted = new_index[edges].astype(np.int32)
    by_pair = np.lexsort((permuted[1], permuted[0]))
    labels = LABELLINGS[method](hits, edges, score, cut=CUT)
    again = LABELLINGS[method](hits[order], permuted[:, by_pair], score[by_pair], cut=CUT)
    check_labels(labels)
    check_labels(again)
    assert as_sets(labels) == as_sets(again[new_index])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 30), st.integers(0, 80), st.integers(0, 2**32 - 1))
def test_a_walk_through_follows_edges_whatever_they_are(n_hits, n_edges, seed):
    """Pairs of any order, twice, of a hit with itself; hits at one distance."""
    rng = np.random.default_rng(seed)
    hits = hits_at(*rng.integers(1, 6, n_hits))
    edges = rng.integers(0, n_hits, (2, n_edges), dtype=np.int32)
    score = rng.choice([0.4, 0.5, 0.9], n_edges).astype(np.float32)
    labels = walkthrough(hits, edges, score, cut=CUT)
    check_labels(labels)
    joined = {frozenset(pair) for pair in edges[:, score >= CUT].T.tolist()}
    for track in as_sets(labels):
        neighbours = {hit: sum({hit, other} in joined for other in track - {hit}) for hit in track}
        assert min(neighbours.values()) >= 1


@pytest.mark.parametrize(
    ("group", "labels"),
    [
        ([], []),
        ([7, 7, 7], [0, 0, 0]),
        ([9, 2, 9, 2, 9, 2], [0, 1, 0, 1, 0, 1]),
        ([-1, -1, -1, -1], [-1] * 4),
        ([5, -1, 5, 1, 5, 1], [0, -1, 0, -1, 0, -1]),
    ],
)
def test_number_tracks(group, labels):
    assert number_tracks(np.array(group, dtype=np.int64)).tolist() == labels
