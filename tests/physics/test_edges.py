"""True pairs, edge efficiency and purity."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritrack.events.event import Event, Particles, Truth
from tritrack.physics.edges import count_edges, is_true_edge, true_pairs
from tritrack.physics.selection import PhysicsError


def make_event(particle_id, order=None, pt=()):
    particle_id = np.array(particle_id, dtype=np.int64)
    ids = np.unique(particle_id[particle_id > 0])
    momentum = np.zeros((ids.size, 3), dtype=np.float32)
    momentum[:, 0] = pt if len(pt) else 2
    return Event(
        event_id=12,
        hits=np.zeros((particle_id.size, 3), dtype=np.float32),
        hit_id=np.arange(particle_id.size),
        modules=np.zeros((particle_id.size, 3), dtype=np.int32),
        truth=Truth(
            particle_id=particle_id,
            order=np.array(range(particle_id.size) if order is None else order, dtype=np.float32),
            particles=Particles(
                particle_id=ids,
                charge=np.ones(ids.size, dtype=np.float32),
                vertex=np.zeros((ids.size, 3), dtype=np.float32),
                momentum=momentum,
                primary=np.ones(ids.size, dtype=np.bool_),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("particle_id", "order", "skip", "wanted"),
    [
        ([], [], 0, []),
        ([], [], 1, []),
        ([100], [1], 1, []),
        ([0, 0, 0], [1, 2, 3], 1, []),
        ([100, 101, 102], [1, 2, 3], 1, []),
        ([100, 0, 100], [1, 2, 3], 0, [(0, 2)]),
        ([100, 100, 100], [3, 1, 2], 0, [(0, 2), (1, 2)]),
        ([100, 100, 100], [3, 1, 2], 1, [(0, 1), (0, 2), (1, 2)]),
        ([100, 100, 100], [5, 5, 5], 0, [(0, 1), (1, 2)]),
        ([101, 100, 101, 100], [1, 1, 2, 2], 0, [(0, 2), (1, 3)]),
        ([100] * 4, [1, 2, 3, 4], 1, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]),
        ([100] * 4, [1, 2, 3, 4], 9, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_true_pairs(particle_id, order, skip, wanted):
    pairs = true_pairs(make_event(particle_id, order).truth, skip=skip)
    assert pairs.dtype == np.int64
    assert pairs.shape == (2, len(wanted))
    assert [tuple(pair) for pair in pairs.T.tolist()] == wanted


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 100, 101, 205]), st.integers(0, 5)), max_size=20))
def test_true_pairs_equal_a_loop(hits):
    wanted = set()
    for skip in (0, 1, 2):
        for particle in (100, 101, 205):
            path = sorted((order, hit) for hit, (p, order) in enumerate(hits) if p == particle)
            path = [hit for _, hit in path]
            wanted |= {tuple(sorted(pair)) for pair in zip(path, path[1 + skip :], strict=False)}
        truth = make_event([p for p, _ in hits], [order for _, order in hits]).truth
        assert [tuple(pair) for pair in true_pairs(truth, skip=skip).T.tolist()] == sorted(wanted)


EVENT = make_event([100] * 5 + [101] * 5 + [102] * 3 + [0], pt=[2, 0.5, 3])
# 4 pairs of the one target, 4 of a particle of low pT, 2 of one with few hits


@pytest.mark.parametrize(
    ("edges", "efficiency", "efficiency_all", "purity"),
    [
        ([], 0, 0, None),
        ([(0, 1), (1, 2), (2, 3), (3, 4)], 1, 0.4, 1),
        ([(1, 0), (2, 1)], 0.5, 0.2, 1),
        ([(0, 1), (0, 2), (0, 13), (5, 6)], 0.25, 0.2, 0.5),
        ([(4, 5), (9, 10), (13, 0)], 0, 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_efficiency_and_purity(edges, efficiency, efficiency_all, purity, dtype):
    edge_index = np.array(edges, dtype=dtype).reshape(-1, 2).T
    counts = count_edges(event=EVENT, edge_index=edge_index)
    found = counts.to_json()
    assert found["edge_efficiency"]["value"] == efficiency
    assert found["edge_efficiency_all"]["value"] == efficiency_all
    assert found["edge_purity"]["value"] == purity
    assert (counts.pairs, counts.target_pairs, counts.edges) == (10, 4, len(edges))
    for bins, kept in zip(counts.against, counts.against_kept, strict=True):
        assert bins.sum() == 4
        assert kept.sum() == 4 * efficiency
    json.dumps(found, allow_nan=False)
    twice = counts + counts
    assert twice.n_events == 2
    assert twice.to_json()["edge_efficiency"]["value"] == efficiency


def test_skipped_hits_count_when_asked():
    edge_index = np.array([[0, 0], [1, 2]], dtype=np.int32)
    assert count_edges(event=EVENT, edge_index=edge_index).purity.value == 0.5
    assert count_edges(event=EVENT, edge_index=edge_index, skip=1).purity.value == 1


def test_empty_event():
    found = count_edges(event=make_event([]), edge_index=np.zeros((2, 0), dtype=np.int32)).to_json()
    assert [found[f"edge_{name}"]["value"] for name in ("efficiency", "efficiency_all", "purity")] == [
        None
    ] * 3


def test_no_pairs_no_edges_true():
    edge_index = np.array([[0], [1]], dtype=np.int32)
    assert not is_true_edge(edge_index=edge_index, pairs=np.zeros((2, 0), dtype=np.int64)).any()


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        (np.zeros((3, 2), dtype=np.int32), r"event 12: edges of shape \[3, 2\]"),
        (np.array([[0, 3], [1, 14]]), r"event 12: edge 1 joins hits \[3, 14\] of an event of 14 hits"),
        (np.array([[-1], [1]]), r"event 12: edge 0 joins hits \[-1, 1\]"),
    ],
)
def test_edges_that_cannot_be(edge_index, message):
    with pytest.raises(PhysicsError, match=message):
        count_edges(event=EVENT, edge_index=edge_index)
