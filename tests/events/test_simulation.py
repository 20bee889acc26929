from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from tritrack.events.event import EventError
from tritrack.events.parquet import read_events, write_event
from tritrack.events.simulation import (
    NOISE_SHARE,
    SETTINGS_KEY,
    SimulationSettings,
    Simulator,
    check_installed,
    read_settings,
    simulate,
)

SETTINGS = SimulationSettings(seed=5, pileup=1)


@pytest.fixture(scope="module")
def simulator():
    pytest.importorskip("acts")
    pytest.importorskip("pythia8mc")
    return Simulator(SETTINGS)


@pytest.fixture
def simulate_with(simulator):
    """Simulate event 0 with other settings for its hits, without a second set-up."""

    def run(**changes):
        simulator.settings = dataclasses.replace(SETTINGS, **changes)
        try:
            return simulator.event(0)
        finally:
            simulator.settings = SETTINGS

    return run


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("pileup", -0.5),
        ("pileup", float("nan")),
        ("noise", 1.0),
        ("noise", -0.1),
        ("inefficiency", 1.5),
        ("beamspot_z", -55.0),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(EventError, match=f"simulation: {name} is {value}"):
        SimulationSettings(**{"seed": 1, name: value})


def test_the_settings_of_a_file(tmp_path, make_event):
    path = tmp_path / "event.parquet"
    write_event(make_event(), path)
    assert read_settings(path) is None
    write_event(make_event(), path, metadata={SETTINGS_KEY: '{"seed":7,"pileup":2.5,"noise":0.1}'})
    assert read_settings(path) == SimulationSettings(seed=7, pileup=2.5, noise=0.1)
    write_event(make_event(), path, metadata={SETTINGS_KEY: '{"seed":"seven"}'})
    with pytest.raises(EventError, match=r"event\.parquet: its simulation settings cannot be read"):
        read_settings(path)
    with pytest.raises(EventError, match="no such file"):
        read_settings(tmp_path / "none.parquet")


@pytest.mark.parametrize(("name", "value"), [("n_events", -1), ("first", -1), ("jobs", 0)])
def test_numbers_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(EventError, match=f"simulation: {name} is {value}"):
        next(simulate(SETTINGS, tmp_path / "new", **{"n_events": 1, name: value}))
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    pytest.importorskip("acts")
    pytest.importorskip("pythia8mc")
    (tmp_path / "taken").write_text("")
    with pytest.raises(EventError, match="taken: a file of this name is in the way"):
        next(simulate(SETTINGS, tmp_path / "taken", n_events=1))


@pytest.mark.parametrize("module", ["acts", "pythia8mc"])
def test_a_missing_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"\.\[simulate\]"):
        check_installed()


def test_an_event_does_not_depend_on_those_before_it(simulator, assert_same):
    first, second, again = simulator.event(3), simulator.event(4), simulator.event(3)
    assert_same(first, again)
    assert first.n_hits != second.n_hits


def test_hits_lie_in_the_detector_and_on_their_modules(simulator):
    event = simulator.event(0)
    modules = simulator._detector.modules
    assert 500 < event.n_hits < 20_000
    assert np.hypot(*event.hits[:, :2].T).max() < 1100
    assert np.abs(event.hits[:, 2]).max() < 3100
    # Each hit is the local measurement on its module, carried to the global frame by ACTS itself.
    import acts

    surfaces = {}
    geometry = simulator._detector._detector.trackingGeometry()
    geometry.visitSurfaces(
        lambda s: surfaces.update({(s.geometryId.volume, s.geometryId.layer, s.geometryId.sensitive): s})
    )
    context = acts.GeometryContext.dangerouslyDefaultConstruct()
    assert len(surfaces) == len(modules.ids)
    for row in range(0, event.n_hits, 50):
        surface = surfaces[tuple(event.modules[row].tolist())]
        local = event.measurements.local[row].tolist()
        point = surface.localToGlobal(context, acts.Vector2(*local), acts.Vector3(0, 0, 1))
        np.testing.assert_allclose(event.hits[row], list(point), atol=1e-3)
    variances = np.unique(event.measurements.variance[:, 0])
    np.testing.assert_allclose(variances, np.array([0.05, 0.08, 0.12]) ** 2 / 12, rtol=1e-5)


def test_the_order_of_the_hits_tells_nothing_of_the_particles(simulator):
    event = simulator.event(0)
    np.testing.assert_array_equal(event.hit_id, np.arange(event.n_hits))
    row = np.lexsort((event.measurements.local[:, 0], *event.modules.T[::-1]))
    np.testing.assert_array_equal(row, np.arange(event.n_hits))


