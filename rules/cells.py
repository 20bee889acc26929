"""The cellular automaton in the pixels: doublets of hits, joined where one helix from the beam line fits both.

As CMS serves it (Patatrack, arXiv:2008.13461): a cell is a doublet; its level is the number of cells of the longest
chain that ends with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

from tritrack.rules.grid import STAGGER, rows_between, runs, sectors_between

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.rules.grid import Geometry, Grid, Steps
    from tritrack.rules.windows import Windows

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]


N_DIRECTION = 13
"""Numbers that a cell is continued with."""
MIN_STEP = 1.0
"""A cell's hits are so far apart across the beam at least, in mm."""
_ARC = 1.04  # an arc of less than half a radian over its chord's projection


class Cells(NamedTuple):
    """Doublets, inner hits in order.

    Attributes
    ----------
    inner, outer
        int64 [n_cells], hits.
    before
        int64 [n_cells], the cell that the longest chain comes from, of several the one that fits best; -1 for none.
    level
        int64 [n_cells], cells of that chain.
    chi2
        float64 [n_cells], sum over its joints of the squared deviations in standard deviations.
    """

    inner: Integers
    outer: Integers
    before: Integers
    level: Integers
    chi2: Floats


@numba.njit(cache=True, nogil=True, error_model="numpy")
def window_along(geometry: Geometry, layer: int, r: float, z: float, max_z0: float) -> tuple[float, float]:
    """Where on a layer a straight line in (r, z) from the collisions through a hit may cross it: z, or r on a disk."""
    low, high = (z - max_z0) / r, (z + max_z0) / r  # slopes
    if not geometry.disk[layer]:
        step = geometry.r[layer] - r
        return z + low * step - STAGGER * abs(low), z + high * step + STAGGER * abs(high)
    step = geometry.z[layer] - z
    if step < 0:
        low, high, step = -high, -low, -step
    if high <= 0:
        return 1.0, 0.0
    return r + step / high - 2.0, (r + step / low + 2.0 if low > 0 else np.inf)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _direction(grid: Grid, geometry: Geometry, i: int, m: int, row: Floats) -> None:
    """Write down what a cell from hit i to hit m says of the next hit: float64 [N_DIRECTION]."""
    u, v = grid.u[m] - grid.u[i], grid.v[m] - grid.v[i]
    length = np.hypot(u, v)
    curvature = 2.0 * abs(grid.u[i] * grid.v[m] - grid.v[i] * grid.u[m]) / length
    bend = curvature * curvature / 24.0  # the arc is r + bend r^3
    r_i, r_m = grid.r[i], grid.r[m]
    step = r_m - r_i + bend * (r_m**3 - r_i**3)
    slope = (grid.z[m] - grid.z[i]) / step
    steep = 1.0 + slope * slope
    layer_i, layer_m = grid.layer[i], grid.layer[m]
    angle = geometry.scattering[layer_m] * curvature
    if not geometry.disk[layer_m]:
        angle *= steep**0.25  # of the thickness that is crossed
    row[0], row[1] = u / length, v / length
    row[2], row[3] = bend, slope
    row[4] = 1.0 / step
    row[5], row[6] = angle * angle, steep
    row[7] = (geometry.along[layer_i] * (slope if geometry.disk[layer_i] else 1.0)) ** 2
    row[8] = (geometry.along[layer_m] * (slope if geometry.disk[layer_m] else 1.0)) ** 2
    row[9], row[10] = geometry.across[layer_i] ** 2, geometry.across[layer_m] ** 2
    row[11], row[12] = r_i, r_m


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _misalignment(grid: Grid, geometry: Geometry, windows: Windows, row: Floats, m: int, o: int) -> float:
    """Return the squared deviation, in standard deviations, of hit o from where a cell leads; infinity for too far.

    Along the beam z is linear in the arc; across it, circles through the beam line are straight in conformal
    coordinates, and the errors are those of a parabola through the beam line and the cell's hits.
    """
    limit = windows.join * windows.join
    r_i, r_m, r_o, layer = row[11], row[12], grid.r[o], grid.layer[o]
    squared = r_o * r_o
    step = r_o - r_m + row[2] * (squared * r_o - r_m * r_m * r_m)
    ratio = step * row[4]
    off = grid.z[o] - grid.z[m] - row[3] * step
    along = geometry.along[layer]
    variance = along * along * (row[6] - 1.0 if geometry.disk[layer] else 1.0)
    variance += (1.0 + ratio) ** 2 * row[8] + ratio * ratio * row[7] + row[5] * step * step * row[6]
    chi2: float = off * off / variance
    if chi2 > limit:
        return np.inf
    step, apart = r_o - r_m, r_m - r_i
    off = (row[0] * (grid.v[o] - grid.v[m]) - row[1] * (grid.u[o] - grid.u[m])) * squared
    from_i, from_m = r_o * step / (r_i * apart), r_o * (r_o - r_i) / (r_m * apart)
    from_beam = step * (r_o - r_i) / (r_i * r_m)
    variance = geometry.across[layer] ** 2 + from_m * from_m * row[10] + from_i * from_i * row[9]
    variance += row[5] * (step * step + (r_i * from_beam) ** 2)
    off *= off
    if off > limit * variance + (windows.max_d0 * from_beam) ** 2:
        return np.inf
    chi2 += min(off / variance, limit)
    return chi2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def make_cells(grid: Grid, geometry: Geometry, windows: Windows, steps: Steps) -> Cells:
    """Make the cells and join them, from the inside outwards.

    Parameters
    ----------
    grid, geometry, windows
        Hits, detector and windows.
    steps
        Where cells go from each layer, always to a higher one: all cells that end with a hit are made before
        those that begin with it.
    """
    capacity = 4 * grid.x.size + 1024
    inner, outer = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.int64)
    before, level = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.int64)
    beside = np.empty(capacity, dtype=np.int64)  # another cell that ends with the same hit
    chi2 = np.empty(capacity, dtype=np.float64)
    last = np.full(grid.x.size, -1, dtype=np.int64)  # the latest cell that ends with a hit
    inwards, ahead = np.empty(64, dtype=np.int64), np.empty(64, dtype=np.int64)
    directions = np.empty((64, N_DIRECTION), dtype=np.float64)
    n = 0
    for i in range(grid.x.size):
        ahead, n_ahead = _hits_ahead(grid, geometry, windows, steps, i, ahead)
        if n_ahead == 0:
            continue
        n_inwards, cell = 0, last[i]
        while cell >= 0:
            if n_inwards == inwards.size:
                inwards, directions = _grown(inwards), _grown(directions)
            inwards[n_inwards] = cell
            _direction(grid, geometry, inner[cell], i, directions[n_inwards])
            n_inwards += 1
            cell = beside[cell]
        while n + n_ahead > inner.size:
            inner, outer, before = _grown(inner), _grown(outer), _grown(before)
            level, beside, chi2 = _grown(level), _grown(beside), _grown(chi2)
        for o in ahead[:n_ahead]:
            inner[n], outer[n], before[n], level[n], chi2[n] = i, o, -1, 1, 0.0
            for k in range(n_inwards):
                cell = inwards[k]
                if level[cell] + 1 < level[n]:
                    continue
                total = chi2[cell] + _misalignment(grid, geometry, windows, directions[k], i, o)
                if total < np.inf and (level[cell] + 1 > level[n] or total < chi2[n]):
                    level[n], chi2[n], before[n] = level[cell] + 1, total, cell
            beside[n] = last[o]
            last[o] = n
            n += 1
    return Cells(inner[:n], outer[:n], before[:n], level[:n], chi2[:n])


