from __future__ import annotations

import numpy as np
import pytest

from tritrack.events.event import Event, Measurements, Particles, Truth


def _make_event(event_id: int = 7, *, n_hits: int = 12, full: bool = True, weight: bool = False) -> Event:
    """An event whose ids start at 100, so that mixing up ids and rows shows."""
    rng = np.random.default_rng([event_id, n_hits])

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(scale=100, size=shape).astype(np.float32)

    particles = Particles(
        particle_id=np.array([100, 101, 2**62], dtype=np.int64),
        charge=np.array([1, -1, 1], dtype=np.float32),
        vertex=floats(3, 3),
        momentum=floats(3, 3),
        primary=np.array([True, False, True]),
    )
    truth = Truth(
        particle_id=rng.choice([0, *particles.particle_id], size=n_hits).astype(np.int64),
        order=floats(n_hits),
        particles=particles,
        weight=np.abs(floats(n_hits)) if weight else None,
    )
    return Event(
        event_id=event_id,
        hits=floats(n_hits, 3),
        hit_id=rng.permutation(n_hits).astype(np.int64) + 100,
        modules=rng.integers(1, 20, size=(n_hits, 3)).astype(np.int32),
        truth=truth if full else None,
        measurements=Measurements(local=floats(n_hits, 2), variance=floats(n_hits, 2)) if full else None,
    )


@pytest.fixture(scope="session")
def make_event():
    return _make_event


def _assert_same(left, right) -> None:
    """Equal in every array, dtypes included; NaN equals NaN."""
    assert type(left) is type(right)
    for name, value in vars(left).items():
        other = getattr(right, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other.dtype, name
            np.testing.assert_array_equal(value, other, err_msg=name)
        elif hasattr(value, "__dataclass_fields__"):
            _assert_same(value, other)
        else:
            assert value == other, name


@pytest.fixture(scope="session")
def assert_same():
    return _assert_same
