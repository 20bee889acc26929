"""Graph building: candidate pairs of hits that lie close in the learned space and pass the geometric windows.

The searches give each pair once, in any order; what stays of them is put in the contract's order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.stages.chains import in_chains
from tritrack.stages.contract import check_pairs
from tritrack.stages.pair_order import inner_first, sort_pairs
from tritrack.stages.windows import bounds, geometry, is_possible, possible_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Windows
    from tritrack.stages.windows import Bounds, Geometry

N_AXES = 3
"""Principal axes of the cells: the learned space is nearly flat, so three hold most of its spread."""

SLICES = 4
"""Parts of a cell along the last axis: fewer hits lie within whole ones than within three cells."""

MAX_CELLS = 1 << 20
"""Cells along one axis: three axes, one of them in slices, still fit an int64."""

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

    Hits are sorted into cells of the radius along the first three principal axes of the embedding, and
    only neighbouring cells are compared, in all dimensions. A projection never lengthens a distance, so
    no pair is missed.

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
    by_cell, first, last = _search(embedding, radius=radius)
    points = np.ascontiguousarray(embedding[by_cell].T)
    squared = np.float32(radius) * np.float32(radius)
    pairs = _find_all(
        points, geometry(hits[by_cell]), first, last, squared, bounds(windows), by_cell, max_pairs=max_pairs
    )
    return _chained(hits, pairs, windows=windows)


def count_compared(embedding: NDArray[np.float32], *, radius: float) -> int:
    """Return how many pairs of hits :func:`radius_graph` compares, each once; see there for the parameters."""
    if embedding.shape[0] < 2:
        return 0
    _, first, last = _search(embedding, radius=radius)
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
    return _chained(hits, pairs, windows=windows)


def _chained(hits: NDArray[np.float32], pairs: NDArray[np.int32], *, windows: Windows) -> NDArray[np.int32]:
    """Return the pairs that are on chains, in the contract's order."""
    pairs = inner_first(hits, pairs)
    if windows.min_chain > 1:
        # Before they are sorted: few stay.
        pairs = pairs.take(np.flatnonzero(in_chains(hits, pairs, windows=windows)), axis=1)
    return sort_pairs(pairs, hits.shape[0])


