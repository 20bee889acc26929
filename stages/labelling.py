"""Labelling: scored edges become tracks."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numba
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK
from tritrack.stages.helix import drop_strays, measured
from tritrack.stages.pair_order import squared_distance
from tritrack.stages.paths import join_mutually, mutual_paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tritrack.stages.card import LabellingMethod

    Labelling = Callable[..., NDArray[np.int64]]


SCORE_STEPS = np.float32(1024)

# Of `helix`, chosen on simulated events of pile-up 40 and 200.
SURE = 0.99
JOINING_LINK = 0.005


def components(
    hits: NDArray[np.float32], edge_index: NDArray[np.int32], edge_score: NDArray[np.float32], *, cut: float
) -> NDArray[np.int64]:
    """Label the connected components of the edges whose score reaches the cut.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    edge_index
        int32 [2, n_edges], inner hit first.
    edge_score
        float32 [n_edges].
    cut
        Lowest score that joins two hits.

    Returns
    -------
    ndarray
        TRACK_LABEL, int64 [n_hits].
    """
    inner, outer = edge_index[:, edge_score >= np.float32(cut)]
    return number_tracks(_component_of(hits.shape[0], inner, outer))


def walkthrough(
    hits: NDArray[np.float32], edge_index: NDArray[np.int32], edge_score: NDArray[np.float32], *, cut: float
) -> NDArray[np.int64]:
    """Label paths: each component is split at its branches into its best paths from inside to outside.

    The path with the largest sum of scores becomes a track, its hits are taken out, and what is left is
    searched again. (The idea of a walk from hit to hit along the best edges is that of the Exa.TrkX chain,
    arXiv:2103.06995; the paths here are optimal because edges only lead outwards.) Scores count in steps of
    1/1024, see :func:`round_scores`.

    Parameters and return value are those of :func:`components`.
    """
    keep = edge_score >= np.float32(cut)
    inner, outer = edge_index[:, keep]
    # Hits by their rank from the inside. Equal sums of scores are then settled by distance, not by index.
    distance = squared_distance(hits)
    order = np.argsort(distance, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    # Whatever way round a pair came.
    low, high = np.minimum(rank[inner], rank[outer]), np.maximum(rank[inner], rank[outer])
    by_outer, by_inner = np.lexsort((low, high)), np.argsort(low, kind="stable")
    ranks = np.arange(order.size + 1)
    tracks = _best_paths(
        low[by_outer],
        round_scores(edge_score[keep])[by_outer],
        np.searchsorted(high[by_outer], ranks),
        high[by_inner],
        np.searchsorted(low[by_inner], ranks),
    )
    labels = np.empty_like(tracks)
    labels[order] = tracks
    return number_tracks(labels)


def helix(
    hits: NDArray[np.float32], edge_index: NDArray[np.int32], edge_score: NDArray[np.float32], *, cut: float
) -> NDArray[np.int64]:
    """Label paths of likely links whose hits lie on one helix.

    1. Paths of links that both of their hits choose: the links of the path with the largest sum of log-odds above
       those of the cut, in which links that skip a hit of the path count too, and only along helices
       (:func:`tritrack.stages.paths.mutual_paths`).
    2. Of each path the hits that lie on one helix stay, and the others are free again; four is the least
       (:func:`tritrack.stages.helix.on_one_helix`).
    3. Tracks and free hits that a link of some score joins, and one helix fits, become one track where each is the
       other's best partner; again and again (:func:`tritrack.stages.paths.join_mutually`).

    Parameters and return value are those of :func:`components`.
    """
    rank = _ranks(hits)
    points = np.empty((rank.size, 5), dtype=np.float64)
    points[rank] = measured(hits)
    counted = edge_score >= min(JOINING_LINK, cut)
    low, high, score = _links(rank, edge_index[:, counted], edge_score[counted])
    likely = score >= cut
    gain = log_odds(score[likely]) - log_odds(np.array(cut))
    tracks = number_tracks(mutual_paths(low[likely], high[likely], gain, points))
    members = np.argsort(tracks, kind="stable")
    starts = np.searchsorted(tracks[members], np.arange(tracks.max(initial=NO_TRACK) + 2))
    keep = tracks >= 0
    drop_strays(points, members, starts, keep)
    tracks[~keep] = NO_TRACK
    group = number_groups(number_tracks(tracks))
    tried = score >= JOINING_LINK
    return number_tracks(join_mutually(points, group, low[tried], high[tried], score[tried])[rank])


def _ranks(hits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rank hits from the inside; equal distances are settled by position, not by index."""
    distance = squared_distance(hits)
    order = np.argsort(distance, kind="stable")
    ahead = np.flatnonzero(distance[order[1:]] == distance[order[:-1]])
    if ahead.size:  # few, and four keys take four times as long
        tied = np.union1d(ahead, ahead + 1)
        some = order[tied]
        order[tied] = some[np.lexsort((*hits[some, 2::-1].T, distance[some]))]
    rank = np.empty(distance.size, dtype=np.int64)
    rank[order] = np.arange(distance.size)
    return rank


