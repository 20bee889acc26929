from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("numba")

from tritrack.events.source import read_all
from tritrack.physics.matching import match, pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import SELECTIONS
from tritrack.rules.finder import RuleFinder
from tritrack.stages.contract import ContractError

ROOT = Path(__file__).parents[2]
SAMPLES, SHIPPED = ROOT / "events" / "samples", ROOT / "weights" / "rules"


@pytest.fixture(scope="module")
def finder(barrel_rules):
    return RuleFinder(barrel_rules)


def same_tracks(first, second):
    """Whether two labellings of the same hits hold the same sets of hits."""
    sets = [
        {tuple(np.flatnonzero(some == track)) for track in range(some.max() + 1)} for some in (first, second)
    ]
    return sets[0] == sets[1]


def test_every_drawn_helix_is_a_track(finder, draw_helices):
    drawn = draw_helices(n=100, pt=1.5, seed=1, scattering=True)
    labels = finder.find(drawn.hits)
    assert labels.dtype == np.int64
    matching = match(pairs=pairs_from_labels(labels), particle_id=drawn.particle + 1)
    assert matching.best.sum() >= 99
    assert matching.perfect.sum() >= 95
    assert len(matching.track) <= 101


@pytest.mark.parametrize("lost", range(10))
def test_a_lost_hit_loses_no_track(finder, draw_helices, barrel, lost):
    drawn = draw_helices(n=50, pt=2.0, seed=2, scattering=True)
    there = barrel.of_hits(drawn.hits) != lost
    labels = finder.find(drawn.hits[there])
    matching = match(pairs=pairs_from_labels(labels), particle_id=drawn.particle[there] + 1)
    assert matching.best.sum() >= 49


def test_noise_stays_out(finder, draw_helices):
    drawn = draw_helices(n=60, pt=2.0, seed=3, scattering=True)
    rng = np.random.default_rng(1)
    phi, z = rng.uniform(-np.pi, np.pi, 300), rng.uniform(-400, 400, 300)
    r = rng.choice([32.0, 72, 116, 172, 260, 360, 500, 660, 820, 1020], 300)
    noise = np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1).astype(np.float32)
    labels = finder.find(np.concatenate([drawn.hits, noise]))
    assert (labels[600:] >= 0).sum() <= 10
    matching = match(pairs=pairs_from_labels(labels[:600]), particle_id=drawn.particle + 1)
    assert matching.best.sum() >= 59


def test_a_second_hit_of_an_overlap_is_taken(finder, draw_helices, barrel):
    """A module behind the first, 1.5 mm further out."""
    drawn = draw_helices(n=20, pt=3.0, seed=5, scattering=False)
    again = drawn.hits[barrel.of_hits(drawn.hits) == 4]
    r = np.hypot(again[:, 0], again[:, 1])
    again = again * (1 + 1.5 / r)[:, None]
    labels = finder.find(np.concatenate([drawn.hits, again]).astype(np.float32))
    matching = match(
        pairs=pairs_from_labels(labels),
        particle_id=np.concatenate([drawn.particle, drawn.particle[barrel.of_hits(drawn.hits) == 4]]) + 1,
    )
    assert matching.perfect.sum() >= 19


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_hits_does_not_matter(finder, draw_helices, seed):
    hits = draw_helices(n=150, pt=1.0, seed=seed, scattering=True).hits
    order = np.random.default_rng(seed).permutation(len(hits))
    labels = finder.find(hits)
    shuffled = np.empty_like(labels)
    shuffled[order] = finder.find(hits[order])
    assert same_tracks(labels, shuffled)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_too_few_hits_are_no_track(finder, n):
    hits = np.array([[32, 0, 0], [72, 0, 0], [116, 0, 0]], dtype=np.float32)[:n]
    assert finder.find(hits).tolist() == [-1] * n


@settings(max_examples=60, deadline=None)
@given(
    hits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 60), st.just(3)),
        elements=st.one_of(
            st.floats(-1e5, 1e5, width=32),
            st.sampled_from([0.0, -0.0, 32.0, 72.0, 116.0, 172.0, -260.0, 2.0**-100]),
        ),
    )
)
def test_wild_hits_get_labels_of_the_contract(finder, hits):
    labels = finder.find(hits)
    assert labels.dtype == np.int64
    assert labels.shape == (len(hits),)
    tracks, first, n = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    assert (labels >= -1).all()
    assert tracks.tolist() == list(range(len(tracks)))
    assert (np.diff(first) > 0).all()
    assert (n >= 3).all()


def test_hits_that_break_the_contract(finder):
    with pytest.raises(ContractError, match="rows hold NaN or infinity: rows 1"):
        finder.find(np.array([[1, 2, 3], [np.nan, 0, 0]], dtype=np.float32))
    with pytest.raises(ContractError, match="6000 hits, the model's limit max_hits is 5000"):
        finder.find(np.zeros((6000, 3), dtype=np.float32))
    with pytest.raises(ContractError, match="dtype is float64"):
        finder.find(np.zeros((3, 3)))


def test_the_parts_are_timed(finder, draw_helices):
    parts = {}
    finder.find(draw_helices(n=5, pt=1.0, seed=1, scattering=False).hits, on_part=parts.__setitem__)
    assert list(parts) == ["sort", "cells", "follow", "choose"]
    assert min(parts.values()) > 0


def test_the_shipped_rules_on_the_sample_events():
    finder, totals = RuleFinder.load(SHIPPED), {}
    for event in read_all([SAMPLES]):
        pairs = pairs_from_labels(finder.find(event.hits))
        for name, selection in SELECTIONS.items():
            counts = count(event=event, pairs=pairs, selection=selection)
            totals[name] = totals[name] + counts if name in totals else counts
    comparison, targets = (totals[name].report().rates for name in ("comparison", "targets"))
    assert comparison.efficiency.value >= 0.95
    assert targets.efficiency.value >= 0.90
    assert targets.fake_rate.value <= 0.03
    assert targets.unmatched_rate.value <= 0.05
