"""Labelling: scored edges become tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tritrack.stages.card import LabellingMethod

    Labelling = Callable[..., NDArray[np.int64]]


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

    The best path of a component is the one with the largest sum of scores. It becomes a track, its hits
    are taken out, and what is left of the component is searched again. (The idea of a walk from hit to
    hit along the best edges is that of the Exa.TrkX chain, arXiv:2103.06995; the paths here are optimal
    because edges only lead outwards.)

    Parameters and return value are those of :func:`components`.
    """
    keep = edge_score >= np.float32(cut)
    inner, outer = edge_index[:, keep]
    component = _component_of(hits.shape[0], inner, outer)
    # Hits in the order of the edges' direction, component by component; edges by their outer hit.
    distance = np.square(hits.astype(np.float64)).sum(axis=1)
    order = np.lexsort((distance, component))
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    # Whatever way round a pair came; equal sums of scores are then settled by distance, not by index.
    low, high = np.minimum(rank[inner], rank[outer]), np.maximum(rank[inner], rank[outer])
    by_outer = np.lexsort((low, high))
    tracks = _best_paths(
        component[order],
        low[by_outer],
        np.searchsorted(high[by_outer], np.arange(order.size + 1)),
        edge_score[keep][by_outer],
    )
    labels = np.empty_like(tracks)
    labels[order] = tracks
    return number_tracks(labels)


LABELLINGS: dict[LabellingMethod, Labelling] = {"components": components, "walkthrough": walkthrough}
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
    component: NDArray[np.int64],
    inner: NDArray[np.int64],
    starts: NDArray[np.int64],
    score: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Split every component into paths; all hits are given by their rank.

    ``starts[h]:starts[h + 1]`` are the edges that end at hit ``h``, and no edge comes from a higher rank.
    """
    n_hits = component.size
    track = np.full(n_hits, -1, dtype=np.int64)
    best = np.zeros(n_hits, dtype=np.float64)
    previous = np.full(n_hits, -1, dtype=np.int64)
    n_tracks = 0
    begin = 0
    while begin < n_hits:
        end = begin + 1
        while end < n_hits and component[end] == component[begin]:
            end += 1
        while True:
            top = begin
            for hit in range(begin, end):
                best[hit] = 0.0
                previous[hit] = -1
                if track[hit] >= 0:
                    continue
                for edge in range(starts[hit], starts[hit + 1]):
                    before = inner[edge]
                    if before < hit and track[before] < 0 and best[before] + score[edge] > best[hit]:
                        best[hit] = best[before] + score[edge]
                        previous[hit] = before
                if best[hit] > best[top]:
                    top = hit
            if best[top] == 0.0:
                break
            while top >= 0:
                track[top] = n_tracks
                top = previous[top]
            n_tracks += 1
        begin = end
    return track
