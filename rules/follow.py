"""Tracks along their helices: the filter of `tritrack.physics.kalman`, from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.physics.kalman import (
    STRAIGHT,
    Circle,
    hit_variances,
    move,
    on_circle,
    scatter,
    update,
)
from tritrack.rules.grid import STAGGER, rows_between, runs, sectors_between

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.physics.kalman import State
    from tritrack.rules.grid import Geometry, Grid, Steps
    from tritrack.rules.windows import Windows

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

MAX_HITS = 64
"""Hits of a track; the largest detectors have half as many layers, twice where modules overlap."""
MIN_KNOWN = 2
"""Hits before one whose layer is searched for a second: a state of fewer says too little."""
MAX_BESIDE = 4
"""Hits of a track on one layer: modules of a disk overlap that often."""
MIN_DEPTH = 0.4
"""A particle crosses a surface once; modules that overlap are further apart, in mm."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def circle_through_beam(grid: Grid, i: int, o: int) -> Circle:
    """Return the circle through the beam line and two hits: a straight line there in conformal coordinates."""
    u, v = grid.u[o] - grid.u[i], grid.v[o] - grid.v[i]
    length = np.hypot(u, v)
    # In conformal coordinates the track runs inwards, towards the beam line's image at infinity.
    cosine, sine = -u / length, -v / length
    curvature = 2.0 * (grid.v[i] * cosine - grid.u[i] * sine)
    return Circle(cosine, sine, curvature, 0.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _variances(grid: Grid, geometry: Geometry, circle: Circle, state: State, hit: int) -> tuple[float, float]:
    layer = grid.layer[hit]
    return hit_variances(
        geometry.across[layer],
        geometry.along[layer],
        geometry.disk[layer],
        grid.r[hit],
        circle.curvature,
        state.value[4],
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _off(grid: Grid, geometry: Geometry, circle: Circle, state: State, hit: int) -> float:
    """Return the chi2 of a hit against the state, which is near it."""
    s, u = on_circle(circle, grid.x[hit], grid.y[hit])
    value = state.value
    h = s - value[5]
    du = u - value[0] - h * value[1] - 0.5 * h * h * value[2]
    dz = grid.z[hit] - value[3] - h * value[4]
    across, along = _variances(grid, geometry, circle, state, hit)
    chi2: float = du * du / (state.bend[0, 0] + across) + dz * dz / (state.line[0, 0] + along)
    return chi2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take(grid: Grid, geometry: Geometry, circle: Circle, state: State, hit: int) -> float:
    """Move to a hit and update with it; return its chi2."""
    s, u = on_circle(circle, grid.x[hit], grid.y[hit])
    move(state, s)
    across, along = _variances(grid, geometry, circle, state, hit)
    return update(state, u, grid.z[hit], across, along)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cross(geometry: Geometry, circle: Circle, state: State, layer: int) -> None:
    """Cross a layer's material."""
    scatter(state, circle, geometry.scattering[layer], not geometry.disk[layer])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _begin(grid: Grid, windows: Windows, circle: Circle, state: State, hits: Integers, n: int) -> None:
    """Set the state before the first of ``hits``."""
    first, last = hits[0], hits[n - 1]
    s0, _ = on_circle(circle, grid.x[first], grid.y[first])
    s1, _ = on_circle(circle, grid.x[last], grid.y[last])
    outwards = s1 > s0
    slope = (grid.z[last] - grid.z[first]) / (s1 - s0) if s1 != s0 else 0.0
    state.value[:] = 0.0
    state.value[5] = 0.0 if outwards else s0
    state.value[4] = slope
    state.value[3] = grid.z[first] + slope * (state.value[5] - s0)
    state.bend[:] = 0.0
    state.bend[0, 0] = windows.max_d0**2 if outwards else 25.0
    state.bend[1, 1] = 0.1**2
    state.bend[2, 2] = windows.max_curvature**2
    state.line[:] = 0.0
    state.line[0, 0] = 100.0**2
    state.line[1, 1] = (1.0 + abs(slope)) ** 2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def crossing(
    geometry: Geometry, circle: Circle, state: State, layer: int, outwards: bool
) -> tuple[float, float, float]:
    """Where the track crosses a layer: length of arc, azimuth, and z (r on a disk); an arc of NaN for nowhere."""
    curvature, value = circle.curvature, state.value
    if geometry.disk[layer]:
        s = value[5] + (geometry.z[layer] - value[3]) / value[4]
        if not abs(curvature * s) < 3.0 or s <= 0.0:
            return np.nan, 0.0, 0.0
    else:
        reach = 0.5 * curvature * geometry.r[layer]
        if abs(reach) > 0.95:
            return np.nan, 0.0, 0.0
        s = 2.0 / curvature * np.arcsin(reach) if abs(curvature) > STRAIGHT else geometry.r[layer]
    if (s > value[5]) != outwards:
        return np.nan, 0.0, 0.0
    beta = 0.5 * curvature * s
    h = s - value[5]
    u = value[0] + h * value[1] + 0.5 * h * h * value[2]
    azimuth = np.arctan2(circle.sine, circle.cosine) + beta
    r = 2.0 / curvature * np.sin(beta) if abs(curvature) > STRAIGHT else s
    if geometry.disk[layer]:
        return s, azimuth + u * np.cos(beta) / r, r - u * np.sin(beta)
    along = u * np.tan(beta)
    return s + along, azimuth + u / (r * np.cos(beta)), value[3] + (h + along) * value[4]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _best_on_layer(
    grid: Grid,
    geometry: Geometry,
    windows: Windows,
    circle: Circle,
    state: State,
    layer: int,
    azimuth: float,
    along: float,
    others: Integers,
) -> tuple[int, float]:
    """Return the hit of a layer that fits best and its chi2, or -1; on other surfaces than ``others``, hits of the layer."""
    sigmas = np.sqrt(windows.follow)
    slope = abs(state.value[4])
    disk = geometry.disk[layer]
    r = max(along, 1.0) if disk else geometry.r[layer]
    tilt = min(abs(0.5 * circle.curvature * r), 0.95)
    spread = np.sqrt(state.bend[0, 0] + geometry.across[layer] ** 2) + tilt * disk * geometry.along[layer]
    stagger = STAGGER * (tilt / max(slope, 0.2) if disk else tilt)
    first, count = sectors_between(azimuth, (sigmas * spread / np.sqrt(1.0 - tilt * tilt) + stagger) / r)
    spread = np.sqrt(state.line[0, 0] + (geometry.along[layer] * (slope if disk else 1.0)) ** 2)
    width = sigmas * spread + STAGGER * (1.0 if disk else slope)
    if disk:
        width /= max(slope, 0.2)
    first_row, last_row = rows_between(geometry, layer, along - width, along + width)
    best, least = -1, windows.follow
    for row in range(first_row, last_row + 1):
        s0, e0, s1, e1 = runs(grid, layer, row, first, count)
        for place in range(e0 - s0 + e1 - s1):
            hit = s0 + place if place < e0 - s0 else s1 + place - (e0 - s0)
            if _shares_surface(grid, hit, others, disk):
                continue
            off = _off(grid, geometry, circle, state, hit)
            if off < least:
                best, least = hit, off
    return best, least


@numba.njit(cache=True, nogil=True, error_model="numpy")
def follow(
    grid: Grid,
    geometry: Geometry,
    windows: Windows,
    steps: Steps,
    circle: Circle,
    state: State,
    hits: Integers,
    n: int,
) -> tuple[int, float, int]:
    """Filter the hits of a track in their order, then take further ones from layer to layer, as far as there are any.

    Parameters
    ----------
    grid, geometry, windows
        Hits, detector and windows.
    steps
        Where tracks go from each layer in this direction.
    circle
        About which the track is filtered.
    state
        Scratch; holds the state at the last hit afterwards.
    hits
        int64 [MAX_HITS], the first ``n`` are the track's; those found are written after them.

    Returns
    -------
    tuple
        Number of hits; sum of chi2; layers that the track crosses without a hit.
    """
    _begin(grid, windows, circle, state, hits, n)
    s_first, _ = on_circle(circle, grid.x[hits[0]], grid.y[hits[0]])
    s_last, _ = on_circle(circle, grid.x[hits[n - 1]], grid.y[hits[n - 1]])
    outwards = s_last > s_first
    given = n
    n, chi2 = _follow_given(grid, geometry, windows, circle, state, hits, given)
    layer = grid.layer[hits[given - 1]]
    holes = 0
    while n < MAX_HITS:
        _cross(geometry, circle, state, layer)
        found, missed = _next(grid, geometry, windows, steps, circle, state, layer, outwards)
        if found < 0:
            break
        holes += missed
        if missed:
            _cross(geometry, circle, state, layer)
        chi2 += _take(grid, geometry, circle, state, found)
        hits[n] = found
        layer = grid.layer[found]
        first = n + 1
        n, _ = _beside(grid, geometry, windows, circle, state, hits[n:first], hits, first)
        for place in range(first, n):
            chi2 += _take(grid, geometry, circle, state, hits[place])
    return n, chi2, holes


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _follow_given(
    grid: Grid,
    geometry: Geometry,
    windows: Windows,
    circle: Circle,
    state: State,
    hits: Integers,
    given: int,
) -> tuple[int, float]:
    """Filter the hits that a track begins with; return the number of hits, those found beside them added, and chi2."""
    n, chi2, begin = given, 0.0, 0
    for place in range(given):
        hit = hits[place]
        layer = grid.layer[hit]
        if place > 0 and grid.layer[hits[place - 1]] != layer:
            _cross(geometry, circle, state, grid.layer[hits[place - 1]])
            begin = place
        chi2 += _take(grid, geometry, circle, state, hit)
        if place >= MIN_KNOWN and (place + 1 == given or grid.layer[hits[place + 1]] != layer):
            n, off = _beside(grid, geometry, windows, circle, state, hits[begin : place + 1], hits, n)
            chi2 += off
    return n, chi2


@numba.njit(cache=True, nogil=True)
def _shares_surface(grid: Grid, hit: int, others: Integers, on_disk: bool) -> bool:
    for other in others:
        depth = grid.z[hit] - grid.z[other] if on_disk else grid.r[hit] - grid.r[other]
        if abs(depth) < MIN_DEPTH:
            return True
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _beside(
    grid: Grid,
    geometry: Geometry,
    windows: Windows,
    circle: Circle,
    state: State,
    known: Integers,
    hits: Integers,
    n: int,
) -> tuple[int, float]:
    """Write after the first ``n`` hits those on other modules of a layer, besides the ``known``; return the new n and their chi2."""
    there = np.empty(MAX_BESIDE, dtype=np.int64)
    n_there = min(known.size, MAX_BESIDE)
    there[:n_there] = known[:n_there]
    layer = grid.layer[known[0]]
    along = grid.r[known[0]] if geometry.disk[layer] else grid.z[known[0]]
    chi2 = 0.0
    while n_there < MAX_BESIDE and n < MAX_HITS:
        found, off = _best_on_layer(
            grid, geometry, windows, circle, state, layer, grid.phi[known[0]], along, there[:n_there]
        )
        if found < 0:
            break
        chi2 += off
        there[n_there], hits[n] = found, found
        n_there, n = n_there + 1, n + 1
    return n, chi2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _next(
    grid: Grid,
    geometry: Geometry,
    windows: Windows,
    steps: Steps,
    circle: Circle,
    state: State,
    layer: int,
    outwards: bool,
) -> tuple[int, int]:
    """Return the next hit, -1 for none, and how many layers before it have none; the state stays where it is."""
    value = state.value.copy()
    bend, line = state.bend.copy(), state.line.copy()
    none = np.empty(0, dtype=np.int64)
    tried = value[5]
    missed = 0
    for _ in range(steps.start[layer + 1] - steps.start[layer]):
        # The layers in the order in which they are crossed.
        nearest, target, azimuth, along = np.inf, -1, 0.0, 0.0
        for place in range(steps.start[layer], steps.start[layer + 1]):
            other = steps.layers[place]
            s, there, position = crossing(geometry, circle, state, other, outwards)
            ahead = s > tried if outwards else s < tried
            if not ahead or abs(s - value[5]) >= nearest:
                continue
            margin = STAGGER + 3.0 * np.sqrt(line[0, 0]) * (1.0 if not geometry.disk[other] else 0.2)
            if geometry.low[other] - margin < position < geometry.high[other] + margin:
                nearest, target, azimuth, along = abs(s - value[5]), other, there, position
        if target < 0:
            break
        tried = value[5] + (nearest if outwards else -nearest)
        move(state, tried)
        found, _ = _best_on_layer(grid, geometry, windows, circle, state, target, azimuth, along, none)
        state.value[:], state.bend[:], state.line[:] = value, bend, line
        if found >= 0:
            return found, missed
        if geometry.low[target] < along < geometry.high[target]:
            missed += 1
    return -1, missed