def _links(
    rank: NDArray[np.int64], edge_index: NDArray[np.int32], edge_score: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return edges by rank, each once, sorted by (outer, inner), with rounded scores."""
    one, other = rank[edge_index]
    apart = one != other
    one, other = one[apart], other[apart]
    key = np.maximum(one, other) * rank.size + np.minimum(one, other)
    order = np.argsort(key, kind="stable")
    key, score = key[order], round_scores(edge_score[apart]).astype(np.float64)[order]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if key.size else np.empty(0, dtype=np.int64)
    high, low = np.divmod(key[starts], max(rank.size, 1))
    return low, high, np.maximum.reduceat(score, starts) if starts.size else score


def log_odds(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """In steps of 1/256, so that sums are exact; within what a score can be trusted to say."""
    score = np.clip(score, 1.0 - SURE, SURE)
    steps: NDArray[np.float64] = np.rint(np.log(score / (1.0 - score)) * 256.0) / 256.0
    return steps


def number_groups(tracks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each track, and for each hit on none, from 0 by first hit; int64 [n_hits]."""
    alone = np.where(tracks < 0, tracks.size + np.arange(tracks.size), tracks)
    _, first, group = np.unique(alone, return_index=True, return_inverse=True)
    number: NDArray[np.int64] = np.argsort(np.argsort(first))[group]
    return number


def round_scores(edge_score: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round scores to steps of 1/1024, at least one step.

    Two particles can leave hits at one place, with the same scores but for the last digits: which of them a
    path takes must not depend on the engine's rounding. Sums of such steps are exact, too.
    """
    rounded: NDArray[np.float32] = np.maximum(np.rint(edge_score * SCORE_STEPS), 1) / SCORE_STEPS
    return rounded


LABELLINGS: dict[LabellingMethod, Labelling] = {
    "components": components,
    "walkthrough": walkthrough,
    "helix": helix,
}
"""The labellings by the name that a model card gives them."""


def number_tracks(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn arbitrary group numbers into track labels.

    Parameters
    ----------
    group
        int64 [n_hits], a number per group; negative for hits in none.

    Returns
    -------
    ndarray
        int64 [n_hits]: -1 for groups of fewer than three hits, else numbered from 0 by first hit.
    """
    labels = np.full(group.size, NO_TRACK, dtype=np.int64)
    _, first, inverse, counts = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    is_track = (counts >= MIN_TRACK_HITS) & (group[first] >= 0)
    number = np.full(first.size, NO_TRACK, dtype=np.int64)
    tracks = np.flatnonzero(is_track)
    number[tracks[np.argsort(first[tracks])]] = np.arange(tracks.size)
    labels[:] = number[inverse]
    return labels


def _component_of(n_hits: int, inner: NDArray[np.int32], outer: NDArray[np.int32]) -> NDArray[np.int64]:
    adjacency = coo_array((np.ones(inner.size, dtype=np.int8), (inner, outer)), shape=(n_hits, n_hits))
    component: NDArray[np.int64] = connected_components(adjacency, directed=False)[1].astype(np.int64)
    return component


@numba.njit(cache=True, nogil=True)
def _best_paths(
    inner: NDArray[np.int64],
    score: NDArray[np.float32],
    ends_at: NDArray[np.int64],
    outer: NDArray[np.int64],
    starts_at: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Take out the best path, again and again; return each hit's path or -1. All hits are given by rank.

    ``inner`` and ``score`` are those of the edges sorted by outer hit, ``ends_at[h]:ends_at[h + 1]`` those
    that end at hit ``h``; ``outer`` those of the edges sorted by inner hit, with ``starts_at`` likewise.
    """
    n_hits = ends_at.size - 1
    track = np.full(n_hits, -1, dtype=np.int64)
    best = np.zeros(n_hits, dtype=np.float64)
    previous = np.full(n_hits, -1, dtype=np.int64)
    ways = [(0.0, 0) for _ in range(0)]  # (minus the sum of scores, last hit); outdated ones stay in it
    changed = [0 for _ in range(0)]
    for hit in range(n_hits):
        _find_best_way(hit, inner, score, ends_at, track, best, previous)
        if best[hit] > 0.0:
            heapq.heappush(ways, (-best[hit], hit))
    n_tracks = 0
    while len(ways) > 0:
        negative, top = heapq.heappop(ways)
        if track[top] >= 0 or best[top] != -negative:
            continue
        while top >= 0:
            track[top] = n_tracks
            _add_followers(top, outer, starts_at, track, previous, changed)
            top = previous[top]
        n_tracks += 1
        # What led through a hit that is gone looks for its next best way, from the inside outwards.
        while len(changed) > 0:
            hit = heapq.heappop(changed)
            before = best[hit]
            _find_best_way(hit, inner, score, ends_at, track, best, previous)
            if best[hit] != before:
                _add_followers(hit, outer, starts_at, track, previous, changed)
                if best[hit] > 0.0:
                    heapq.heappush(ways, (-best[hit], hit))
    return track


@numba.njit(cache=True, nogil=True)
def _find_best_way(
    hit: int,
    inner: NDArray[np.int64],
    score: NDArray[np.float32],
    ends_at: NDArray[np.int64],
    track: NDArray[np.int64],
    best: NDArray[np.float64],
    previous: NDArray[np.int64],
) -> None:
    best[hit] = 0.0
    previous[hit] = -1
    for edge in range(ends_at[hit], ends_at[hit + 1]):
        before = inner[edge]
        if before < hit and track[before] < 0 and best[before] + score[edge] > best[hit]:
            best[hit] = best[before] + score[edge]
            previous[hit] = before


@numba.njit(cache=True, nogil=True)
def _add_followers(
    hit: int,
    outer: NDArray[np.int64],
    starts_at: NDArray[np.int64],
    track: NDArray[np.int64],
    previous: NDArray[np.int64],
    changed: list[int],
) -> None:
    """Note the free hits whose best way comes from a hit."""
    for edge in range(starts_at[hit], starts_at[hit + 1]):
        after = outer[edge]
        if track[after] < 0 and previous[after] == hit:
            heapq.heappush(changed, after)
