"""Paths of links, and joins of groups of hits, that both sides choose: compiled, and every step is one for many threads.

Numba keeps compiled code by the file that it is in: after a change of `helix.py`, remove `stages/__pycache__`, or
what is compiled here goes on with the functions of before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.stages.helix import MIN_HELIX_HITS, is_one_helix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.helix import Floats

    Ints = NDArray[np.int64]
    States = NDArray[np.int8]

_UNKNOWN, _FITS, _DOES_NOT = 0, 1, 2


def mutual_paths(low: Ints, high: Ints, gain: Floats, points: Floats) -> Ints:
    """Return paths of links that both of their hits choose; all hits are given by rank from the inside.

    The gain of a path is the sum of its links' gains, and half of the gain of each link that skips one of its hits,
    where there is one. Every step of a path has a positive gain of its own, and its three hits are on one helix. A hit
    chooses, of the links to hits further in and of those to hits further out, the one with the best path over it.

    Parameters
    ----------
    low, high
        int64 [n_links], low < high, each pair once, sorted by (high, low).
    gain
        float64 [n_links], multiples of a power of two, so that sums are exact.
    points
        float64 [n_hits, 5], of :func:`tritrack.stages.helix.measured`.

    Returns
    -------
    ndarray
        int64 [n_hits], the innermost hit of each hit's path.
    """
    n_hits = points.shape[0]
    ends_at = np.searchsorted(high, np.arange(n_hits + 1))
    # Step s of a link follows the link ends_at[low] + s.
    begins = np.concatenate([[0], np.cumsum(ends_at[low + 1] - ends_at[low])])
    steps = _weigh_steps(low, high, gain, ends_at, begins, points)
    return _choose_links(low, high, gain, ends_at, begins, steps)


@numba.njit(cache=True, parallel=True, nogil=True)
def _weigh_steps(low: Ints, high: Ints, gain: Floats, ends_at: Ints, begins: Ints, points: Floats) -> Floats:
    """Return what each step gains; 0 where it may not be taken."""
    steps = np.zeros(begins[-1], dtype=np.float64)
    for link in numba.prange(low.size):
        three = np.empty((3, points.shape[1]), dtype=np.float64)
        three[1], three[2] = points[low[link]], points[high[link]]
        skipping, end = ends_at[high[link]], ends_at[high[link] + 1]
        for step in range(begins[link], begins[link + 1]):
            before = ends_at[low[link]] + step - begins[link]
            while skipping < end and low[skipping] < low[before]:
                skipping += 1
            there = skipping < end and low[skipping] == low[before]
            gained = gain[link] + 0.5 * (gain[skipping] if there else 0.0)
            three[0] = points[low[before]]
            if gained > 0.0 and is_one_helix(three):
                steps[step] = gained
    return steps


@numba.njit(cache=True, nogil=True)
def _choose_links(low: Ints, high: Ints, gain: Floats, ends_at: Ints, begins: Ints, steps: Floats) -> Ints:
    n_links, n_hits = low.size, ends_at.size - 1
    path = np.maximum(gain, 0.0)  # best that ends with the link
    for link in range(n_links):
        for step in range(begins[link], begins[link + 1]):
            before = ends_at[low[link]] + step - begins[link]
            if steps[step] > 0.0 and path[before] > 0.0:
                path[link] = max(path[link], path[before] + steps[step])
    rest = np.zeros(n_links, dtype=np.float64)  # best that goes on from the link
    for link in range(n_links - 1, -1, -1):
        for step in range(begins[link], begins[link + 1]):
            before = ends_at[low[link]] + step - begins[link]
            if steps[step] > 0.0:
                rest[before] = max(rest[before], rest[link] + steps[step])
    into = np.full(n_hits, -1, dtype=np.int64)
    out = np.full(n_hits, -1, dtype=np.int64)
    for link in range(n_links):
        over = path[link] + rest[link] if path[link] > 0.0 else 0.0
        for hit, chosen in ((high[link], into), (low[link], out)):
            best = chosen[hit]
            if over > (path[best] + rest[best] if best >= 0 else 0.0):
                chosen[hit] = link
    first = np.arange(n_hits)
    for hit in range(n_hits):
        link = into[hit]
        if link >= 0 and out[low[link]] == link:
            first[hit] = first[low[link]]
    return first


def join_mutually(points: Floats, group: Ints, low: Ints, high: Ints, score: Floats) -> Ints:
    """Join groups of hits that are each other's best partners, again and again.

    Of the groups that a group has links to, and that one helix fits together with it, the one with the largest sum
    of scores is its best partner (of several the first pair). One of the two has four hits or more.

    Parameters
    ----------
    points
        float64 [n_hits, 5], of :func:`tritrack.stages.helix.measured`, from the inside outwards.
    group
        int64 [n_hits], each hit's group, numbered from 0 by first hit.
    low, high, score
        Links, int64 [n_links], and their scores, float64 [n_links], multiples of a power of two.

    Returns
    -------
    ndarray
        int64 [n_hits], each hit's group after all joins.
    """
    n_groups = int(group.max(initial=-1)) + 1
    lists = _lists_of(group, n_groups)
    one, other = np.minimum(group[low], group[high]), np.maximum(group[low], group[high])
    state = np.full(low.size, _UNKNOWN, dtype=np.int8)
    joined = np.arange(n_groups)
    while True:
        one, other, score, state = _each_pair_once(one, other, score, state)
        _test_pairs(points, *lists, one, other, state)
        fits = np.flatnonzero(state == _FITS)
        order = fits[np.lexsort((other[fits], one[fits], -score[fits]))]
        best = np.full(n_groups, order.size)
        place = np.arange(order.size)
        for side in (one, other):
            np.minimum.at(best, side[order], place)
        chosen = order[(best[one[order]] == place) & (best[other[order]] == place)]
        if not chosen.size:
            return joined[group]
        _merge(*lists, one[chosen], other[chosen])
        into = np.arange(n_groups)
        into[other[chosen]] = one[chosen]
        changed = np.zeros(n_groups, dtype=np.bool_)
        changed[one[chosen]] = True
        joined, one, other = into[joined], into[one], into[other]
        one, other = np.minimum(one, other), np.maximum(one, other)
        state[changed[one] | changed[other]] = _UNKNOWN


def _each_pair_once(
    one: Ints, other: Ints, score: Floats, state: States
) -> tuple[Ints, Ints, Floats, States]:
    """Add up the scores of each pair of groups; what one group has with itself is left out."""
    apart = one != other
    one, other, score, state = one[apart], other[apart], score[apart], state[apart]
    _, first, number = np.unique(
        one * (other.max(initial=0) + 1) + other, return_index=True, return_inverse=True
    )
    total: Floats = np.bincount(number, weights=score, minlength=first.size).astype(np.float64)
    # What is there more than once has changed: its states are the same.
    return one[first], other[first], total, state[first]


@numba.njit(cache=True, nogil=True)
def _lists_of(group: Ints, n_groups: int) -> tuple[Ints, Ints, Ints]:
    """Return the first hit of each group, the hit after each hit in its group (-1 after the last), and the groups' sizes."""
    head = np.full(n_groups, -1, dtype=np.int64)
    after = np.full(group.size, -1, dtype=np.int64)
    size = np.zeros(n_groups, dtype=np.int64)
    for hit in range(group.size - 1, -1, -1):
        after[hit] = head[group[hit]]
        head[group[hit]] = hit
        size[group[hit]] += 1
    return head, after, size


