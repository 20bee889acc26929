"""The helix fit: momentum and origin of each track, from its hits.

A Kalman filter (`tritrack.physics.kalman`) from the outermost hit inwards and on to the point next to the beam line;
then once more about the helix that it found. It knows scattering, and neither the loss of energy nor a field that is
not the same everywhere, along z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from tritrack.physics.fitted import FITTED_COLUMNS
from tritrack.physics.kalman import (
    STRAIGHT,
    Circle,
    hit_variances,
    move,
    new_state,
    on_circle,
    scatter,
    update,
)
from tritrack.physics.selection import PhysicsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.events.event import Particles
    from tritrack.events.layers import Layers
    from tritrack.physics.kalman import State

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

ERROR_COLUMNS = FITTED_COLUMNS[:5]
"""Quantities that come with an error."""


_ROUNDS = 3  # each about the helix of the one before; the first about one through three hits
_PARAMETERS = 5
_VAGUE_PLACE, _VAGUE_ANGLE = 50.0, 0.5  # mm, and slopes: what is known before the first hit


class Fits(NamedTuple):
    """The helices of an event's tracks; row t belongs to label t.

    Attributes
    ----------
    fitted
        float32 [n_tracks, 8], see ``FITTED_COLUMNS``. All is that of the point next to the beam line: phi and eta of
        the direction there, d0 its distance in mm, positive where it lies to the left of the beam line as seen along
        the track (y cos(phi) - x sin(phi)), and z0 its z. chi2 and ndf (twice the hits less five) are of the hits.
        NaN in every column of a track that has no fit: fewer than three hits, or hits of no helix.
    errors
        float32 [n_tracks, 5], one standard deviation of each of ``ERROR_COLUMNS``.
    """

    fitted: NDArray[np.float32]
    errors: NDArray[np.float32]


class _Track(NamedTuple):
    """Hits of one track, outermost first; float64 and bool [n], mm."""

    x: Floats
    y: Floats
    z: Floats
    layer: Integers
    across: Floats
    along: Floats
    scattering: Floats
    disk: NDArray[np.bool_]


def curvature_unit(field: float) -> float:
    """Return the curvature of 1 GeV across a field in T, in 1/mm."""
    return 2.99792458e-4 * field


def fit_tracks(*, hits: NDArray[np.float32], labels: NDArray[np.int64], layers: Layers, field: float) -> Fits:
    """Fit a helix to each track of an event.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    labels
        int64 [n_hits], the track of each hit, counted from 0; -1 for none.
    layers
        The detector: how well each layer measures, and how much it scatters.
    field
        Along z, in T, above 0.

    Raises
    ------
    PhysicsError
        Where hits and labels are not one for one.
    """
    if labels.shape != hits.shape[:1]:
        raise PhysicsError(f"fit: {labels.shape[0]} labels for {hits.shape[0]} hits, one for each wanted")
    on_track = np.flatnonzero(labels >= 0)
    place = hits[on_track].astype(np.float64)
    # By track, and within it from the outermost hit inwards.
    order = np.lexsort((-np.linalg.norm(place, axis=1), labels[on_track]))
    place, track = place[order], labels[on_track][order]
    n_tracks = int(track[-1]) + 1 if track.size else 0
    layer = layers.of_hits(place)
    starts = np.searchsorted(track, np.arange(n_tracks + 1)).astype(np.int64)
    members = _Track(
        x=place[:, 0].copy(),
        y=place[:, 1].copy(),
        z=place[:, 2].copy(),
        layer=layer,
        across=layers.across[layer],
        along=layers.along[layer],
        scattering=layers.scattering[layer],
        disk=layers.disk[layer],
    )
    fitted, errors = _fit_all(members, starts, curvature_unit(field))
    return Fits(fitted=fitted.astype(np.float32), errors=errors.astype(np.float32))


def true_helices(particles: Particles, *, field: float) -> NDArray[np.float64]:
    """Return the helix of each charged particle at its point next to the beam line, as the fit has it.

    Parameters
    ----------
    particles
        Their vertices and momenta.
    field
        Along z, in T, above 0.

    Returns
    -------
    ndarray
        float64 [n_particles, 6], the first six of ``FITTED_COLUMNS``; NaN for neutral particles.
    """
    momentum = particles.momentum.astype(np.float64)
    return _true_helices(
        particles.vertex.astype(np.float64),
        momentum,
        particles.charge.astype(np.float64),
        curvature_unit(field),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _true_helices(vertex: Floats, momentum: Floats, charge: Floats, unit: float) -> Floats:
    helices = np.full((charge.size, 6), np.nan)
    for row in range(charge.size):
        pt = np.hypot(momentum[row, 0], momentum[row, 1])
        if charge[row] == 0 or pt == 0:
            continue
        slope = momentum[row, 2] / pt
        angle = np.arctan2(momentum[row, 1], momentum[row, 0])
        circle, s = _from_point(vertex[row, 0], vertex[row, 1], angle, -charge[row] * unit / pt)
        helices[row, 0], helices[row, 1] = pt, np.arctan2(circle.sine, circle.cosine)
        helices[row, 2], helices[row, 3] = np.arcsinh(slope), circle.d0
        helices[row, 4], helices[row, 5] = vertex[row, 2] + s * slope, charge[row]
    return helices


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit_all(members: _Track, starts: Integers, unit: float) -> tuple[Floats, Floats]:
    n_tracks = starts.size - 1
    fitted = np.full((n_tracks, 8), np.nan)
    errors = np.full((n_tracks, _PARAMETERS), np.nan)
    state = new_state()
    for track in range(n_tracks):
        first, end = starts[track], starts[track + 1]
        if end - first < 3:
            continue
        circle = _first_circle(members, first, end)
        slope = _first_slope(members, circle, first, end)
        chi2 = 0.0
        for _ in range(_ROUNDS):
            chi2 = _filter(members, first, end, circle, slope, state, unit)
            angle = np.arctan2(circle.sine, circle.cosine) + state.value[1]
            circle = Circle(
                np.cos(angle), np.sin(angle), circle.curvature + state.value[2], circle.d0 + state.value[0]
            )
            slope = state.value[4]
        if not (np.isfinite(chi2) and abs(circle.curvature) > STRAIGHT):
            continue
        fitted[track, 6], fitted[track, 7] = chi2, 2 * (end - first) - _PARAMETERS
        _describe(circle, state, fitted[track], errors[track], unit)
    return fitted, errors


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _describe(circle: Circle, state: State, fitted: Floats, errors: Floats, unit: float) -> None:
    """Write down the helix of a circle and a state at its point next to the beam line, but for its chi2."""
    curvature, slope = circle.curvature, state.value[4]
    fitted[0] = unit / abs(curvature)
    fitted[1] = np.arctan2(circle.sine, circle.cosine)
    fitted[2] = np.arcsinh(slope)
    fitted[3] = circle.d0
    fitted[4] = state.value[3]
    fitted[5] = -np.sign(curvature)  # in a field along z, what is positive turns to the right
    errors[0] = fitted[0] / abs(curvature) * np.sqrt(state.bend[2, 2])
    errors[1] = np.sqrt(state.bend[1, 1])
    errors[2] = np.sqrt(state.line[1, 1] / (1.0 + slope * slope))
    errors[3] = np.sqrt(state.bend[0, 0])
    errors[4] = np.sqrt(state.line[0, 0])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_circle(members: _Track, first: int, end: int) -> Circle:
    """Return the circle through the outermost, a middle and the innermost hit, outwards."""
    a, b, c = end - 1, (first + end - 1) // 2, first
    ab_x, ab_y = members.x[b] - members.x[a], members.y[b] - members.y[a]
    ac_x, ac_y = members.x[c] - members.x[a], members.y[c] - members.y[a]
    bc_x, bc_y = members.x[c] - members.x[b], members.y[c] - members.y[b]
    across = np.hypot(ac_x, ac_y)
    product = np.hypot(ab_x, ab_y) * np.hypot(bc_x, bc_y) * across
    curvature = 2.0 * (ab_x * ac_y - ab_y * ac_x) / product if product > 0.0 else 0.0
    bend = min(max(0.5 * curvature * across, -1.0), 1.0)
    angle = np.arctan2(ac_y, ac_x) - np.arcsin(bend)
    circle, _ = _from_point(members.x[a], members.y[a], angle, curvature)
    return circle


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _from_point(x: float, y: float, angle: float, curvature: float) -> tuple[Circle, float]:
    """Return the circle through a point, and the length of arc from there to its point next to the beam line."""
    s, off = on_circle(Circle(np.cos(angle), np.sin(angle), curvature, 0.0), -x, -y)
    angle += curvature * s
    return Circle(np.cos(angle), np.sin(angle), curvature, -off), s


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_slope(members: _Track, circle: Circle, first: int, end: int) -> float:
    inner, _ = on_circle(circle, members.x[end - 1], members.y[end - 1])
    outer, _ = on_circle(circle, members.x[first], members.y[first])
    return (members.z[first] - members.z[end - 1]) / (outer - inner) if outer != inner else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _filter(
    members: _Track, first: int, end: int, circle: Circle, slope: float, state: State, unit: float
) -> float:
    """Filter a track inwards, to the point next to the beam line, and return its chi2."""
    value = state.value
    value[:], state.bend[:], state.line[:] = 0.0, 0.0, 0.0
    value[5], _ = on_circle(circle, members.x[first], members.y[first])
    value[3], value[4] = members.z[first], slope
    state.bend[0, 0], state.bend[1, 1] = _VAGUE_PLACE**2, _VAGUE_ANGLE**2
    state.bend[2, 2] = unit**2
    state.line[0, 0], state.line[1, 1] = _VAGUE_PLACE**2, (_VAGUE_ANGLE * (1.0 + abs(slope))) ** 2
    chi2 = 0.0
    for hit in range(first, end):
        s, u = on_circle(circle, members.x[hit], members.y[hit])
        if hit > first and members.layer[hit] != members.layer[hit - 1]:
            scatter(state, circle, members.scattering[hit - 1], not members.disk[hit - 1])
        move(state, s)
        across, along = hit_variances(
            members.across[hit],
            members.along[hit],
            members.disk[hit],
            np.hypot(members.x[hit], members.y[hit]),
            circle.curvature,
            value[4],
        )
        chi2 += update(state, u, members.z[hit], across, along)
    # The innermost layer, which the particle crossed last, has scattered it before all others.
    scatter(state, circle, members.scattering[end - 1], not members.disk[end - 1])
    move(state, 0.0)
    return chi2
