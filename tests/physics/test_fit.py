from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")

from tritrack.events.event import Particles
from tritrack.physics.fit import curvature_unit, fit_tracks, true_helices
from tritrack.physics.fitted import FITTED_COLUMNS
from tritrack.physics.selection import PhysicsError

FIELD = 2.0  # T, that ``draw_helices`` has
CURVATURE = curvature_unit(FIELD)


def offsets(fits, true):
    off = fits.fitted[:, :5] - true[:, :5]
    off[:, 1] = (off[:, 1] + np.pi) % (2 * np.pi) - np.pi
    return off


@pytest.mark.parametrize("pt", [0.6, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("scattering", [False, True])
def test_pulls_and_chi2(draw_helices, barrel, pt, scattering):
    """Of 400 helices, the mean and width of a pull are known to 0.05 and 0.035, and mean chi2 / ndf to 0.02."""
    n = 400
    layers = barrel if scattering else replace(barrel, scattering=np.zeros(barrel.n))
    drawn = draw_helices(n=n, pt=pt, seed=7, scattering=scattering)
    fits = fit_tracks(hits=drawn.hits, labels=drawn.particle, layers=layers, field=FIELD)
    assert fits.fitted.dtype == fits.errors.dtype == np.float32
    assert fits.fitted.shape == (n, len(FITTED_COLUMNS))
    pulls = offsets(fits, drawn.true) / fits.errors
    assert np.abs(pulls.mean(axis=0)).max() < 0.2
    np.testing.assert_allclose(pulls.std(axis=0), 1, atol=0.15)
    np.testing.assert_array_equal(fits.fitted[:, 5], drawn.true[:, 5])
    np.testing.assert_array_equal(fits.fitted[:, 7], 15)
    assert np.mean(fits.fitted[:, 6] / fits.fitted[:, 7]) == pytest.approx(1, abs=0.1)


def test_resolution_is_that_of_the_detector(draw_helices, barrel):
    drawn = draw_helices(n=400, pt=1.0, seed=3, scattering=True)
    fits = fit_tracks(hits=drawn.hits, labels=drawn.particle, layers=barrel, field=FIELD)
    pt, phi, eta, d0, z0 = offsets(fits, drawn.true).std(axis=0)
    # Two pixel layers 32 and 72 mm away and 2.5 mm x curvature of scattering: by hand, 0.05 mm and 1.5 mrad.
    assert 0.004 < pt < 0.012
    assert 0.001 < phi < 0.002
    assert 0.001 < eta < 0.002
    assert 0.035 < d0 < 0.07
    assert 0.035 < z0 < 0.07


def test_rows_belong_to_labels_and_the_order_of_hits_does_not_matter(draw_helices, barrel):
    drawn = draw_helices(n=20, pt=2.0, seed=4, scattering=True)
    labels = np.where(drawn.particle == 5, -1, drawn.particle)
    fits = fit_tracks(hits=drawn.hits, labels=labels, layers=barrel, field=FIELD)
    assert np.isnan(fits.fitted[5]).all()
    assert np.isnan(fits.errors[5]).all()
    others = np.arange(20) != 5
    np.testing.assert_allclose(fits.fitted[others, 3], drawn.true[others, 3], atol=0.3)
    order = np.random.default_rng(1).permutation(len(labels))
    again = fit_tracks(hits=drawn.hits[order], labels=labels[order], layers=barrel, field=FIELD)
    np.testing.assert_array_equal(fits.fitted, again.fitted)


def test_short_and_impossible_tracks_are_nan(barrel):
    hits = np.array(
        [[32, 0, 1], [72, 0, 2], [116, 0, 3], [172, 0, 4], *3 * [[32, 1, 0]], *3 * [[0, 0, 0]]],
        dtype=np.float32,
    )
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 3, 3, 3])
    fits = fit_tracks(hits=hits, labels=labels, layers=barrel, field=FIELD)
    assert fits.fitted.shape == (4, 8)
    assert np.isnan(fits.fitted).all()


def test_a_straight_track_has_a_momentum_or_none_at_all(barrel):
    """No infinity: it is either so stiff that the resolution allows it, or exactly straight, which is no fit."""
    r = (barrel.r_low + barrel.r_high) / 2
    hits = np.stack([r, np.zeros_like(r), np.zeros_like(r)], axis=1).astype(np.float32)
    fits = fit_tracks(hits=hits, labels=np.zeros(10, dtype=np.int64), layers=barrel, field=FIELD)
    assert not np.isinf(fits.fitted).any()


def test_no_hits_and_no_tracks(barrel):
    for n in (0, 3):
        fits = fit_tracks(
            hits=np.zeros((n, 3), dtype=np.float32),
            labels=np.full(n, -1, dtype=np.int64),
            layers=barrel,
            field=FIELD,
        )
        assert fits.fitted.shape == (0, 8)
        assert fits.errors.shape == (0, 5)


def test_labels_must_be_one_a_hit(barrel):
    with pytest.raises(PhysicsError, match="fit: 2 labels for 3 hits"):
        fit_tracks(
            hits=np.zeros((3, 3), dtype=np.float32),
            labels=np.zeros(2, dtype=np.int64),
            layers=barrel,
            field=FIELD,
        )


def test_true_helices():
    """A particle made 3 mm to the left of the beam line that flies along it is at its nearest point already."""
    particles = Particles(
        particle_id=np.arange(1, 4),
        charge=np.array([1, -1, 0], dtype=np.float32),
        vertex=np.array([[0, 3, 5], [100, 0, 20], [0, 0, 0]], dtype=np.float32),
        momentum=np.array([[2, 0, 2], [1, 0, 0.5], [1, 0, 0]], dtype=np.float32),
        primary=np.ones(3, dtype=np.bool_),
    )
    pt, phi, eta, d0, z0, charge = true_helices(particles, field=FIELD).T
    np.testing.assert_allclose(
        (pt[0], phi[0], eta[0], d0[0], z0[0], charge[0]), (2, 0, np.arcsinh(1), 3, 5, 1)
    )
    # From 100 mm out, and turning to the left: the beam line is outside of the circle, to the right of it.
    assert d0[1] == pytest.approx(np.hypot(1 / CURVATURE, 100) - 1 / CURVATURE, rel=1e-6)
    assert phi[1] == pytest.approx(-np.arctan(100 * CURVATURE), rel=1e-6)
    assert z0[1] == pytest.approx(20 - 0.5 * np.arctan(100 * CURVATURE) / CURVATURE, rel=1e-6)
    assert np.isnan(true_helices(particles, field=FIELD)[2]).all()
