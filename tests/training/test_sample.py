"""Which pairs of hits belong together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tritrack.events.event import EventError
from tritrack.training.sample import make_sample, pair_targets, path_pairs


def test_sample(hand_made):
    sample = make_sample(hand_made)
    assert sample.particle.tolist() == [3, 1, -1, 1, 3, 1, 1, -1, 2]
    on_particle = sample.particle >= 0
    assert sample.rank[on_particle].tolist() == [1, 2, 0, 0, 1, 3, 0]
    # pT in GeV
    assert sample.weight[on_particle] == pytest.approx([0.5, 2, 2, 0.5, 2, 2, 0.1])
    assert sample.weight.dtype == np.float32
    assert sample.hits is hand_made.hits


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (1, {(3, 5), (5, 1), (1, 6), (4, 0)}),
        (2, {(3, 1), (5, 6)}),
        (3, {(3, 6)}),
        (4, set()),
        (100, set()),
    ],
)
def test_path_pairs(hand_made, gap, expected):
    pairs = path_pairs(make_sample(hand_made), gap=gap)
    assert pairs.shape == (2, len(expected))
    assert set(zip(*pairs.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("pair", "target", "weight"),
    [
        ((3, 5), True, 2),  # next to each other
        ((5, 3), True, 2),  # the other way round
        ((3, 1), True, 2),  # one hit skipped
        ((3, 6), False, 0),  # two skipped: right, but of no use
        ((4, 0), True, 0.5),  # of a soft particle
        ((3, 4), False, 1),  # two particles
        ((8, 0), False, 1),  # two particles, soft ones
        ((2, 3), False, 1),  # noise and a particle
        ((2, 7), False, 1),  # two noise hits are no particle's
    ],
)
def test_pair_targets(hand_made, pair, target, weight):
    pairs = np.array([pair], dtype=np.int32).T
    found, weights = pair_targets(make_sample(hand_made), pairs)
    assert found.tolist() == [target]
    assert weights.tolist() == [weight]
    assert weights.dtype == np.float32


def test_no_pairs(hand_made):
    target, weight = pair_targets(make_sample(hand_made), np.empty((2, 0), dtype=np.int32))
    assert target.shape == weight.shape == (0,)


def test_an_event_of_noise_and_an_empty_one(helices):
    for n_noise in (5, 0):
        sample = make_sample(helices(1, n_particles=0, n_noise=n_noise))
        assert sample.particle.tolist() == [-1] * n_noise
        assert path_pairs(sample, gap=1).shape == (2, 0)


def test_no_truth(hand_made):
    with pytest.raises(EventError, match="event 7: has no truth"):
        make_sample(replace(hand_made, truth=None))
