from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from tritrack.events.event import Event, Particles, Truth
from tritrack.events.source import read_all
from tritrack.physics.fit import curvature_unit
from tritrack.rules import tuning
from tritrack.rules.finder import RuleFinder
from tritrack.rules.tuning import Paths, derive_rules, derive_scattering, derive_steps
from tritrack.rules.windows import RulesError

SAMPLES = Path(__file__).parents[2] / "events" / "samples"


def test_scattering_is_found_again(draw_helices, barrel):
    """On inner pixels the resolution hides a part of it; what is left is right to some percent."""
    drawn = draw_helices(n=3000, pt=0.8, seed=1, scattering=True)
    order = np.lexsort((np.linalg.norm(drawn.hits, axis=1), drawn.particle))
    position = drawn.hits[order].reshape(3000, 10, 3).astype(np.float64)
    three = np.arange(8)[:, None] + np.arange(3)
    paths = Paths(
        layer=np.tile(three, (3000, 1)),
        position=position[:, three].reshape(-1, 3, 3),
        pt=np.full(8 * 3000, 0.8),
    )
    np.testing.assert_allclose(derive_scattering(paths, barrel, field=2.0), barrel.scattering, rtol=0.12)


def test_too_few_tracks_show_no_scattering(barrel):
    paths = Paths(layer=np.empty((0, 3), dtype=np.int64), position=np.empty((0, 3, 3)), pt=np.empty(0))
    with pytest.raises(RulesError, match="fewer than 100 soft tracks in each layer"):
        derive_scattering(paths, barrel, field=2.0)


def test_steps_are_what_enough_particles_take():
    often = np.tile([[0, 1, 2], [1, 2, 4]], (1000, 1))
    steps = derive_steps(np.concatenate([often, [[0, 3, 4]], [[2, 2, 3]] * 900]))
    assert steps.tolist() == [[0, 1], [0, 2], [1, 2], [1, 4], [2, 3], [2, 4]]
    with pytest.raises(RulesError, match="no particle of the events hits three layers"):
        derive_steps(np.empty((0, 3), dtype=np.int64))


def test_a_rate_of_nothing_is_left_out(draw_helices, barrel_rules):
    """Particles of 0.5 GeV are no targets, and windows cannot be chosen by them."""
    drawn = draw_helices(n=5, pt=0.5, seed=1, scattering=False)
    n_hits = len(drawn.hits)
    pt, phi, eta = drawn.true[:, :3].T
    particles = Particles(
        particle_id=np.arange(5),
        charge=drawn.true[:, 5].astype(np.float32),
        vertex=np.zeros((5, 3), dtype=np.float32),
        momentum=(pt * np.stack([np.cos(phi), np.sin(phi), np.sinh(eta)])).T.astype(np.float32),
        primary=np.ones(5, dtype=np.bool_),
    )
    truth = Truth(
        particle_id=drawn.particle,
        order=np.linalg.norm(drawn.hits, axis=1),
        particles=particles,
    )
    event = Event(
        event_id=1,
        hits=drawn.hits,
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), dtype=np.int32),
        truth=truth,
    )
    metrics = tuning.judge(RuleFinder(barrel_rules), {"soft": [event]})
    assert not {"efficiency_targets", "efficiency_comparison"} & set(metrics["soft"])
    assert not any(np.isnan(value) for value in metrics["soft"].values())
    with pytest.raises(RulesError, match="soft: no particle of these events is a target"):
        tuning._score(metrics)


@pytest.mark.slow
def test_rules_from_the_sample_events(monkeypatch):
    monkeypatch.setattr(tuning, "CHOICES", {"follow": (0.01, 20.0)})
    notes = []
    rules = derive_rules(
        {"samples": list(read_all([SAMPLES]))},
        name="samples",
        min_pt=0.75,
        field=2.0,
        max_hits=100_000,
        on_note=notes.append,
    )
    assert rules.layers.n == 48
    assert rules.layers.pixel.sum() == 18
    assert rules.windows.max_curvature == pytest.approx(curvature_unit(2.0) / 0.75)
    assert 100 < rules.windows.max_z0 < 300
    assert rules.windows.follow == 20.0
    assert 1.5 < rules.layers.scattering.min() <= rules.layers.scattering.max() < 5
    assert rules.metrics["samples"]["efficiency_comparison"] > 0.95
    assert notes[-1].startswith("follow: 20.0 of 0.01 (")