@numba.njit(cache=True, nogil=True)
def _grown(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate((array, np.empty_like(array)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _hits_ahead(
    grid: Grid, geometry: Geometry, windows: Windows, steps: Steps, i: int, found: Integers
) -> tuple[Integers, int]:
    """Write down the hits that cells from hit i go to; return where they are, for they may need room, and their number."""
    r, z, phi, n = grid.r[i], grid.z[i], grid.phi[i], 0
    for step in range(steps.start[grid.layer[i]], steps.start[grid.layer[i] + 1]):
        layer = steps.layers[step]
        low, high = window_along(geometry, layer, r, z, windows.max_z0)
        first_row, last_row = rows_between(geometry, layer, low, high)
        far = min(high, geometry.high[layer]) if geometry.disk[layer] else geometry.r[layer] + STAGGER
        first, count = sectors_between(phi, _turn(windows, r, max(far, r + MIN_STEP)))
        for row in range(first_row, last_row + 1):
            s0, e0, s1, e1 = runs(grid, layer, row, first, count)
            if n + e0 - s0 + e1 - s1 > found.size:
                found = np.concatenate((found, np.empty(found.size + e0 - s0 + e1 - s1, dtype=np.int64)))
            for place in range(e0 - s0 + e1 - s1):
                o = s0 + place if place < e0 - s0 else s1 + place - (e0 - s0)
                outwards = grid.r[o] - r
                turn = abs(grid.phi[o] - phi)
                turn = min(turn, 2.0 * np.pi - turn)
                if outwards < MIN_STEP or turn > _turn(windows, r, grid.r[o]):
                    continue
                if abs(z - r * (grid.z[o] - z) / outwards) <= windows.max_z0:
                    found[n] = o
                    n += 1
    return found, n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _turn(windows: Windows, r: float, r_far: float) -> float:
    """Largest difference in azimuth of two hits at radii r < r_far, on a circle that passes by the beam line."""
    bend = 0.5 * windows.max_curvature * (r_far - r) * _ARC
    return bend + windows.max_d0 * (1.0 / r - 1.0 / r_far)
