"""Graph building: candidate pairs of hits that lie close in the learned space and pass the geometric windows.

The searches give each pair once, in any order; what stays of them is put in the contract's order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.stages.chains import in_chains
from tritrack.stages.columns import search_ranges
from tritrack.stages.compaction import LANES, append_places
from tritrack.stages.contract import check_pairs
from tritrack.stages.pair_order import group_by_first, inner_first, is_inner, sort_pairs, squared_distance
from tritrack.stages.windows import bounds, geometry, is_possible, possible_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Windows
    from tritrack.stages.windows import Bounds, Geometry

AXES_AT_ONCE = 4
"""Axes of the learned space whose part of the distances is added in one loop."""

HITS_AT_ONCE = 256
"""Hits whose neighbours a thread finds at once: an event over the limit is refused after a few of such pieces."""

FLAT_SEARCH_HITS = 20_000
"""Up to this many hits FAISS compares all of them; above, it looks into the nearest of its lists."""


def radius_graph(
    hits: NDArray[np.float32],
    embedding: NDArray[np.float32],
    *,
    radius: float,
    windows: Windows,
    max_pairs: int,
) -> NDArray[np.int32]:
    """Return every pair of hits within a radius of each other in the learned space that passes the windows.

    Hits are compared, in all dimensions, with those that can be within the radius (:mod:`tritrack.stages.columns`).

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    embedding
        float32 [n_hits, d].
    radius
        Euclidean distance in the learned space.
    windows
        Geometry that a pair must have.
    max_pairs
        The model's limit.

    Returns
    -------
    ndarray
        EDGE_INDEX, int32 [2, n_edges].

    Raises
    ------
    ContractError
        Where there are more than ``max_pairs`` pairs; found before they are put together.
    """
    if hits.shape[0] < 2:
        return np.empty((2, 0), dtype=np.int32)
    pairs = _find_all(hits, embedding, radius=radius, windows=windows, max_pairs=max_pairs)
    return _chained(hits, pairs, windows=windows)


def count_compared(embedding: NDArray[np.float32], *, radius: float) -> int:
    """Return how many pairs of hits :func:`radius_graph` compares, each once; see there for the parameters."""
    if embedding.shape[0] < 2:
        return 0
    _, first, last = search_ranges(embedding, radius=radius)
    return int(np.maximum(last - first, 0).sum())


def knn_graph(
    hits: NDArray[np.float32],
    embedding: NDArray[np.float32],
    *,
    k: int,
    radius: float,
    windows: Windows,
    max_pairs: int,
) -> NDArray[np.int32]:
    """Return the pairs of each hit with its k nearest neighbours within a radius that pass the windows, by FAISS.

    Parameters
    ----------
    hits, embedding, radius, windows, max_pairs
        As in :func:`radius_graph`.
    k
        Neighbours of a hit. A pair is kept where either hit is among the other's nearest.

    Returns
    -------
    ndarray
        EDGE_INDEX, int32 [2, n_edges].

    Raises
    ------
    ContractError
        Where there are more than ``max_pairs`` pairs.
    """
    import faiss  # here: the radius search does without

    n_hits, dim = embedding.shape
    if n_hits < 2:
        return np.empty((2, 0), dtype=np.int32)
    faiss.omp_set_num_threads(numba.get_num_threads())
    index: faiss.Index = faiss.IndexFlatL2(dim)
    if n_hits > FLAT_SEARCH_HITS:
        n_lists = int(np.sqrt(n_hits)) * 3
        index = faiss.IndexIVFFlat(index, dim, n_lists)
        index.nprobe = 16
        index.train(embedding)
    index.add(embedding)
    squared, neighbours = index.search(embedding, min(k + 1, n_hits))
    hit = np.repeat(np.arange(n_hits, dtype=np.int64), neighbours.shape[1])
    neighbour = neighbours.ravel()
    # FAISS fills with -1 where its lists hold fewer than k.
    keep = (squared.ravel() <= np.float32(radius) ** 2) & (neighbour >= 0) & (neighbour != hit)
    low, high = np.minimum(hit, neighbour)[keep], np.maximum(hit, neighbour)[keep]
    unique = np.unique(low * n_hits + high)
    pairs = np.stack(np.divmod(unique, n_hits)).astype(np.int32)
    pairs = pairs[:, possible_pairs(hits, pairs, windows=windows)]
    check_pairs(pairs.shape[1], max_pairs=max_pairs)
    return _chained(hits, inner_first(hits, pairs), windows=windows)


def _chained(hits: NDArray[np.float32], pairs: NDArray[np.int32], *, windows: Windows) -> NDArray[np.int32]:
    """Return the pairs, inner hit first, that are on chains, in the contract's order."""
    n_hits = hits.shape[0]
    if windows.min_chain > 1:
        # Before they are sorted: few stay.
        pairs = group_by_first(pairs, n_hits)
        pairs = pairs.take(np.flatnonzero(in_chains(hits, pairs, windows=windows)), axis=1)
    return sort_pairs(pairs, n_hits)


