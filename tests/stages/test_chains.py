from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from tritrack.stages.card import Windows
from tritrack.stages.chains import (
    CURVATURE,
    CURVATURE_WIDTH,
    SLOPE,
    SLOPE_WIDTH,
    in_chains,
    intervals,
)
from tritrack.stages.graph import knn_graph, radius_graph
from tritrack.stages.helix import measured
from tritrack.stages.pair_order import orient_pairs
from tritrack.stages.reference import chained_pairs

WINDOWS = Windows(max_z0=1e9, max_curvature=1e9, overlap=15.0, min_chain=3, max_d0=1.0)


def track(radii, *, phi=0.3, slope=0.5, z0=10.0, curvature=3e-4, d0=0.0):
    """Hits on a helix that passes the beam line at d0 mm, float32 [n, 3]."""
    # A circle of radius R whose centre is at R + d0 from the beam line: the distance r from there is at the angle
    # of the law of cosines, seen from the centre.
    big = 1 / curvature
    centre = (big + d0) * np.array([-np.sin(phi), np.cos(phi)])
    r = np.asarray(radii, dtype=np.float64)
    turn = np.arccos((big**2 + (big + d0) ** 2 - r**2) / (2 * big * (big + d0)))
    start = np.arctan2(-centre[1], -centre[0])
    x, y = centre[0] + big * np.cos(start + turn), centre[1] + big * np.sin(start + turn)
    return np.stack([x, y, z0 + slope * big * turn], axis=1).astype(np.float32)


def pairs_of(hits, *pairs):
    return orient_pairs(hits, np.array(pairs, dtype=np.int32).reshape(-1, 2).T)


def kept(hits, pairs, **changes):
    stays = in_chains(hits, pairs, windows=replace(WINDOWS, **changes))
    assert np.array_equal(stays, chained_pairs(hits, pairs, windows=replace(WINDOWS, **changes)))
    return sorted(map(tuple, pairs[:, stays].T.tolist()))


LAYERS = (32, 72, 116, 172, 260)


@pytest.mark.parametrize(
    ("n_hits", "min_chain", "n_kept"),
    [(5, 3, 4), (4, 3, 3), (3, 3, 0), (3, 2, 2), (2, 2, 0), (2, 1, 1), (5, 4, 4), (5, 5, 0)],
)
def test_a_track_is_a_chain_of_its_length(n_hits, min_chain, n_kept):
    hits = track(LAYERS[:n_hits])
    pairs = pairs_of(hits, *((i, i + 1) for i in range(n_hits - 1)))
    assert len(kept(hits, pairs, min_chain=min_chain)) == n_kept


@pytest.mark.parametrize(
    ("slope", "curvature", "goes_on"),
    [
        (0.5, 3e-4, True),
        (0.5, -3e-4, False),  # turns back
        (0.5, 1.5e-3, False),
        (0.6, 3e-4, False),
        (-0.5, 3e-4, False),
    ],
)
def test_a_chain_ends_where_the_direction_changes(slope, curvature, goes_on):
    first, second = (track(LAYERS), track(LAYERS, slope=slope, curvature=abs(curvature)))
    if curvature < 0:
        # Mirrored at the line through the beam line and the hit in the middle.
        along = second[2, :2] / np.hypot(*second[2, :2])
        xy = second[:, :2]
        second[:, :2] = 2 * (xy @ along)[:, None] * along - xy
    second += first[2] - second[2]
    hits = np.concatenate([first[:3], second[3:]])
    pairs = pairs_of(hits, *((i, i + 1) for i in range(4)))
    assert len(kept(hits, pairs)) == (4 if goes_on else 0)


@pytest.mark.parametrize(("d0", "max_d0", "n_kept"), [(0, 0, 4), (0.5, 1, 4), (20, 1, 0), (20, 25, 4)])
def test_chains_pass_the_beam_line_as_near_as_they_may(d0, max_d0, n_kept):
    hits = track(LAYERS, d0=d0)
    pairs = pairs_of(hits, *((i, i + 1) for i in range(4)))
    assert len(kept(hits, pairs, max_d0=max_d0)) == n_kept


