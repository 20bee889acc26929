from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from tritrack.physics.kalman import new_state
from tritrack.rules.follow import MAX_HITS, circle_through_beam, follow
from tritrack.rules.grid import geometry_of, sort_hits, steps_of


@pytest.fixture
def follow_all(barrel_rules):
    """Follow a track with all hits on it given, from the outside inwards; hits behind those are not given."""
    rules = barrel_rules
    geometry = geometry_of(rules.layers)
    inwards = steps_of(rules.steps[:, ::-1], n_layers=rules.layers.n)

    def run(hits, n_given):
        grid, order = sort_hits(hits.astype(np.float32), layers=rules.layers, geometry=geometry)
        place = np.argsort(order)
        given = np.zeros(MAX_HITS, dtype=np.int64)
        given[:n_given] = place[:n_given][::-1]
        circle = circle_through_beam(grid, given[n_given - 1], given[0])
        return follow(grid, geometry, rules.windows, inwards, circle, new_state(), given, n_given)

    return run


def test_a_hit_beside_a_given_one_adds_its_chi2(follow_all, draw_helices, barrel_rules):
    """On a module 1.5 mm behind the track's."""
    hits = draw_helices(n=1, pt=3.0, seed=5, scattering=False).hits.astype(np.float64)
    n, chi2, _ = follow_all(hits, len(hits))
    assert n == len(hits)
    added = []
    for off in (0.0, 0.01):  # mm, along the beam
        beside = hits[4] * (1 + 1.5 / np.hypot(*hits[4, :2])) + [0.0, 0.0, off]
        n, more, _ = follow_all(np.concatenate([hits, [beside]]), len(hits))
        assert n == len(hits) + 1
        added.append(more - chi2)
    assert 0.0 < min(added) < max(added) < barrel_rules.windows.follow
