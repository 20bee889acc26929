"""Plots and the event display: what is drawn is what was counted."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("mplhep")

from matplotlib.collections import LineCollection
from matplotlib.image import imread

from tritrack.events.event import Event, Particles, Truth
from tritrack.physics.display import draw_display, write_display
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.plots import MIN_IN_BIN, draw_rate, write_plots

N = 60


def helices():
    """Particles 100, 101, ... from the origin in 2 T through eight layers; the first half stiff."""
    rng = np.random.default_rng(5)
    pt = np.where(np.arange(N) < N // 2, 8.0, 0.4)
    phi, eta = rng.uniform(-np.pi, np.pi, N), rng.uniform(-1, 1, N)
    layers = np.array([30.0, 70, 110, 170, 260, 360, 500, 650])
    bending = pt[:, None] / 0.6 * 1000
    half_angle = np.arcsin(layers / (2 * bending))
    hits = np.stack(
        [
            layers * np.cos(phi[:, None] - half_angle),
            layers * np.sin(phi[:, None] - half_angle),
            2 * bending * half_angle * np.sinh(eta)[:, None],
        ],
        axis=2,
    )
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)
    n_hits = N * layers.size
    return Event(
        event_id=12,
        hits=hits.reshape(-1, 3).astype(np.float32),
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), dtype=np.int32),
        truth=Truth(
            particle_id=100 + np.repeat(np.arange(N), layers.size),
            order=np.tile(layers, N).astype(np.float32),
            particles=Particles(
                particle_id=100 + np.arange(N),
                charge=np.ones(N, dtype=np.float32),
                vertex=np.zeros((N, 3), dtype=np.float32),
                momentum=momentum.astype(np.float32),
                primary=np.ones(N, dtype=np.bool_),
            ),
        ),
    )


EVENT = helices()
NO_HITS = Event(
    event_id=13,
    hits=np.zeros((0, 3), dtype=np.float32),
    hit_id=np.zeros(0, dtype=np.int64),
    modules=np.zeros((0, 3), dtype=np.int32),
)
LABELS = np.where(np.arange(EVENT.n_hits) // 8 % 5 == 0, -1, np.arange(EVENT.n_hits) // 8)


def report(labels=LABELS):
    return count(event=EVENT, pairs=pairs_from_labels(labels)).report()


def test_plots_are_written(tmp_path):
    files = write_plots(reports={"a finder": report()}, folder=tmp_path / "new" / "plots")
    assert [file.name for file in files] == [
        "efficiency.png",
        "perfect_efficiency.png",
        "lhc_efficiency.png",
        "fake_rate.png",
        "fragment_rate.png",
        "duplicate_rate.png",
        "unmatched_rate.png",
    ]
    for file in files:
        assert imread(file).std() > 0


def test_points_are_the_efficiencies():
    found = report()
    figure = draw_rate(reports={"a finder": found, "another": found}, rate="efficiency")
    for axes, profile in zip(figure.axes, found.profiles, strict=True):
        drawn = profile.targets >= MIN_IN_BIN
        assert drawn.any()
        assert len(axes.containers) == 2
        for container in axes.containers:
            np.testing.assert_array_equal(
                container.lines[0].get_ydata(), profile.rates.efficiency.value[drawn]
            )


@pytest.mark.parametrize("rate", ["efficiency", "fake_rate"])
def test_plots_of_nothing(rate):
    nothing = report(np.full(EVENT.n_hits, -1))
    assert len(draw_rate(reports={"nothing found": nothing}, rate=rate).axes) == 3


def test_display(tmp_path):
    figure = draw_display(event=EVENT, pairs=pairs_from_labels(LABELS))
    assert figure.get_suptitle() == (
        "Event 12:  480 hits,  48 tracks with at least 5 hits  (24 nearly straight ones in colour)"
    )
    for axes in figure.axes:
        soft, stiff = (c for c in axes.collections if isinstance(c, LineCollection))
        assert (len(soft.get_segments()), len(stiff.get_segments())) == (24, 24)
        assert axes.lines[0].get_xdata().size == 480
    # from the inside out, whatever the order of the hits
    steps = np.diff([np.hypot(*segment.T) for segment in stiff.get_segments()], axis=1)
    assert (steps > 0).all()
    write_display(event=EVENT, pairs=pairs_from_labels(LABELS), path=tmp_path / "new" / "event.png")
    assert imread(tmp_path / "new" / "event.png").std() > 0


@pytest.mark.parametrize("event", [EVENT, NO_HITS], ids=["no tracks", "no hits"])
def test_display_of_nothing(event, tmp_path):
    write_display(event=event, pairs=np.zeros((2, 0), dtype=np.int64), path=tmp_path / "event.png")
    assert imread(tmp_path / "event.png").std() > 0
