"""Geometric windows: which pairs of hits can belong to a particle at all, whatever the learned space says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Windows

    Geometry = NDArray[np.float64]
    Bounds = tuple[float, float, float]


def geometry(hits: NDArray[np.float32]) -> Geometry:
    """Return what the windows look at, float64 [4, n_hits]: x, y, z, r in mm."""
    x, y, z = hits[:, :3].astype(np.float64).T
    return np.stack([x, y, z, np.sqrt(x * x + y * y)])


def bounds(windows: Windows) -> Bounds:
    """Return the windows as the compiled loops take them: z0 in mm, curvature in 1/mm, overlap squared in mm^2."""
    return windows.max_z0, windows.max_curvature, windows.overlap**2


@numba.njit(cache=True, nogil=True, inline="always")
def is_possible(geometry: Geometry, a: int, b: int, limits: Bounds) -> bool:
    """Tell whether hits ``a`` and ``b`` pass the windows; the same either way round.

    Parameters
    ----------
    geometry
        float64 [4, n_hits], see :func:`geometry`.
    a, b
        Two hits.
    limits
        See :func:`bounds`.
    """
    # Without a branch: what a loop asks of many pairs compiles to vectors.
    max_z0, max_curvature, overlap_squared = limits
    dx, dy, dz, dr = (
        geometry[0, b] - geometry[0, a],
        geometry[1, b] - geometry[1, a],
        geometry[2, b] - geometry[2, a],
        geometry[3, b] - geometry[3, a],
    )
    chord_squared = dx * dx + dy * dy
    overlaps = chord_squared + dz * dz <= overlap_squared
    # z at the beam line is (z_a dr - r_a dz) / dr; multiplied out, hits at one radius need no case of their own.
    points_back = abs(geometry[2, a] * dr - geometry[3, a] * dz) <= max_z0 * abs(dr)
    # The circle through the beam line and both hits has the curvature 2 sin(dphi) / chord.
    cross = abs(geometry[0, a] * geometry[1, b] - geometry[1, a] * geometry[0, b])
    bends_little = 2.0 * cross <= max_curvature * geometry[3, a] * geometry[3, b] * math.sqrt(chord_squared)
    return bool(overlaps | (points_back & bends_little))


def possible_pairs(
    hits: NDArray[np.float32], pairs: NDArray[np.integer[Any]], *, windows: Windows
) -> NDArray[np.bool_]:
    """Tell which pairs pass the windows.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    pairs
        Integers [2, n_pairs], either way round.
    windows
        The windows.

    Returns
    -------
    ndarray
        bool [n_pairs].
    """
    possible: NDArray[np.bool_] = _possible_pairs(geometry(hits), pairs[0], pairs[1], bounds(windows))
    return possible


@numba.njit(cache=True, parallel=True, nogil=True)
def _possible_pairs(
    geometry: Geometry, a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]], limits: Bounds
) -> NDArray[np.bool_]:
    possible = np.empty(a.size, dtype=np.bool_)
    for pair in numba.prange(a.size):
        possible[pair] = is_possible(geometry, a[pair], b[pair], limits)
    return possible
