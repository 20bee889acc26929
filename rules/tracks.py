"""From chains of cells to tracks: each is followed, and of those that share hits the better ones stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from tritrack.physics.kalman import new_state, on_circle
from tritrack.rules.follow import MAX_HITS, circle_through_beam, follow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.physics.kalman import Circle
    from tritrack.rules.cells import Cells
    from tritrack.rules.grid import Geometry, Grid, Steps
    from tritrack.rules.windows import Windows

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

MIN_CHAIN = 2
"""Cells of a chain that is followed: three hits."""
_WORTH = 0.25
"""What a chi2 of one per degree of freedom takes off a track's rank, in layers."""


class Candidates(NamedTuple):
    """Tracks that may share hits.

    Attributes
    ----------
    members, starts
        int64, the hits of track t from the inside outwards: ``members[starts[t]:starts[t + 1]]``.
    rank
        float64 [n_tracks], layers with a hit less those without, less a part for a large chi2; higher is better.
    """

    members: Integers
    starts: Integers
    rank: Floats


def chains(cells: Cells) -> Integers:
    """Return the cells that chains to be followed end with, the longest first and of equal ones the best, int64 [n]."""
    ends = np.flatnonzero(cells.level >= MIN_CHAIN)
    order: Integers = ends[np.lexsort((ends, cells.chi2[ends] / cells.level[ends], -cells.level[ends]))]
    return order


@numba.njit(cache=True, nogil=True, error_model="numpy")
def grow(
    grid: Grid,
    geometry: Geometry,
    windows: Windows,
    cells: Cells,
    ends: Integers,
    outwards: Steps,
    inwards: Steps,
) -> Candidates:
    """Follow chains outwards, then back inwards, and keep those that become tracks.

    Parameters
    ----------
    grid, geometry, windows
        Hits, detector and windows.
    cells, ends
        The cells, and those that chains end with, in the order in which they are followed. A chain is left out
        where a long track has two of its hits already.
    outwards, inwards
        Where tracks go from each layer, both ways.
    """
    members = np.empty(grid.x.size + MAX_HITS, dtype=np.int64)
    starts, rank = np.zeros(ends.size + 1, dtype=np.int64), np.empty(ends.size, dtype=np.float64)
    owner = np.full(grid.x.size, -1, dtype=np.int64)
    state = new_state()
    hits, turned = np.empty(MAX_HITS, dtype=np.int64), np.empty(MAX_HITS, dtype=np.int64)
    n_tracks, filled = 0, 0
    for end in ends:
        n = _chain(cells, end, hits)
        if _is_owned(owner, hits, n):
            continue
        circle = circle_through_beam(grid, hits[0], hits[n - 1])
        n, _, holes = follow(grid, geometry, windows, outwards, circle, state, hits, n)
        if n < windows.min_layers - 1:
            continue
        _sort_along(grid, circle, hits, n)
        turned[:n] = hits[:n][::-1]
        n, chi2, more = follow(grid, geometry, windows, inwards, circle, state, turned, n)
        hits[:n] = turned[:n]
        _sort_along(grid, circle, hits, n)
        layers, holes = _layers(grid, hits, n), holes + more
        chi2 /= 2 * n - 5
        long = layers >= windows.long
        if layers < windows.min_layers or holes > windows.max_holes or not (long or chi2 <= windows.max_chi2):
            continue
        if filled + n > members.size:
            grown = np.empty(2 * members.size, dtype=np.int64)
            grown[:filled] = members[:filled]
            members = grown
        members[filled : filled + n] = hits[:n]
        if long:
            owner[hits[:n]] = n_tracks
        filled += n
        rank[n_tracks] = layers - holes - _WORTH * chi2
        n_tracks += 1
        starts[n_tracks] = filled
    return Candidates(members[:filled], starts[: n_tracks + 1], rank[:n_tracks])


@numba.njit(cache=True, nogil=True)
def _chain(cells: Cells, end: int, hits: Integers) -> int:
    """Write down the hits of the chain that ends with a cell, and return their number."""
    n: int = min(cells.level[end] + 1, MAX_HITS)
    hits[n - 1] = cells.outer[end]
    cell = end
    for place in range(n - 2, -1, -1):
        hits[place] = cells.inner[cell]
        cell = cells.before[cell]
    return n


@numba.njit(cache=True, nogil=True)
def _is_owned(owner: Integers, hits: Integers, n: int) -> bool:
    """Whether a track has two of the hits."""
    for place in range(1, n):
        track = owner[hits[place]]
        for other in range(place):
            if track >= 0 and owner[hits[other]] == track:
                return True
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sort_along(grid: Grid, circle: Circle, hits: Integers, n: int) -> None:
    arc = np.empty(n, dtype=np.float64)
    for place in range(n):
        arc[place], _ = on_circle(circle, grid.x[hits[place]], grid.y[hits[place]])
    hits[:n] = hits[:n][np.argsort(arc)]


@numba.njit(cache=True, nogil=True)
def _layers(grid: Grid, hits: Integers, n: int) -> int:
    layers = 1
    for place in range(1, n):
        layers += grid.layer[hits[place]] != grid.layer[hits[place - 1]]
    return layers


@numba.njit(cache=True, nogil=True)
def choose(grid: Grid, windows: Windows, candidates: Candidates, order: Integers) -> Integers:
    """Give each hit to one track.

    Parameters
    ----------
    grid, windows
        Hits and windows.
    candidates
        The tracks.
    order
        int64 [n_tracks], the order in which they take their hits. A track is dropped where too many of them are
        taken, or too few layers are left.

    Returns
    -------
    ndarray
        int64 [n_hits], a number for each track that stays, -1 for hits of none.
    """
    label = np.full(grid.x.size, -1, dtype=np.int64)
    for track in order:
        first, end = candidates.starts[track], candidates.starts[track + 1]
        free, layers, last = 0, 0, -1
        for place in range(first, end):
            hit = candidates.members[place]
            if label[hit] < 0:
                free += 1
                layers += grid.layer[hit] != last
                last = grid.layer[hit]
        if layers < windows.min_layers or end - first - free > windows.max_shared:
            continue
        for place in range(first, end):
            hit = candidates.members[place]
            if label[hit] < 0:
                label[hit] = track
    return label
