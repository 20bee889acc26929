"""What graph building and labelling mean, written plainly: for gates and tests, not for speed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from tritrack.stages import helix, labelling
from tritrack.stages.chains import intervals
from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK
from tritrack.stages.helix import measured
from tritrack.stages.labelling import round_scores
from tritrack.stages.paths import MOST_JOINS

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
    r = np.square(hits[:, :3].astype(np.float64)).sum(axis=1)
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


def chained_pairs(
    hits: NDArray[np.float32], pairs: NDArray[np.int32], *, windows: Windows
) -> NDArray[np.bool_]:
    """Link every two pairs that agree, and measure the longest chain through each.

    Parameters and return value as in :func:`tritrack.stages.chains.in_chains`, with which it shares the intervals.
    """
    if windows.min_chain <= 1:
        return np.ones(pairs.shape[1], dtype=np.bool_)
    inner, outer = pairs
    interval = intervals(measured(hits), inner, outer, windows.overlap)
    slope, slope_width, curvature, curvature_width, weight = interval
    straight = slope_width >= 0

    def agreeing(pair: int, others: NDArray[np.bool_]) -> NDArray[np.intp]:
        bound = (
            curvature_width[pair] + curvature_width + np.float32(windows.max_d0) * abs(weight[pair] - weight)
        )
        return np.flatnonzero(
            others
            & straight
            & (abs(slope[pair] - slope) <= slope_width[pair] + slope_width)
            & (abs(curvature[pair] - curvature) <= bound)
        )

    after = {int(pair): agreeing(pair, inner == outer[pair]) for pair in np.flatnonzero(straight)}
    outwards, inwards = np.zeros(inner.size, dtype=np.int64), np.zeros(inner.size, dtype=np.int64)
    # No chain is longer than there are hits: as many rounds reach its end.
    for _ in range(hits.shape[0]):
        before = outwards.copy(), inwards.copy()
        for pair, following in after.items():
            for other in following:
                outwards[pair] = max(outwards[pair], outwards[other] + 1)
                inwards[other] = max(inwards[other], inwards[pair] + 1)
        if all(map(np.array_equal, before, (outwards, inwards))):
            break
    stays = straight & (outwards + 1 + inwards >= windows.min_chain)
    close = [
        any(
            agreeing(pair, stays & ((inner == b) | (outer == b))).size
            for pair in np.flatnonzero(stays & ((inner == a) | (outer == a)))
        )
        for a, b in pairs[:, ~straight].T
    ]
    chained: NDArray[np.bool_] = stays.copy()
    chained[~straight] = close
    return chained


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
    distance = np.square(hits[:, :3].astype(np.float64)).sum(axis=1)
    edges = [
        (float(score), int(inner), int(outer))
        for raw, score, inner, outer in zip(edge_score, round_scores(edge_score), *edge_index, strict=True)
        if raw >= np.float32(cut)
    ]
    edges.sort(key=lambda edge: distance[edge[1]])  # of equal sums the way from the innermost hit counts
    free = set(range(len(hits)))
    tracks: list[list[int]] = []
    while edges:
        outwards = sorted(free, key=lambda hit: (distance[hit], hit))
        best: dict[int, tuple[float, list[int]]] = {hit: (0.0, [hit]) for hit in outwards}
        for hit in outwards:
            for score, inner, outer in edges:
                if outer == hit and best[inner][0] + score > best[hit][0]:
                    best[hit] = (best[inner][0] + score, [*best[inner][1], hit])
        tracks.append(max(best.values(), key=lambda way: way[0])[1])
        free -= set(tracks[-1])
        edges = [edge for edge in edges if {edge[1], edge[2]} <= free]
    labels = np.full(len(hits), NO_TRACK, dtype=np.int64)
    whole = [track for track in tracks if len(track) >= MIN_TRACK_HITS]
    for number, track in enumerate(sorted(whole, key=min)):
        labels[track] = number
    return labels


def helix_labels(
    hits: NDArray[np.float32], edge_index: NDArray[np.int32], edge_score: NDArray[np.float32], *, cut: float
) -> NDArray[np.int64]:
    """Find paths of links that both hits choose, drop strays, join what chooses each other: with sets, lists and NumPy's fits.

    Parameters and return value as in :func:`tritrack.stages.labelling.helix`.
    """
    points = helix.measured(hits)
    distance = np.square(hits[:, :3].astype(np.float64)).sum(axis=1)
    order = sorted(range(len(hits)), key=lambda hit: (distance[hit], *hits[hit, :3].tolist()))
    place = {hit: number for number, hit in enumerate(order)}
    score: dict[tuple[int, int], float] = {}
    for raw, rounded, a, b in zip(edge_score, round_scores(edge_score), *edge_index, strict=True):
        pair = (int(a), int(b)) if place[a] < place[b] else (int(b), int(a))
        if a != b and raw >= np.float32(min(labelling.JOINING_LINK, cut)):
            score[pair] = max(score.get(pair, 0.0), float(rounded))
    links = sorted(score, key=lambda pair: (place[pair[1]], place[pair[0]]))
    likely = {pair: score[pair] for pair in links if score[pair] >= cut}
    paths = _mutual_paths(points, likely, cut=cut)
    groups = [_without_strays(points, path) for path in paths if len(path) >= MIN_TRACK_HITS]
    groups = [group for group in groups if group]
    taken = {hit for group in groups for hit in group}
    groups += [[hit] for hit in order if hit not in taken]
    groups = _joined_mutually(points, groups, score, place)
    labels = np.full(len(hits), NO_TRACK, dtype=np.int64)
    whole = [group for group in groups if len(group) >= MIN_TRACK_HITS]
    for number, group in enumerate(sorted(whole, key=min)):
        labels[group] = number
    return labels


def _mutual_paths(
    points: NDArray[np.float64], score: dict[tuple[int, int], float], *, cut: float
) -> list[list[int]]:
    """Return paths of links that both of their hits choose; ``score`` in the order of the outer hits, then the inner ones."""
    gain = {
        pair: float(labelling.log_odds(np.array(value)) - labelling.log_odds(np.array(cut)))
        for pair, value in score.items()
    }
    steps = {
        (z, a, b): own + 0.5 * gain.get((z, b), 0.0)
        for (a, b), own in gain.items()
        for (z, middle) in gain
        if middle == a
    }
    steps = {hits: step for hits, step in steps.items() if step > 0.0 and _one_helix(points[list(hits)])}
    path, rest = {pair: max(own, 0.0) for pair, own in gain.items()}, dict.fromkeys(gain, 0.0)
    for a, b in gain:
        ways = [
            path[z, a] + steps[z, a, b]
            for (z, m) in gain
            if (z, a, b) in steps and m == a and path[z, a] > 0.0
        ]
        path[a, b] = max(path[a, b], *ways, 0.0)
    for a, b in reversed(gain):
        for z, m in gain:
            if m == a and (z, a, b) in steps:
                rest[z, a] = max(rest[z, a], rest[a, b] + steps[z, a, b])
    over = {pair: path[pair] + rest[pair] for pair in gain if path[pair] > 0.0}
    best = {hit: max(value for pair, value in over.items() if hit in pair) for pair in over for hit in pair}
    follows: dict[tuple[int, int], tuple[int, int]] = {}
    for a, b in gain:
        for z, m in gain:
            step = steps.get((z, a, b)) if m == a and (z, a) in over else None
            if step is not None and path[z, a] + step + rest[a, b] == over[z, a]:
                follows.setdefault((z, a), (a, b))
    into: dict[int, tuple[int, int]] = {}
    out: dict[int, tuple[int, int] | None] = {}
    for pair, value in reversed(over.items()):
        into |= {pair[1]: pair} if value == best[pair[1]] else {}
        out |= {pair[0]: pair} if value == best[pair[0]] else {}
    out |= {hit: follows.get(pair) for hit, pair in into.items()}
    after = {a: b for a, b in over if into.get(b) == out.get(a) == (a, b)}
    paths = [[hit] for hit in after if hit not in after.values()]
    for found in paths:
        while found[-1] in after:
            found.append(after[found[-1]])
    return paths


def _joined_mutually(
    points: NDArray[np.float64],
    groups: list[list[int]],
    score: dict[tuple[int, int], float],
    place: dict[int, int],
) -> list[list[int]]:
    by_first = sorted(groups, key=lambda group: min(place[hit] for hit in group))
    current = dict(enumerate(by_first))
    for _ in range(MOST_JOINS):
        number = {hit: i for i, group in current.items() for hit in group}
        linked: dict[tuple[int, int], float] = {}
        for (a, b), value in score.items():
            pair = (min(number[a], number[b]), max(number[a], number[b]))
            if value >= labelling.JOINING_LINK and pair[0] != pair[1]:
                linked[pair] = linked.get(pair, 0.0) + value
        merged = {
            (i, j): sorted(current[i] + current[j], key=lambda hit: place[hit])
            for i, j in sorted(linked, key=lambda pair: (-linked[pair], pair))
            if max(len(current[i]), len(current[j])) >= helix.MIN_HELIX_HITS
        }
        merged = {pair: both for pair, both in merged.items() if _one_helix(points[both])}
        best: dict[int, tuple[int, int]] = {}
        for pair in merged:
            for i in pair:
                best.setdefault(i, pair)
        chosen = [pair for pair in merged if best[pair[0]] == best[pair[1]] == pair]
        if not chosen:
            break
        for i, j in chosen:
            current[i] = merged[i, j]
            del current[j]
    return list(current.values())


def _without_strays(points: NDArray[np.float64], path: list[int]) -> list[int]:
    """Return the hits of a path that lie on one helix, see :func:`tritrack.stages.helix.on_one_helix`."""
    track = points[path]
    n = len(path)
    if (
        n < helix.MIN_HELIX_HITS
        or (_misfit(track, np.ones(n, dtype=np.bool_), helix.PATH_FIELD) <= 1.0).all()
    ):
        return path
    n_anchors = min(n, helix.MAX_ANCHORS)
    anchors = [number * (n - 1) // (n_anchors - 1) for number in range(n_anchors)]
    found: list[tuple[int, float, NDArray[np.bool_]]] = [(0, 0.0, np.zeros(n, dtype=np.bool_))]
    for three in itertools.combinations(anchors, 3):
        if np.hypot(*(track[three[0], :2] - track[three[2], :2])) >= helix.MIN_LEVER:
            off = _misfit(track, np.isin(np.arange(n), three), helix.JOIN_FIELD)
            if (off[list(three)] <= 1.0).all():
                near = off <= 1.0
                found.append((int(near.sum()), -float(np.square(off[near]).sum()), near))
    agreeing = max(found, key=lambda way: way[:2])[2]
    for _ in range(helix.REFITS):
        if agreeing.sum() < helix.MIN_HELIX_HITS:
            return []
        agreeing, before = _misfit(track, agreeing, helix.PATH_FIELD) <= 1.0, agreeing
        if np.array_equal(agreeing, before):
            break
    return [path[i] for i in np.flatnonzero(agreeing)] if agreeing.sum() >= helix.MIN_HELIX_HITS else []


def _one_helix(points: NDArray[np.float64]) -> bool:
    step = np.diff(points, axis=0)
    one_surface = np.abs(step[:, 4]) < helix.ONE_SURFACE
    if (one_surface & (np.linalg.norm(step[:, :3], axis=1) < helix.ONE_MODULE)).any():
        return False
    return bool((_misfit(points, np.ones(len(points), dtype=np.bool_), helix.JOIN_FIELD) <= 1.0).all())


def _misfit(points: NDArray[np.float64], use: NDArray[np.bool_], field: float) -> NDArray[np.float64]:
    """Distance from a helix as in :func:`tritrack.stages.helix.misfit`, the circle by singular values."""
    xy, z, resolution = points[:, :2], points[:, 2], points[:, 3]
    x0, y0, radius = _circle(xy[use])
    angle = np.unwrap(np.arctan2(xy[:, 1] - y0, xy[:, 0] - x0))
    radius = max(radius, 1.0)
    arc = radius * (angle - angle[0])
    weight = use / resolution**2
    mean_s, mean_z = np.average(arc, weights=weight), np.average(z, weights=weight)
    ss = np.sum(weight * (arc - mean_s) ** 2)
    slope = np.sum(weight * (arc - mean_s) * (z - mean_z)) / ss if ss > 1e-9 else 0.0
    across, along, bend = helix.tolerances(radius, slope, abs(arc[-1]), np.abs(z).max(), field)
    from_circle = np.abs(np.hypot(xy[:, 0] - x0, xy[:, 1] - y0) - radius) / across
    from_line = np.abs(z - mean_z - slope * (arc - mean_s)) / (resolution * along + bend)
    off: NDArray[np.float64] = np.maximum(from_circle, from_line)
    return off


def _circle(xy: NDArray[np.float64]) -> tuple[float, float, float]:
    mean = xy.mean(axis=0)
    near = xy - mean
    square = np.square(near).sum(axis=1)
    spread = square.mean()
    covariance = near.T @ near / len(xy)
    if np.linalg.det(covariance) > helix.COLLINEAR * spread**2:
        lifted = (square - spread) / (2 * np.sqrt(spread))
        a, b, c = np.linalg.svd(np.column_stack([lifted, near]), full_matrices=True)[2][2]
        a /= 2 * np.sqrt(spread)
        if a != 0.0:
            radius = np.sqrt(b**2 + c**2 + 4 * a**2 * spread) / abs(2 * a)
            if radius < helix.STRAIGHT:
                return mean[0] - b / (2 * a), mean[1] - c / (2 * a), radius
    angle = 0.5 * np.arctan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1])
    across = helix.STRAIGHT * np.array([-np.sin(angle), np.cos(angle)])
    return mean[0] + across[0], mean[1] + across[1], helix.STRAIGHT
