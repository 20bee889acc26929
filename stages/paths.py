"""Paths of links, and joins of groups of hits, that both sides choose: compiled, the fits for many threads.

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

AT_ONCE = 1 << 22
"""Steps that are weighed at once."""

MOST_JOINS = 32
"""Times that groups choose each other, the same group at most once each time: no track has more parts."""

_UNKNOWN, _FITS, _DOES_NOT = 0, 1, 2


def mutual_paths(low: Ints, high: Ints, gain: Floats, points: Floats) -> Ints:
    """Return paths of links that both of their hits choose; all hits are given by rank from the inside.

    The gain of a path is the sum of its links' gains, and half of the gain of each link that skips one of its hits,
    where there is one. Every step of a path has a positive gain of its own, and its three hits are on one helix. A hit
    chooses the best path over it (of several the one with the first link that ends there, then the first that follows).

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
    return _choose_links(low, high, gain, *_steps(low, high, gain, points), points.shape[0])


def _steps(low: Ints, high: Ints, gain: Floats, points: Floats) -> tuple[Ints, Ints, Floats]:
    """Return the steps that may be taken, by link: a link, the one before it, and what the step gains."""
    ends_at = np.searchsorted(high, np.arange(points.shape[0] + 1))
    # Step s of a link follows the link ends_at[low] + s.
    begins = np.concatenate([[0], np.cumsum(ends_at[low + 1] - ends_at[low])])
    none = np.empty(0, dtype=np.int64)
    found = [(none, none, np.empty(0, dtype=np.float64))]
    first = 0
    # In turns: a hit of many links has the square of their number of steps, few of which may be taken.
    while first < low.size:
        last = max(int(np.searchsorted(begins, begins[first] + AT_ONCE, side="right")) - 1, first + 1)
        gained = _weigh_steps(low, high, gain, ends_at, begins, points, first, last)
        step = np.flatnonzero(gained)
        link = np.searchsorted(begins, step + begins[first], side="right") - 1
        found.append((link, ends_at[low[link]] + step + begins[first] - begins[link], gained[step]))
        first = last
    links, before, gains = (np.concatenate(part) for part in zip(*found, strict=True))
    return links, before, gains


@numba.njit(cache=True, parallel=True, nogil=True)
def _weigh_steps(
    low: Ints, high: Ints, gain: Floats, ends_at: Ints, begins: Ints, points: Floats, first: int, last: int
) -> Floats:
    """Return what each step of some links gains; 0 where it may not be taken."""
    steps = np.zeros(begins[last] - begins[first], dtype=np.float64)
    for link in numba.prange(first, last):
        three = np.empty((3, points.shape[1]), dtype=np.float64)
        three[1], three[2] = points[low[link]], points[high[link]]
        skipping, end = ends_at[high[link]], ends_at[high[link] + 1]
        for before in range(ends_at[low[link]], ends_at[low[link] + 1]):
            while skipping < end and low[skipping] < low[before]:
                skipping += 1
            there = skipping < end and low[skipping] == low[before]
            gained = gain[link] + 0.5 * (gain[skipping] if there else 0.0)
            three[0] = points[low[before]]
            if gained > 0.0 and is_one_helix(three):
                steps[begins[link] - begins[first] + before - ends_at[low[link]]] = gained
    return steps


@numba.njit(cache=True, nogil=True)
def _choose_links(
    low: Ints, high: Ints, gain: Floats, link: Ints, before: Ints, gained: Floats, n_hits: int
) -> Ints:
    n_links = low.size
    path = np.maximum(gain, 0.0)  # best that ends with the link
    for step in range(link.size):
        if path[before[step]] > 0.0:
            path[link[step]] = max(path[link[step]], path[before[step]] + gained[step])
    rest = np.zeros(n_links, dtype=np.float64)  # best that goes on from the link
    for step in range(link.size - 1, -1, -1):
        rest[before[step]] = max(rest[before[step]], rest[link[step]] + gained[step])
    over = np.where(path > 0.0, path + rest, 0.0)
    follows = np.full(n_links, -1, dtype=np.int64)  # the next link of that path
    for step in range(link.size):
        one = before[step]
        if follows[one] < 0 and over[one] > 0.0 and path[one] + gained[step] + rest[link[step]] == over[one]:
            follows[one] = link[step]
    best = np.zeros(n_hits, dtype=np.float64)
    for one in range(n_links):
        for hit in (low[one], high[one]):
            best[hit] = max(best[hit], over[one])
    into = np.full(n_hits, -1, dtype=np.int64)
    out = np.full(n_hits, -1, dtype=np.int64)
    for one in range(n_links):
        if over[one] > 0.0 and over[one] == best[high[one]] and into[high[one]] < 0:
            into[high[one]] = one
        if over[one] > 0.0 and over[one] == best[low[one]] and out[low[one]] < 0:
            out[low[one]] = one
    for hit in range(n_hits):
        if into[hit] >= 0:
            out[hit] = follows[into[hit]]
    first = np.arange(n_hits)
    for hit in range(n_hits):
        one = into[hit]
        if one >= 0 and out[low[one]] == one:
            first[hit] = first[low[one]]
    return first


def join_mutually(points: Floats, group: Ints, low: Ints, high: Ints, score: Floats) -> Ints:
    """Join groups of hits that are each other's best partners, up to 32 times.

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
    for _ in range(MOST_JOINS):
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
            break
        _merge(*lists, one[chosen], other[chosen])
        into = np.arange(n_groups)
        into[other[chosen]] = one[chosen]
        changed = np.zeros(n_groups, dtype=np.bool_)
        changed[one[chosen]] = True
        joined, one, other = into[joined], into[one], into[other]
        one, other = np.minimum(one, other), np.maximum(one, other)
        state[changed[one] | changed[other]] = _UNKNOWN
    return joined[group]


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
