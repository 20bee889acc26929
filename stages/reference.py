"""What graph building and labelling mean, written plainly: for gates and tests, not for speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK
from tritrack.stages.labelling import round_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Windows


def radius_pairs(
    hits: NDArray[np.float32], embedding: NDArray[np.float32], *, radius: float, windows: Windows
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Compare every hit with every other.

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

    Returns
    -------
    edge_index : ndarray
        int32 [2, n_edges], the pairs within radius and windows, in the contract's order.
    distance : ndarray
        float64 [n_hits, n_hits], all distances.
    """
    points = embedding.astype(np.float64)
    distance = np.sqrt(np.square(points[:, None] - points[None, :]).sum(axis=2))
    r = np.square(hits.astype(np.float64)).sum(axis=1)
    index = np.arange(r.size)
    is_inner = (r[:, None] < r[None, :]) | ((r[:, None] == r[None, :]) & (index[:, None] < index[None, :]))
    pairs = np.stack(np.nonzero((distance <= radius) & is_inner))
    return pairs[:, _in_windows(hits, pairs, windows)].astype(np.int32), distance


def _in_windows(hits: NDArray[np.float32], pairs: NDArray[np.int64], windows: Windows) -> NDArray[np.bool_]:
    place = hits[:, :3].astype(np.float64)
    a, b = place[pairs[0]], place[pairs[1]]
    r_a, r_b = np.hypot(a[:, 0], a[:, 1]), np.hypot(b[:, 0], b[:, 1])
    chord = np.hypot(*(b - a)[:, :2].T)
    with np.errstate(divide="ignore", invalid="ignore"):
        z0 = a[:, 2] - r_a * (b[:, 2] - a[:, 2]) / (r_b - r_a)
        curvature = 2 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / (r_a * r_b * chord)
    near = np.linalg.norm(b - a, axis=1) <= windows.overlap
    # NaN: on the beam line, or at one place, no curve can be told.
    inside: NDArray[np.bool_] = near | ~((np.abs(z0) > windows.max_z0) | (curvature > windows.max_curvature))
    return inside


def component_labels(
    n_hits: int, edge_index: NDArray[np.int32], edge_score: NDArray[np.float32], *, cut: float
) -> NDArray[np.int64]:
    """Spread the lowest index over the edges until nothing changes, then number the groups.

    Parameters and return value as in :func:`tritrack.stages.labelling.components`.
    """
    inner, outer = edge_index[:, edge_score >= np.float32(cut)]
    lowest = np.arange(n_hits)
    while True:
        spread = lowest.copy()
        np.minimum.at(spread, inner, lowest[outer])
        np.minimum.at(spread, outer, lowest[inner])
        if np.array_equal(spread, lowest):
            break
        lowest = spread
    labels = np.full(n_hits, NO_TRACK, dtype=np.int64)
    first, counts = np.unique(lowest, return_counts=True)
    for number, hit in enumerate(first[counts >= MIN_TRACK_HITS]):
        labels[lowest == hit] = number
    return labels


def path_labels(
    hits: NDArray[np.float32], edge_index: NDArray[np.int32], edge_score: NDArray[np.float32], *, cut: float
) -> NDArray[np.int64]:
    """Take the path with the largest sum of scores out of the graph, again and again.

    Parameters and return value as in :func:`tritrack.stages.labelling.walkthrough`.
    """
    distance = np.square(hits.astype(np.float64)).sum(axis=1)
    edges = [
        (float(score), int(inner), int(outer))
        for raw, score, inner, outer in zip(edge_score, round_scores(edge_score), *edge_index, strict=True)
        if raw >= np.float32(cut)
    ]
    free = set(range(len(hits)))
    tracks: list[list[int]] = []
    while edges:
        best: dict[int, tuple[float, list[int]]] = {hit: (0.0, [hit]) for hit in free}
        for hit in sorted(free, key=lambda hit: (distance[hit], hit)):
            for score, inner, outer in edges:
                if outer == hit and best[inner][0] + score > best[hit][0]:
                    best[hit] = (best[inner][0] + score, [*best[inner][1], hit])
        tracks.append(max(best.values())[1])
        free -= set(tracks[-1])
        edges = [edge for edge in edges if {edge[1], edge[2]} <= free]
    labels = np.full(len(hits), NO_TRACK, dtype=np.int64)
    whole = [track for track in tracks if len(track) >= MIN_TRACK_HITS]
    for number, track in enumerate(sorted(whole, key=min)):
        labels[track] = number
    return labels
