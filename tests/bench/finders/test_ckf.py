"""The Kalman filter finds particles, and the hits of its tracks are the event's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("acts")

from tritrack.bench.finders.ckf import CkfError, CkfFinder
from tritrack.physics.matching import TrackClass, match
from tritrack.physics.selection import kinematics, particle_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finder():
    return CkfFinder()


def tracks_of(pairs):
    return {frozenset(pairs[1][pairs[0] == track].tolist()) for track in np.unique(pairs[0])}


def test_particles_are_found_with_their_momentum(finder, small_event):
    found = finder.find(small_event)
    matching = match(pairs=found.pairs, particle_id=small_event.truth.particle_id)
    assert (matching.track_class == TrackClass.MATCHED).sum() >= 38
    assert (matching.track_class != TrackClass.MATCHED).sum() <= 2
    assert matching.n_hits.min() >= finder.settings.min_measurements
    true, row = kinematics(small_event.truth), particle_rows(small_event.truth, matching.leading)
    assert np.median(np.abs(found.pt / true.pt[row] - 1)) < 0.03
    assert np.median(np.abs(found.eta - true.eta[row])) < 0.003
    assert list(found.seconds) == [
        "space points", "seeds", "seed parameters", "Kalman filter", "ambiguities",
    ]  # fmt: skip
    assert min(*found.seconds.values(), found.cpu_seconds, found.conversion_seconds) > 0


def test_the_order_of_the_hits_does_not_matter(finder, small_event, take_hits):
    order = np.random.default_rng(3).permutation(small_event.n_hits)
    wanted = tracks_of(finder.find(small_event).pairs)
    found = finder.find(take_hits(small_event, order)).pairs
    found = tracks_of(np.stack([found[0], order[found[1]]]))
    assert len(wanted & found) >= 0.95 * len(wanted)  # equally good seeds are taken in the hits' order


@pytest.mark.parametrize("n_hits", [0, 1, 2])
def test_hardly_any_hits(finder, small_event, take_hits, n_hits):
    found = finder.find(take_hits(small_event, np.arange(n_hits)))
    assert found.pairs.shape == (2, 0)
    assert found.pt.shape == (0,)


def test_events_that_cannot_be(finder, small_event):
    with pytest.raises(CkfError, match=f"event {small_event.event_id}: has no local measurements"):
        finder.find(dataclasses.replace(small_event, measurements=None))
    modules = small_event.modules.copy()
    modules[7] = (8, 2, 100_000)
    with pytest.raises(CkfError, match=r"hit 7 lies on volume, layer, module \[8, 2, 100000\]"):
        finder.find(dataclasses.replace(small_event, modules=modules))