def test_two_hits_on_overlapping_modules_go_with_their_track():
    hits = track((32, 72, 73, 116, 172))
    stranger = (hits[2] + np.array([0.0, 3.0, 4.0])).astype(np.float32)
    hits = np.concatenate([hits, [stranger]])
    along = [(0, 1), (1, 3), (3, 4), (0, 2), (2, 3)]
    assert kept(hits, pairs_of(hits, *along, (1, 2), (1, 5))) == sorted([*along, (1, 2)])
    # Where one of the hits has no other pair, nothing speaks for them.
    assert kept(hits, pairs_of(hits, *along[:3], (1, 2))) == along[:3]


def test_intervals_hold_the_slope_and_the_curvature_of_a_helix():
    for slope, curvature, z0 in [(0.0, 1e-4, 0.0), (2.0, 6e-4, -80.0), (-0.7, 1.5e-3, 30.0)]:
        hits = track(LAYERS, slope=slope, curvature=curvature, z0=z0)
        found = intervals(measured(hits), np.arange(4, dtype=np.int32), np.arange(1, 5, dtype=np.int32), 15.0)
        assert np.allclose(found[SLOPE], slope, rtol=1e-4, atol=1e-6)
        assert np.allclose(np.abs(found[CURVATURE]), curvature, rtol=2e-3)
        assert (found[[SLOPE_WIDTH, CURVATURE_WIDTH]] > 0).all()


def drawn(rng, n_tracks, n_noise):
    tracks = [
        track(
            LAYERS,
            phi=rng.uniform(0, 0.3),
            slope=rng.normal(0, 0.3),
            curvature=rng.uniform(1e-4, 1e-3),
            d0=rng.exponential(0.5),
        )
        for _ in range(n_tracks)
    ]
    noise = rng.normal(0, 100, (n_noise, 3)).astype(np.float32)
    return np.concatenate([np.empty((0, 3), np.float32), *tracks, noise])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 10), st.integers(1, 6), st.booleans())
def test_chains_are_those_of_the_reference(seed, n_tracks, n_noise, min_chain, at_one_place):
    rng = np.random.default_rng(seed)
    hits = drawn(rng, n_tracks, n_noise)
    if at_one_place and len(hits):
        hits = hits[rng.integers(0, len(hits), len(hits))]
    n = len(hits)
    every = np.stack(np.nonzero(np.triu(rng.random((n, n)) < 0.4, 1))).astype(np.int32)
    pairs = orient_pairs(hits, every)
    windows = replace(WINDOWS, min_chain=min_chain, max_d0=float(rng.uniform(0, 3)))
    assert np.array_equal(
        in_chains(hits, pairs, windows=windows), chained_pairs(hits, pairs, windows=windows)
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_permuted_hits_give_the_same_chains(seed):
    rng = np.random.default_rng(seed)
    hits = drawn(rng, 4, 5)
    order = rng.permutation(len(hits))
    every = np.stack(np.triu_indices(len(hits), 1)).astype(np.int32)

    def chained(of):
        pairs = orient_pairs(of, every)
        return pairs[:, in_chains(of, pairs, windows=WINDOWS)]

    found = {frozenset(pair) for pair in order[chained(hits[order])].T.tolist()}
    assert found == {frozenset(pair) for pair in chained(hits).T.tolist()}


@pytest.mark.parametrize("build", ["radius", "knn"])
def test_both_graphs_ask_for_chains(build):
    hits = np.concatenate([track(LAYERS), [[-300.0, 0.0, 0.0]]]).astype(np.float32)
    limits = {"radius": 1e4, "windows": WINDOWS, "max_pairs": 100}
    pairs = radius_graph(hits, hits, **limits) if build == "radius" else knn_graph(hits, hits, k=6, **limits)
    assert set(map(tuple, pairs.T.tolist())) == {(i, j) for j in range(5) for i in range(max(j - 2, 0), j)}


@pytest.mark.parametrize("n_hits", [0, 1, 3])
def test_no_pairs_no_chains(n_hits):
    hits = np.ones((n_hits, 3), np.float32)
    assert in_chains(hits, np.empty((2, 0), np.int32), windows=WINDOWS).shape == (0,)