def test_particles_fly_on_helices_of_their_momentum(simulator):
    checked = 0
    for number in range(2):
        event = simulator.event(number)
        truth, particles = event.truth, event.truth.particles
        pt = np.hypot(*particles.momentum[:, :2].T)
        eta = np.arcsinh(particles.momentum[:, 2] / pt)
        for k in np.flatnonzero(particles.primary & (pt > 1) & (np.abs(eta) < 1)):
            hits = np.flatnonzero(truth.particle_id == particles.particle_id[k])
            hits = hits[np.argsort(truth.order[hits])]
            x, y, _ = event.hits[hits].astype(np.float64).T
            if len(hits) < 8:
                continue
            outward = np.diff(np.hypot(x, y))
            assert (outward > -1).all()
            # A circle through them: R [mm] = pT [GeV] / (0.3 B [T]) * 1000, with B = 2 T.
            circle = np.linalg.lstsq(np.stack([2 * x, 2 * y, np.ones_like(x)], 1), x**2 + y**2, rcond=None)[0]
            radius = np.sqrt(circle[2] + circle[0] ** 2 + circle[1] ** 2)
            if pt[k] < 5:
                assert radius == pytest.approx(pt[k] / (0.299792458 * 2) * 1000, rel=0.15)
                # Positive particles turn clockwise in a field along +z.
                turn = np.sign((x[1] - x[0]) * (y[-1] - y[0]) - (y[1] - y[0]) * (x[-1] - x[0]))
                assert turn == -np.sign(particles.charge[k])
            checked += 1
    assert checked > 10


def test_the_truth_of_a_clean_event(simulator):
    event = simulator.event(0)
    truth, particles = event.truth, event.truth.particles
    assert (truth.particle_id > 0).all()
    assert (particles.particle_id > 0).all()
    assert (particles.charge != 0).all()
    assert 0.4 < particles.primary.mean() < 1
    produced = np.hypot(*particles.vertex[:, :2].T)
    assert np.median(produced[particles.primary]) < 0.1
    assert np.median(produced[~particles.primary]) > 10
    row = np.lexsort((truth.order, truth.particle_id))
    assert (np.diff(truth.particle_id[row]) >= 0).all()
    assert 0.05 < truth.order.max() < 100  # ns


def test_noise_is_a_share_of_the_final_hits(simulator, simulate_with):
    clean, noisy = simulator.event(0), simulate_with(noise=0.2)
    is_noise = noisy.truth.particle_id == 0
    assert is_noise.mean() == pytest.approx(0.2, abs=1e-3)
    assert (noisy.truth.order[is_noise] == 0).all()
    np.testing.assert_array_equal(noisy.hits[~is_noise], clean.hits)  # the particles' hits stay
    volumes, counts = np.unique(noisy.modules[is_noise, 0], return_counts=True)
    assert volumes[counts.argmax()] in (17, 13)
    share = counts / counts.sum()
    np.testing.assert_allclose(share, [NOISE_SHARE[v] for v in volumes.tolist()], atol=0.1)
    assert np.hypot(*noisy.hits[:, :2].T).max() < 1100
    assert len(np.unique(noisy.modules[is_noise], axis=0)) > 0.9 * is_noise.sum()


@pytest.mark.parametrize(("inefficiency", "low", "high"), [(0.1, 0.87, 0.93), (1.0, 0.0, 0.0)])
def test_inefficiency_loses_hits(simulator, simulate_with, inefficiency, low, high):
    clean, lossy = simulator.event(0), simulate_with(inefficiency=inefficiency)
    assert low <= lossy.n_hits / clean.n_hits <= high
    assert set(map(tuple, lossy.hits.tolist())) <= set(map(tuple, clean.hits.tolist()))


@pytest.mark.slow
def test_the_same_bytes_in_any_number_of_jobs_and_from_any_first_event(tmp_path, simulator):
    settings = dataclasses.replace(SETTINGS, noise=0.1, inefficiency=0.02)
    alone = list(simulate(settings, tmp_path / "alone", n_events=4))
    jobs = list(simulate(settings, tmp_path / "jobs", n_events=3, first=1, jobs=2))
    assert [path.name for path in jobs] == [f"event{i:09d}.parquet" for i in (1, 2, 3)]
    for one, other in zip(alone[1:], jobs, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert [event.event_id for path in alone for event in read_events(path)] == [0, 1, 2, 3]