def _find_all(
    hits: NDArray[np.float32],
    embedding: NDArray[np.float32],
    *,
    radius: float,
    windows: Windows,
    max_pairs: int,
) -> NDArray[np.int32]:
    """Return the pairs within the radius that pass the windows, inner hit first; see :func:`radius_graph`."""
    n_hits = hits.shape[0]
    order, first, last = search_ranges(embedding, radius=radius)
    # Zeros change no distance.
    wide = np.pad(embedding, ((0, 0), (0, -embedding.shape[1] % AXES_AT_ONCE)))
    points = np.ascontiguousarray(wide[order].T)
    distance, place, limits = squared_distance(hits)[order], geometry(hits[order]), bounds(windows)
    squared_radius = np.float32(radius) * np.float32(radius)

    def search(begin: int) -> NDArray[np.int32]:
        end = min(begin + HITS_AT_ONCE, n_hits)
        return _neighbours(
            *(points, first, last, squared_radius, place, limits, distance, order), begin, end, max_pairs
        )

    found: list[NDArray[np.int32]] = []
    with ThreadPoolExecutor(numba.get_num_threads()) as threads:
        n_pairs = 0
        for piece in threads.map(search, range(0, n_hits, HITS_AT_ONCE)):
            found.append(piece)
            n_pairs += piece.shape[1]
            if n_pairs > max_pairs:
                threads.shutdown(cancel_futures=True)
                break
    check_pairs(n_pairs, max_pairs=max_pairs)
    return np.concatenate(found, axis=1)


@numba.njit(cache=True, nogil=True)
def _neighbours(
    points: NDArray[np.float32],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    squared_radius: np.float32,
    place: Geometry,
    limits: Bounds,
    distance: NDArray[np.float64],
    order: NDArray[np.int32],
    begin: int,
    end: int,
    max_pairs: int,
) -> NDArray[np.int32]:
    """Return the pairs of sorted hits ``begin`` to ``end`` with those in their ranges, inner hit first.

    The hit with which they are more than ``max_pairs`` is the last.
    """
    most = np.maximum(last[:, begin:end] - first[:, begin:end], 0).sum(axis=0).max()
    squared = np.empty(most + LANES, dtype=np.float32)
    near = np.empty(most, dtype=np.int32)
    possible = np.empty(most, dtype=np.bool_)
    found = np.empty((2, 64 * (end - begin) + most), dtype=np.int32)
    count = 0
    for hit in range(begin, end):
        n_near = 0
        for i in range(first.shape[0]):
            start, n = first[i, hit], max(last[i, hit] - first[i, hit], 0)
            # One loop for some axes: it compiles to vectors.
            for there in range(n):
                squared[there] = np.float32(0.0)
            for axis in range(0, points.shape[0], AXES_AT_ONCE):
                a, b, c, d = axis, axis + 1, axis + 2, axis + 3
                along_a, along_b = points[a, start : start + n], points[b, start : start + n]
                along_c, along_d = points[c, start : start + n], points[d, start : start + n]
                at_a, at_b, at_c, at_d = points[a, hit], points[b, hit], points[c, hit], points[d, hit]
                for there in range(n):
                    da, db = along_a[there] - at_a, along_b[there] - at_b
                    dc, dd = along_c[there] - at_c, along_d[there] - at_d
                    squared[there] = squared[there] + da * da + db * db + dc * dc + dd * dd
            n_near = append_places(squared, n, squared_radius, start, near, n_near)
        for i in range(n_near):
            possible[i] = is_possible(place, hit, near[i], limits)
        # No branch on what stays: it could not be foreseen.
        n_pairs = 0
        for i in range(n_near):
            near[n_pairs] = near[i]
            n_pairs += possible[i]
        if count + n_pairs > found.shape[1]:
            more = np.empty((2, 2 * found.shape[1] + n_pairs), dtype=np.int32)
            more[:, :count] = found[:, :count]
            found = more
        for other in near[:n_pairs]:
            a, b = order[hit], order[other]
            inner = is_inner(distance[hit], a, distance[other], b)
            found[0, count] = a if inner else b
            found[1, count] = b if inner else a
            count += 1
        if count > max_pairs:
            break
    return found[:, :count].copy()
