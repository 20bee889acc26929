from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tritrack.events.event import Event, EventError, Measurements
from tritrack.events.layers import derive_layers


def event_on_layers() -> Event:
    """A barrel of pixels at r = 30 mm, one of strips at 300 mm, and a disk of pixels at z = -600 mm."""
    rng = np.random.default_rng(1)
    n = 500
    phi = rng.uniform(-np.pi, np.pi, 3 * n)
    r = np.concatenate([rng.uniform(29, 31, n), rng.uniform(295, 305, n), rng.uniform(30, 170, n)])
    z = np.concatenate([rng.uniform(-500, 500, n), rng.uniform(-1000, 1000, n), rng.uniform(-602, -598, n)])
    spread = np.repeat([[0.01, 0.02], [0.02, 0.4], [0.01, 0.01]], n, axis=0)
    return Event(
        event_id=3,
        hits=np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1).astype(np.float32),
        hit_id=np.arange(3 * n),
        modules=np.repeat([[8, 2, 1], [13, 2, 1], [7, 4, 1]], n, axis=0).astype(np.int32),
        measurements=Measurements(
            local=np.zeros((3 * n, 2), dtype=np.float32), variance=(spread**2).astype(np.float32)
        ),
    )


def test_layers_come_from_hits_the_nearest_first():
    event = event_on_layers()
    layers = derive_layers([event])
    np.testing.assert_array_equal(layers.disk, [False, False, True])
    np.testing.assert_array_equal(layers.pixel, [True, False, True])
    np.testing.assert_allclose(layers.r_low, [29, 295, 30], atol=1)
    np.testing.assert_allclose(layers.z_low, [-500, -1000, -602], atol=20)
    np.testing.assert_allclose(layers.along, [0.02, 0.4, 0.01], rtol=1e-5)
    np.testing.assert_array_equal(layers.of_hits(event.hits), np.repeat([0, 1, 2], 500))


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        ((31, 0, 0), 0),
        ((290, 0, 900), 1),
        ((0, 100, -590), 2),
        ((0, 0, 0), 0),
        ((5000, 0, 0), 1),
        ((0, 0, -650), 2),
        ((0, 0, -9e4), 1),
    ],
)
def test_a_hit_off_the_layers_goes_to_the_nearest(place, layer):
    layers = derive_layers([event_on_layers()])
    assert layers.of_hits(np.array([place], dtype=np.float32)).tolist() == [layer]


def test_what_layers_cannot_be_derived_from():
    event = event_on_layers()
    with pytest.raises(EventError, match="event 3: has no local measurements"):
        derive_layers([replace(event, measurements=None)])
    with pytest.raises(EventError, match="hold no hits"):
        derive_layers([])
    modules = np.where(event.modules == 13, 8, event.modules).astype(np.int32)
    with pytest.raises(EventError, match="volume 8, layer 2 is neither a cylinder nor a disk"):
        derive_layers([replace(event, modules=modules)])
