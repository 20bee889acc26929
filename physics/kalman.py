"""A Kalman filter of a track about a fixed circle, compiled: what finding along helices and the helix fit share.

In a field along z a track is a circle across it, and z is linear in the length of its arc. The state is what the track
is off a given circle (distance, angle, curvature), and z with its slope, against the length of arc; the two parts do
not mix. Scattering widens angle and slope at each layer (Fruehwirth, NIM A 262 (1987) 444).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

STRAIGHT = 1e-9
"""A curvature below this, in 1/mm, is none: its circle is more than 1000 km wide."""


class Circle(NamedTuple):
    """A circle with a direction, at its point next to the beam line.

    Attributes
    ----------
    cosine, sine
        Of the direction there.
    curvature
        In 1/mm, positive where it turns to the left.
    d0
        That point's distance from the beam line in mm, positive where it lies to the left of it.
    """

    cosine: float
    sine: float
    curvature: float
    d0: float


class State(NamedTuple):
    """Of the filter; arrays that are changed in place.

    Attributes
    ----------
    value
        float64 [6]: distance from the circle in mm, positive to the left, angle, curvature in 1/mm; z in mm, dz / ds;
        length of arc s in mm, from 0 at the point next to the beam line.
    bend
        float64 [3, 3], covariance of the first three, its upper half.
    line
        float64 [2, 2], covariance of z and its slope, its upper half.
    """

    value: Floats
    bend: Floats
    line: Floats


@numba.njit(cache=True, nogil=True)
def new_state() -> State:
    """Return a state of zeros."""
    return State(np.zeros(6), np.zeros((3, 3)), np.zeros((2, 2)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def on_circle(circle: Circle, x: float, y: float) -> tuple[float, float]:
    """Length of arc to the point of the circle next to (x, y), and the distance, positive to the left; mm."""
    ahead = circle.cosine * x + circle.sine * y
    left = circle.cosine * y - circle.sine * x - circle.d0
    curvature = circle.curvature
    a = 0.5 * curvature * (ahead * ahead + left * left) - left
    off = -2.0 * a / (1.0 + np.sqrt(max(1.0 + 2.0 * curvature * a, 0.0)))
    if abs(curvature) < STRAIGHT:
        return ahead, off
    return np.arctan2(curvature * ahead, 1.0 - curvature * left) / curvature, off


@numba.njit(cache=True, nogil=True, error_model="numpy")
def move(state: State, to: float) -> None:
    """Carry the state along the arc to a length in mm."""
    value, c, line = state.value, state.bend, state.line
    h = to - value[5]
    half = 0.5 * h * h
    value[0] += h * value[1] + half * value[2]
    value[1] += h * value[2]
    value[3] += h * value[4]
    value[5] = to
    # F C F^T with F = [[1, h, h^2 / 2], [0, 1, h], [0, 0, 1]]
    c01, c02, c11, c12, c22 = c[0, 1], c[0, 2], c[1, 1], c[1, 2], c[2, 2]
    a0, a1, a2 = c[0, 0] + h * c01 + half * c02, c01 + h * c11 + half * c12, c02 + h * c12 + half * c22
    b1, b2 = c11 + h * c12, c12 + h * c22
    c[0, 0] = a0 + h * a1 + half * a2
    c[0, 1] = a1 + h * a2
    c[0, 2] = a2
    c[1, 1] = b1 + h * b2
    c[1, 2] = b2
    line[0, 0] += 2.0 * h * line[0, 1] + h * h * line[1, 1]
    line[0, 1] += h * line[1, 1]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def scatter(state: State, circle: Circle, scattering: float, in_barrel: bool) -> None:
    """Widen angle and slope by the material of one layer.

    Parameters
    ----------
    state, circle
        The track.
    scattering
        The layer's, see `tritrack.events.layers.Layers`.
    in_barrel
        Whether it lies along the beam: a track that does so too crosses more of it. Disks are crossed nearly at right
        angles.
    """
    steep = 1.0 + state.value[4] ** 2
    angle = scattering * (circle.curvature + state.value[2])
    variance = angle * angle * (np.sqrt(steep) if in_barrel else 1.0)
    state.bend[1, 1] += variance
    state.line[1, 1] += variance * steep


@numba.njit(cache=True, nogil=True, error_model="numpy")
def hit_variances(
    across: float, along: float, on_disk: bool, r: float, curvature: float, slope: float
) -> tuple[float, float]:
    """Return the variances of a hit across its track and along z, in mm^2.

    Parameters
    ----------
    across, along
        One standard deviation in the direction of phi, and along z in the barrel or r on a disk, mm.
    on_disk
        Whether it is on one: then its z is known, and r's error is turned into one of z, and of distance.
    r, curvature, slope
        Of the track: distance from the beam line in mm, curvature in 1/mm, dz / ds.
    """
    if on_disk:
        tilt = min((0.5 * curvature * r) ** 2, 1.0)
        return across * across * (1.0 - tilt) + along * along * tilt, (along * slope) ** 2
    return across * across, along * along


@numba.njit(cache=True, nogil=True, error_model="numpy")
def update(state: State, u: float, z: float, across: float, along: float) -> float:
    """Update the state with a hit at its length of arc, and return the hit's chi2 (two degrees of freedom).

    Parameters
    ----------
    state
        The track.
    u, z
        The hit's distance from the circle and its z, mm.
    across, along
        Their variances in mm^2.
    """
    value, c, line = state.value, state.bend, state.line
    total = c[0, 0] + across
    du = u - value[0]
    k0, k1, k2 = c[0, 0] / total, c[0, 1] / total, c[0, 2] / total
    value[0] += k0 * du
    value[1] += k1 * du
    value[2] += k2 * du
    c[2, 2] -= k2 * c[0, 2]
    c[1, 2] -= k1 * c[0, 2]
    c[1, 1] -= k1 * c[0, 1]
    c[0, 2] -= k0 * c[0, 2]
    c[0, 1] -= k0 * c[0, 1]
    c[0, 0] -= k0 * c[0, 0]
    chi2: float = du * du / total
    total = line[0, 0] + along
    dz = z - value[3]
    k0, k1 = line[0, 0] / total, line[0, 1] / total
    value[3] += k0 * dz
    value[4] += k1 * dz
    line[1, 1] -= k1 * line[0, 1]
    line[0, 1] -= k0 * line[0, 1]
    line[0, 0] -= k0 * line[0, 0]
    chi2 += dz * dz / total
    return chi2