def _search(
    embedding: NDArray[np.float32], *, radius: float
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the hits sorted by cell, int32 [n_hits], and the ranges of :func:`_search_ranges`."""
    cells, shape = _cells(embedding, radius=radius)
    keys = (cells[:, 0] * shape[1] + cells[:, 1]) * shape[2] + cells[:, 2]
    by_cell = np.argsort(keys, kind="stable")
    return by_cell.astype(np.int32), *_search_ranges(keys[by_cell], shape)


def _cells(embedding: NDArray[np.float32], *, radius: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cell of each hit along the principal axes, int64 [n_hits, 3], and the cells per axis."""
    centred = embedding.astype(np.float64)
    centred -= centred.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    along = centred @ axes[:, ::-1][:, :N_AXES]
    along -= along.min(axis=0)
    # A hair over the radius: rounding in the projection must not push a neighbour two cells away. Larger
    # cells only cost time; they keep the number of cells countable when a few hits lie far away.
    size = np.maximum(radius * 1.0001, along.max(axis=0) / MAX_CELLS)
    size[N_AXES - 1 :] /= SLICES
    cells = np.floor(along / size).astype(np.int64)
    if cells.shape[1] < N_AXES:
        cells = np.pad(cells, ((0, 0), (0, N_AXES - cells.shape[1])))
    return cells, cells.max(axis=0) + 1


def _search_ranges(
    keys: NDArray[np.int64], shape: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted positions that each hit is compared with, as ranges int64 [5, n_hits].

    Along the last axis the cells within the radius are one contiguous range. Of the nine such columns a
    pair of cells is visited from one side only: the own column from the hit onwards, and four others.
    """
    n_hits = keys.size
    last_cell = keys % shape[2]
    column = keys // shape[2]
    x, y = column // shape[1], column % shape[1]
    first = np.empty((5, n_hits), dtype=np.int64)
    last = np.empty((5, n_hits), dtype=np.int64)
    low, high = np.maximum(last_cell - SLICES, 0), np.minimum(last_cell + SLICES, shape[2] - 1)
    for row, (dx, dy) in enumerate([(0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]):
        inside = (x + dx < shape[0]) & (y + dy >= 0) & (y + dy < shape[1])
        base = ((x + dx) * shape[1] + y + dy) * shape[2]
        first[row] = np.where(inside, np.searchsorted(keys, base + low, side="left"), 0)
        last[row] = np.where(inside, np.searchsorted(keys, base + high, side="right"), 0)
    first[0] = np.arange(1, n_hits + 1)
    return first, last


def _find_all(
    points: NDArray[np.float32],
    place: Geometry,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    squared_radius: np.float32,
    limits: Bounds,
    by_cell: NDArray[np.int32],
    *,
    max_pairs: int,
) -> NDArray[np.int32]:
    """Return the pairs of hits, int32 [2, n_pairs] (raises ContractError over ``max_pairs``)."""
    n_hits = points.shape[1]
    found: list[NDArray[np.int32]] = []
    counts = np.zeros(n_hits, dtype=np.int64)
    # Zeros change no distance.
    points = np.pad(points, ((0, -points.shape[0] % AXES_AT_ONCE), (0, 0)))

    def search(begin: int) -> NDArray[np.int32]:
        end = min(begin + HITS_AT_ONCE, n_hits)
        return _neighbours(
            points, place, first, last, squared_radius, limits, by_cell, begin, end, max_pairs, counts
        )

    with ThreadPoolExecutor(numba.get_num_threads()) as threads:
        n_pairs = 0
        for piece in threads.map(search, range(0, n_hits, HITS_AT_ONCE)):
            found.append(piece)
            n_pairs += piece.size
            if n_pairs > max_pairs:
                threads.shutdown(cancel_futures=True)
                break
    check_pairs(n_pairs, max_pairs=max_pairs)
    pairs = np.empty((2, n_pairs), dtype=np.int32)
    pairs[0] = np.repeat(by_cell, counts)
    np.concatenate(found, out=pairs[1])
    return pairs


@numba.njit(cache=True, nogil=True)
def _neighbours(
    points: NDArray[np.float32],
    place: Geometry,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    squared_radius: np.float32,
    limits: Bounds,
    by_cell: NDArray[np.int32],
    begin: int,
    end: int,
    max_pairs: int,
    counts: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Return the neighbours of hits ``begin`` to ``end`` in their ranges, one hit after the other, and count them.

    The hit with which they are more than ``max_pairs`` is the last.
    """
    longest = 0
    for hit in range(begin, end):
        for row in range(first.shape[0]):
            longest = max(longest, last[row, hit] - first[row, hit])
    squared = np.empty(longest, dtype=np.float32)
    near = np.empty(longest, dtype=np.int64)
    found = np.empty(64 * (end - begin) + longest, dtype=np.int32)
    count = 0
    for hit in range(begin, end):
        before = count
        for row in range(first.shape[0]):
            start = first[row, hit]
            n = max(last[row, hit] - start, 0)
            if count + n > found.size:
                more = np.empty(2 * found.size + n, dtype=np.int32)
                more[:count] = found[:count]
                found = more
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
            # No branch on what is near: it could not be foreseen.
            n_near = 0
            for there in range(n):
                near[n_near] = start + there
                n_near += squared[there] <= squared_radius
            for other in near[:n_near]:
                found[count] = by_cell[other]
                count += is_possible(place, hit, other, limits)
        counts[hit] = count - before
        if count > max_pairs:
            break
    return found[:count].copy()