@numba.njit(cache=True, parallel=True, nogil=True)
def _test_pairs(
    points: Floats, head: Ints, after: Ints, size: Ints, one: Ints, other: Ints, state: States
) -> None:
    """Find out which pairs of groups one helix fits, where that is not known."""
    for pair in numba.prange(one.size):
        a, b = one[pair], other[pair]
        if state[pair] == _UNKNOWN and max(size[a], size[b]) >= MIN_HELIX_HITS:
            hits = _merged(head[a], head[b], after, size[a] + size[b])
            state[pair] = _FITS if is_one_helix(points[hits]) else _DOES_NOT


@numba.njit(cache=True, nogil=True)
def _merge(head: Ints, after: Ints, size: Ints, one: Ints, other: Ints) -> None:
    for pair in range(one.size):
        a, b = one[pair], other[pair]
        hits = _merged(head[a], head[b], after, size[a] + size[b])
        head[a], size[a] = hits[0], hits.size
        after[hits[:-1]] = hits[1:]


@numba.njit(cache=True, nogil=True)
def _merged(a: int, b: int, after: Ints, n: int) -> Ints:
    """Return the n hits of two lists in order; they begin with hits a and b, and ``after`` tells which hit comes next."""
    hits = np.empty(n, dtype=np.int64)
    for place in range(n):
        if b < 0 or (0 <= a < b):
            hits[place] = a
            a = after[a]
        else:
            hits[place] = b
            b = after[b]
    return hits
