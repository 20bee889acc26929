"""Hits in columns of the learned space, and with which others each must be compared to miss none within a radius."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]
    Floats = NDArray[np.float64]

N_AXES = 3
"""Principal axes: the learned space is nearly flat, so three hold most of its spread. The third runs along the columns."""

CELLS_WITHIN_RADIUS = 256
"""Cells of a column, in which its hits are sorted, on the length of the radius."""

MAX_CELLS = 1 << 20
"""Cells along one axis: three axes still fit an int64."""

COLUMNS = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1))
"""Where the columns are that a hit is compared with: its own, from the hit onwards, and every second one around."""

HITS_AT_ONCE = 512
"""Hits whose ranges a thread finds at once."""


def search_ranges(
    embedding: NDArray[np.float32], *, radius: float
) -> tuple[NDArray[np.int32], Indices, Indices]:
    """Sort hits so that those near to a hit are in few ranges.

    The first two principal axes of the embedding are cut into columns of the radius, and hits are sorted along them.
    Within the radius of a hit only neighbouring columns lie, and the less of each the farther away it begins. A
    projection never lengthens a distance, so no pair is missed.

    Parameters
    ----------
    embedding
        float32 [n_hits, d], one hit at least.
    radius
        Euclidean distance in the learned space.

    Returns
    -------
    tuple of ndarray
        int32 [n_hits], the hits in their columns; int64 [5, n_hits] and [5, n_hits]: of sorted hit h, those within the
        radius that no other hit is compared with are among the sorted hits ``first[i, h]`` to ``last[i, h]``, the last
        one not included, for an i from 0 to 4.
    """
    n_hits = embedding.shape[0]
    along = _along_axes(embedding)
    extent = along.max(axis=1)
    # A hair over the radius: rounding in the projection must not push a neighbour out of reach.
    reach = radius * 1.0001 + 1e-12 * extent.max()
    # Larger cells only cost time; they keep the number of cells countable where a few hits lie far away.
    size = np.maximum(reach / np.array([1, 1, CELLS_WITHIN_RADIUS]), extent / MAX_CELLS)
    x, y, z = (along / size[:, None]).astype(np.int64)
    shape = np.array([x.max(), y.max(), z.max()]) + 1
    keys = (x * shape[1] + y) * shape[2] + z
    order = np.argsort(keys, kind="stable")
    first, last = np.empty((2, len(COLUMNS), n_hits), dtype=np.int64)
    _find_ranges(keys[order], along[:, order], shape, size, reach, first, last)
    return order.astype(np.int32), first, last


def _along_axes(embedding: NDArray[np.float32]) -> Floats:
    """Return where hits are on the principal axes, from 0 on, float64 [3, n_hits]; zeros for an axis that is not there."""
    points = embedding.T.astype(np.float64, order="C")
    points -= points.mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(points @ points.T)
    along = np.zeros((N_AXES, embedding.shape[0]))
    n_axes = min(N_AXES, embedding.shape[1])
    along[:n_axes] = axes[:, ::-1].T[:n_axes] @ points
    along -= along.min(axis=1, keepdims=True)
    return along


@numba.njit(cache=True, parallel=True, nogil=True)
def _find_ranges(
    keys: Indices, along: Floats, shape: Indices, size: Floats, reach: float, first: Indices, last: Indices
) -> None:
    """Fill the ranges of hits that are sorted by their keys."""
    n_hits = keys.size
    for piece in numba.prange(-(-n_hits // HITS_AT_ONCE)):
        begins = np.zeros(len(COLUMNS), dtype=np.int64)
        ends = np.zeros(len(COLUMNS), dtype=np.int64)
        before = -1
        for hit in range(piece * HITS_AT_ONCE, min((piece + 1) * HITS_AT_ONCE, n_hits)):
            column = keys[hit] // shape[2]
            x, y = column // shape[1], column % shape[1]
            for i, (dx, dy) in enumerate(COLUMNS):
                key = ((x + dx) * shape[1] + y + dy) * shape[2]
                if column != before:
                    inside = x + dx < shape[0] and 0 <= y + dy < shape[1]
                    begins[i] = np.searchsorted(keys, key) if inside else 0
                    ends[i] = np.searchsorted(keys, key + shape[2]) if inside else 0
                # How far away the column begins.
                gap_x = (x + 1) * size[0] - along[0, hit] if dx > 0 else 0.0
                gap_y = (y + 1) * size[1] - along[1, hit] if dy > 0 else 0.0
                gap_y = along[1, hit] - y * size[1] if dy < 0 else gap_y
                squared = reach * reach - gap_x * gap_x - gap_y * gap_y
                there = keys[begins[i] : ends[i]]
                if squared < 0.0 or there.size == 0:
                    first[i, hit], last[i, hit] = 0, 0
                    continue
                half = math.sqrt(squared)
                low = max(int((along[2, hit] - half) / size[2]), 0)
                high = min(int((along[2, hit] + half) / size[2]), shape[2] - 1)
                first[i, hit] = begins[i] + np.searchsorted(there, key + low)
                last[i, hit] = begins[i] + np.searchsorted(there, key + high, side="right")
            first[0, hit] = hit + 1
            before = column
