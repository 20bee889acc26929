"""Kinematics and the two selections at their edges."""

from __future__ import annotations

import numpy as np
import pytest

from tritrack.events.event import Event, Particles, Truth
from tritrack.physics.selection import (
    COMPARISON,
    SELECTIONS,
    TARGETS,
    PhysicsError,
    kinematics,
    particle_rows,
    truth_of,
)


def truth(*rows, extra_hits=()):
    """One particle a row, numbered from 100: (pt, eta, charge, primary, n_hits)."""
    pt, eta, charge, primary, n_hits = (np.array(column) for column in zip(*rows, strict=True))
    ids = 100 + np.arange(len(rows))
    hits = np.append(np.repeat(ids, n_hits), extra_hits).astype(np.int64)
    return Truth(
        particle_id=hits,
        order=np.arange(hits.size, dtype=np.float32),
        particles=Particles(
            particle_id=ids,
            charge=charge.astype(np.float32),
            vertex=np.zeros((len(rows), 3), dtype=np.float32),
            momentum=np.stack([np.zeros_like(pt), pt, pt * np.sinh(eta)], axis=1).astype(np.float32),
            primary=primary,
        ),
    )


@pytest.mark.parametrize(
    ("row", "target", "comparison"),
    [
        ((2.0, 0.0, 1, True, 9), True, True),
        ((1.0, 0.0, 1, True, 9), True, False),
        ((0.999, 0.0, 1, True, 9), False, False),
        ((2.0, 2.499, -1, True, 9), True, True),
        ((2.0, -2.501, -1, True, 9), True, False),
        ((2.0, 3.999, 1, True, 9), True, False),
        ((2.0, -4.001, 1, True, 9), False, False),
        ((2.0, 0.0, 0, True, 9), False, False),
        ((2.0, 0.0, 1, False, 9), True, False),
        ((2.0, 0.0, 1, True, 8), True, False),
        ((2.0, 0.0, 1, True, 5), True, False),
        ((2.0, 0.0, 1, True, 4), False, False),
        ((2.0, 0.0, 1, True, 0), False, False),
    ],
)
def test_selections(row, target, comparison):
    # the second particle shifts rows against ids
    event = truth((0.1, 0.0, 1, True, 3), row)
    kin = kinematics(event)
    assert TARGETS.passes(event, kin).tolist() == [False, target]
    assert COMPARISON.passes(event, kin).tolist() == [False, comparison]
    assert SELECTIONS == {"targets": TARGETS, "comparison": COMPARISON}


def test_kinematics():
    event = Truth(
        particle_id=np.array([205, 0, 205, 100], dtype=np.int64),
        order=np.zeros(4, dtype=np.float32),
        particles=Particles(
            particle_id=np.array([205, 100, 150, 101], dtype=np.int64),
            charge=np.ones(4, dtype=np.float32),
            vertex=np.array([[3, 4, 5], [0, 0, -9], [0, 0, 0], [0, 0, 0]], dtype=np.float32),
            momentum=np.array([[3, 4, 0], [0, -1, 1], [0, 0, -2], [0, 0, 0]], dtype=np.float32),
            primary=np.ones(4, dtype=np.bool_),
        ),
    )
    kin = kinematics(event)
    np.testing.assert_allclose(kin.pt, [5, 1, 0, 0])
    np.testing.assert_allclose(kin.eta, [0, np.arcsinh(1), -np.inf, np.nan])
    np.testing.assert_allclose(kin.phi[:2], [np.arctan2(4, 3), -np.pi / 2])
    np.testing.assert_allclose(kin.radius, [5, 0, 0, 0])
    assert kin.n_hits.tolist() == [2, 1, 0, 0]
    assert not TARGETS.passes(event, kin).any()
    assert particle_rows(event, np.array([0, 150, 205, 101])).tolist() == [-1, 2, 0, 3]


def test_no_particles():
    event = Truth(
        particle_id=np.zeros(3, dtype=np.int64),
        order=np.zeros(3, dtype=np.float32),
        particles=Particles(
            particle_id=np.zeros(0, dtype=np.int64),
            charge=np.zeros(0, dtype=np.float32),
            vertex=np.zeros((0, 3), dtype=np.float32),
            momentum=np.zeros((0, 3), dtype=np.float32),
            primary=np.zeros(0, dtype=np.bool_),
        ),
    )
    assert TARGETS.passes(event, kinematics(event)).shape == (0,)


@pytest.mark.parametrize("extra", [[99], [300, 300]])
def test_hits_of_a_particle_that_is_not_there(extra):
    event = truth((1.0, 0.0, 1, True, 3), extra_hits=extra)
    with pytest.raises(PhysicsError, match=f"{len(extra)} hits or tracks name .* {extra[0]}"):
        kinematics(event)


def test_hits_alone():
    event = Event(
        event_id=7,
        hits=np.zeros((0, 3), dtype=np.float32),
        hit_id=np.zeros(0, dtype=np.int64),
        modules=np.zeros((0, 3), dtype=np.int32),
    )
    with pytest.raises(PhysicsError, match="event 7: has no truth"):
        truth_of(event)
