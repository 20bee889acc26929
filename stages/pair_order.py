"""Orders of pairs of hits: the inner hit first, the pairs of a hit together, the contract's.

By counting, in linear time and in threads: a dense event has millions of candidate pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hits = NDArray[np.float32]
    Pairs = NDArray[np.int32]


def group(keys: NDArray[np.int32], n_keys: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sort by a key, equal ones in their order.

    Parameters
    ----------
    keys
        int32 [n], each from 0 to ``n_keys`` - 1.
    n_keys
        Number of keys that there can be.

    Returns
    -------
    tuple of ndarray
        int64 [n_keys + 1] and int32 [n]: the positions with key k are ``order[starts[k]:starts[k + 1]]``.
    """
    # A part counts each key: where there are few pairs for a key, more parts cost more than they save.
    n_parts = max(1, min(numba.get_num_threads(), keys.size // max(n_keys, 1)))
    order = np.empty(keys.size, dtype=np.int32)
    return _count_out(keys, np.zeros((n_parts, n_keys), dtype=np.int64), order), order


def inner_first(hits: Hits, pairs: NDArray[np.integer[Any]]) -> Pairs:
    """Put the inner hit of each pair first.

    Inner is the hit at the smaller distance from the origin; ties go to the lower index.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    pairs
        Integers [2, n_pairs], either way round.

    Returns
    -------
    ndarray
        int32 [2, n_pairs], in the same order.
    """
    turned = np.empty(pairs.shape, dtype=np.int32)
    _turn(squared_distance(hits), pairs, turned)
    return turned


def squared_distance(hits: Hits) -> NDArray[np.float64]:
    """Return the hits' squared distances from the origin, float64 [n_hits], mm^2, whatever else they measure."""
    squares: NDArray[np.float64] = np.square(hits[:, :3].astype(np.float64)).sum(axis=1)
    return squares


@numba.njit(cache=True, nogil=True, inline="always")
def is_inner(distance_a: float, a: int, distance_b: float, b: int) -> bool:
    """Tell whether hit a, not b, is the inner one, by what :func:`squared_distance` gives for them."""
    return bool((distance_a < distance_b) | ((distance_a == distance_b) & (a < b)))


def group_by_first(pairs: Pairs, n_hits: int) -> Pairs:
    """Put the pairs, int32 [2, n_pairs], of each first hit together, by its index, and else in their order."""
    starts, order = group(pairs[0], n_hits)
    return _grouped(starts, pairs[1], order)


def sort_pairs(pairs: Pairs, n_hits: int) -> Pairs:
    """Sort pairs, int32 [2, n_pairs], by the first hit and then by the second."""
    first, second = pairs
    by_second = group(second, n_hits)[1]
    starts, by_first = group(first[by_second], n_hits)
    return _grouped(starts, second, by_second[by_first])


def orient_pairs(hits: Hits, pairs: NDArray[np.integer[Any]]) -> Pairs:
    """Put pairs in the contract's order: inner hit first, sorted by (inner, outer); see :func:`inner_first`."""
    return sort_pairs(inner_first(hits, pairs), hits.shape[0])


def _grouped(starts: NDArray[np.int64], second: NDArray[np.int32], order: NDArray[np.int32]) -> Pairs:
    """Return the first hits, from where the pairs of each start, and the second ones in an order."""
    pairs = np.empty((2, order.size), dtype=np.int32)
    _fill(starts, second, order, pairs)
    return pairs


@numba.njit(cache=True, parallel=True, nogil=True)
def _fill(
    starts: NDArray[np.int64], second: NDArray[np.int32], order: NDArray[np.int32], pairs: Pairs
) -> None:
    for hit in numba.prange(starts.size - 1):
        for place in range(starts[hit], starts[hit + 1]):
            pairs[0, place] = hit
            pairs[1, place] = second[order[place]]


@numba.njit(cache=True, parallel=True, nogil=True)
def _turn(distance: NDArray[np.float64], pairs: NDArray[np.integer[Any]], turned: Pairs) -> None:
    """Put the hit of each pair that is nearer to the origin first; ties go to the lower index."""
    for pair in numba.prange(pairs.shape[1]):
        a, b = pairs[0, pair], pairs[1, pair]
        if is_inner(distance[b], b, distance[a], a):
            a, b = b, a
        turned[0, pair], turned[1, pair] = a, b


@numba.njit(cache=True, parallel=True, nogil=True)
def _count_out(
    keys: NDArray[np.int32], places: NDArray[np.int64], order: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Fill the order of :func:`group` and return the starts; zeros [n_parts, n_keys]: room for the parts to count in."""
    n_parts, n_keys = places.shape
    part_size = -(-keys.size // n_parts)
    for part in numba.prange(n_parts):
        for i in range(part * part_size, min((part + 1) * part_size, keys.size)):
            places[part, keys[i]] += 1
    starts = np.empty(n_keys + 1, dtype=np.int64)
    at = 0
    for key in range(n_keys):
        starts[key] = at
        for part in range(n_parts):
            count = places[part, key]
            places[part, key] = at
            at += count
    starts[n_keys] = at
    for part in numba.prange(n_parts):
        for i in range(part * part_size, min((part + 1) * part_size, keys.size)):
            order[places[part, keys[i]]] = i
            places[part, keys[i]] += 1
    return starts
