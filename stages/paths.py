"""Compiled loops of the labelling along helices: the likeliest path outwards, again and again.

Numba keeps compiled code by the file that it is in: after a change of `helix.py`, remove `stages/__pycache__`, or
what is compiled here goes on with the functions of before.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.stages.helix import is_one_helix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.helix import Floats


@numba.njit(cache=True, nogil=True)
def linked_paths(
    inner: NDArray[np.int64],
    outer: NDArray[np.int64],
    gain: NDArray[np.float64],
    starts_at: NDArray[np.int64],
    by_inner: NDArray[np.int64],
    ends_at: NDArray[np.int64],
    points: Floats,
) -> NDArray[np.int64]:
    """Take out the path with the largest gain, again and again; all hits are given by rank from the inside.

    The gain of a path is the sum of its edges' gains, and half of the gain of each edge that skips one of its hits,
    where there is one. Every step of a path has a positive gain of its own: two good paths are not chained by a bad
    link. And at every step the last four hits (three at a path's second step) are on one helix.

    Parameters
    ----------
    inner, outer
        int64 [n_edges], inner < outer, each pair once, sorted by (outer, inner).
    gain
        float64 [n_edges], multiples of a power of two, so that sums are exact.
    starts_at, by_inner
        Edges that start at hit h: ``by_inner[starts_at[h]:starts_at[h + 1]]``.
    ends_at
        Edges that end at hit h: ``ends_at[h]:ends_at[h + 1]``.
    points
        float64 [n_hits, 5], of :func:`tritrack.stages.helix.measured`.

    Returns
    -------
    ndarray
        int64 [n_hits], number of each hit's path, or -1.
    """
    n_hits, n_edges = ends_at.size - 1, inner.size
    track = np.full(n_hits, -1, dtype=np.int64)
    best = np.zeros(n_edges, dtype=np.float64)  # gain of the best path that ends with the edge
    previous = np.full(n_edges, -1, dtype=np.int64)  # the edge before it there
    gone = np.zeros(n_edges, dtype=np.bool_)
    ways = [(0.0, 0) for _ in range(0)]  # (minus the gain, last edge); outdated ones stay in it
    changed = [0 for _ in range(0)]
    for edge in range(n_edges):
        _find_best(edge, inner, outer, gain, ends_at, gone, best, previous, points)
        if best[edge] > 0.0:
            ways.append((-best[edge], edge))
    heapq.heapify(ways)
    n_tracks = 0
    while len(ways) > 0:
        negative, edge = heapq.heappop(ways)
        if gone[edge] or best[edge] != -negative:
            continue
        track[outer[edge]] = n_tracks
        _take_out(outer[edge], outer, starts_at, by_inner, ends_at, gone, previous, changed)
        while edge >= 0:
            track[inner[edge]] = n_tracks
            _take_out(inner[edge], outer, starts_at, by_inner, ends_at, gone, previous, changed)
            edge = previous[edge]
        n_tracks += 1
        _find_next_ways(
            ways, changed, inner, outer, gain, starts_at, by_inner, ends_at, gone, best, previous, points
        )
    return track


@numba.njit(cache=True, nogil=True)
def _find_next_ways(
    ways: list[tuple[float, int]],
    changed: list[int],
    inner: NDArray[np.int64],
    outer: NDArray[np.int64],
    gain: NDArray[np.float64],
    starts_at: NDArray[np.int64],
    by_inner: NDArray[np.int64],
    ends_at: NDArray[np.int64],
    gone: NDArray[np.bool_],
    best: NDArray[np.float64],
    previous: NDArray[np.int64],
    points: Floats,
) -> None:
    """Find the next best way of what led through an edge that is gone, from the inside outwards."""
    while len(changed) > 0:
        edge = heapq.heappop(changed)
        if gone[edge]:
            continue
        before, way = best[edge], previous[edge]
        _find_best(edge, inner, outer, gain, ends_at, gone, best, previous, points)
        if best[edge] != before or previous[edge] != way:
            _add_followers(edge, True, outer, starts_at, by_inner, gone, previous, changed)
        if best[edge] != before and best[edge] > 0.0:
            heapq.heappush(ways, (-best[edge], edge))


@numba.njit(cache=True, nogil=True)
def _find_best(
    edge: int,
    inner: NDArray[np.int64],
    outer: NDArray[np.int64],
    gain: NDArray[np.float64],
    ends_at: NDArray[np.int64],
    gone: NDArray[np.bool_],
    best: NDArray[np.float64],
    previous: NDArray[np.int64],
    points: Floats,
) -> None:
    middle, last = inner[edge], outer[edge]
    best[edge] = max(gain[edge], 0.0)
    previous[edge] = -1
    skipping, end = ends_at[last], ends_at[last + 1]
    for before in range(ends_at[middle], ends_at[middle + 1]):
        if gone[before] or best[before] <= 0.0:
            continue
        while skipping < end and inner[skipping] < inner[before]:
            skipping += 1
        there = skipping < end and inner[skipping] == inner[before]
        step = gain[edge] + 0.5 * (gain[skipping] if there else 0.0)
        if (
            step > 0.0
            and best[before] + step > best[edge]
            and _on_helix(before, edge, inner, outer, previous, points)
        ):
            best[edge] = best[before] + step
            previous[edge] = before


@numba.njit(cache=True, nogil=True)
def _take_out(
    hit: int,
    outer: NDArray[np.int64],
    starts_at: NDArray[np.int64],
    by_inner: NDArray[np.int64],
    ends_at: NDArray[np.int64],
    gone: NDArray[np.bool_],
    previous: NDArray[np.int64],
    changed: list[int],
) -> None:
    """Remove a hit's edges and note the edges whose best way came over them."""
    gone[ends_at[hit] : ends_at[hit + 1]] = True
    for place in range(starts_at[hit], starts_at[hit + 1]):
        edge = by_inner[place]
        if not gone[edge]:
            gone[edge] = True
            _add_followers(edge, False, outer, starts_at, by_inner, gone, previous, changed)


@numba.njit(cache=True, nogil=True)
def _add_followers(
    edge: int,
    every: bool,
    outer: NDArray[np.int64],
    starts_at: NDArray[np.int64],
    by_inner: NDArray[np.int64],
    gone: NDArray[np.bool_],
    previous: NDArray[np.int64],
    changed: list[int],
) -> None:
    """Note the edges that go on from one: every one, or those whose best way comes over it.

    Where the way to an edge has changed, another helix is to be kept to: any edge may now go on from it.
    """
    hit = outer[edge]
    for place in range(starts_at[hit], starts_at[hit + 1]):
        after = by_inner[place]
        if (every or previous[after] == edge) and not gone[after]:
            heapq.heappush(changed, after)


@numba.njit(cache=True, nogil=True)
def _on_helix(
    before: int,
    edge: int,
    inner: NDArray[np.int64],
    outer: NDArray[np.int64],
    previous: NDArray[np.int64],
    points: Floats,
) -> bool:
    """Whether the hits of two steps, and of the step before them where there is one, are on one helix."""
    earlier = previous[before]
    last = np.empty((3 if earlier < 0 else 4, points.shape[1]), dtype=np.float64)
    last[-1] = points[outer[edge]]
    last[-2] = points[inner[edge]]
    last[-3] = points[inner[before]]
    if earlier >= 0:
        last[0] = points[inner[earlier]]
    return is_one_helix(last)
