"""The radius graph on tensors, wherever they lie: what `tritrack.stages.graph` gives, pair for pair, on a GPU.

Hits are sorted along the first principal axis of the learned space, and tiles of them are compared with those
that follow within the radius along it. A matrix product tells roughly which pairs of a tile can be near; only of
these are distance and windows computed, in the arithmetic of the compiled search. Two passes, one to count and one
to fill, so that nothing is ever stored but the pairs, and an event over the limit is refused before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tritrack.stages.chains_gpu import in_chains
from tritrack.stages.contract import check_pairs
from tritrack.stages.windows import bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tritrack.stages.card import Windows
    from tritrack.stages.windows import Bounds

TILE_ROWS, TILE_COLUMNS = 2048, 16_384
"""Hits that are compared at once: 134 MB of distances."""

_ROUGH = 1e-5
"""Of the squares: what the matrix product may be wrong by, in float32 and up to a hundred dimensions."""


def radius_graph(
    hits: Tensor, embedding: Tensor, *, radius: float, windows: Windows, max_pairs: int
) -> Tensor:
    """Return every pair of hits within a radius of each other in the learned space that passes the windows.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    embedding
        float32 [n_hits, d], on the same device.
    radius, windows, max_pairs
        As in :func:`tritrack.stages.graph.radius_graph`.

    Returns
    -------
    Tensor
        EDGE_INDEX, int32 [2, n_edges], on that device.

    Raises
    ------
    ContractError
        Where there are more than ``max_pairs`` pairs; found by counting, before they are stored.
    """
    if hits.shape[0] < 2:
        return torch.empty((2, 0), dtype=torch.int32, device=hits.device)
    order, ends = _sort_along_axis(embedding, radius=radius)
    points, place = embedding[order], _geometry(hits[order])
    squared = float(np.float32(radius) * np.float32(radius))
    tiles = [
        (rows, min(rows + TILE_ROWS, order.numel()), columns, min(columns + TILE_COLUMNS, end))
        for rows, end in zip(range(0, order.numel(), TILE_ROWS), ends, strict=True)
        for columns in range(rows, end, TILE_COLUMNS)
    ]
    counts = [
        pairs.shape[1] for pairs in _near_pairs(points, place, tiles, squared=squared, limits=bounds(windows))
    ]
    check_pairs(sum(counts), max_pairs=max_pairs)
    found = torch.empty((2, sum(counts)), dtype=torch.int64, device=hits.device)
    at = 0
    for pairs in _near_pairs(points, place, tiles, squared=squared, limits=bounds(windows)):
        found[:, at : at + pairs.shape[1]] = order[pairs]
        at += pairs.shape[1]
    pairs = orient_pairs(hits, found)
    return pairs[:, in_chains(hits, pairs, windows=windows)]


def orient_pairs(hits: Tensor, pairs: Tensor) -> Tensor:
    """Put pairs, int64 [2, n_pairs], in the contract's order, as `tritrack.stages.graph.orient_pairs` does."""
    n_hits = hits.shape[0]
    squares = hits.double().square()
    distance = squares[:, 0].clone()
    for column in squares.T[1:]:  # one by one, as NumPy adds so few
        distance += column
    rank = torch.empty(n_hits, dtype=torch.int64, device=hits.device)
    rank[torch.argsort(distance, stable=True)] = torch.arange(n_hits, device=hits.device)
    a, b = pairs
    swap = rank[a] > rank[b]
    keys = torch.where(swap, b, a) * n_hits + torch.where(swap, a, b)
    keys = keys.sort().values
    return torch.stack([keys // max(n_hits, 1), keys % max(n_hits, 1)]).int()


def _sort_along_axis(embedding: Tensor, *, radius: float) -> tuple[Tensor, list[int]]:
    """Return the order along the first principal axis, and for each tile of rows the end of what it is compared with."""
    centred = embedding.double()
    centred = centred - centred.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    along, order = (centred @ axes[:, -1]).sort(stable=True)
    # A hair over the radius: rounding in the projection must not push a neighbour out of reach.
    reach = along + (radius * 1.0001 + 1e-12 * (along[-1] - along[0]))
    last = torch.arange(TILE_ROWS - 1, along.numel() + TILE_ROWS - 1, TILE_ROWS, device=along.device)
    ends = torch.searchsorted(along, reach[last.clamp(max=along.numel() - 1)], right=True)
    return order, ends.tolist()


def _near_pairs(
    points: Tensor, place: Tensor, tiles: list[tuple[int, int, int, int]], *, squared: float, limits: Bounds
) -> Iterator[Tensor]:
    """Yield each tile's pairs, int64 [2, n_pairs], as positions in the sorted event."""
    centred = points - points.mean(dim=0)
    norm = centred.square().sum(dim=1)
    for first_row, last_row, first_column, last_column in tiles:
        rows, columns = norm[first_row:last_row, None], norm[None, first_column:last_column]
        product = centred[first_row:last_row] @ centred[first_column:last_column].T
        rough = rows + columns - 2.0 * product
        near = torch.nonzero(rough <= squared + _ROUGH * (rows + columns))
        a, b = near[:, 0] + first_row, near[:, 1] + first_column
        later = b > a
        a, b = a[later], b[later]
        keep = _distance(points, a, b) <= squared
        a, b = a[keep], b[keep]
        keep = _is_possible(place, a, b, limits)
        yield torch.stack([a[keep], b[keep]])


def _distance(points: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances, added up axis by axis in float32."""
    distance = torch.zeros(a.numel(), dtype=points.dtype, device=points.device)
    for axis in points.T:
        difference = axis[a] - axis[b]
        distance += difference * difference
    return distance


def _geometry(hits: Tensor) -> Tensor:
    """Return what the windows look at, as `tritrack.stages.windows.geometry` does."""
    x, y, z = hits[:, :3].double().T
    return torch.stack([x, y, z, torch.sqrt(x * x + y * y)])


def _is_possible(place: Tensor, a: Tensor, b: Tensor, limits: Bounds) -> Tensor:
    """Tell which pairs pass the windows: the formulas of `tritrack.stages.windows.is_possible`, on all at once."""
    max_z0, max_curvature, overlap_squared = limits
    (x_a, y_a, z_a, r_a), (x_b, y_b, z_b, r_b) = place[:, a], place[:, b]
    dx, dy, dz, dr = x_b - x_a, y_b - y_a, z_b - z_a, r_b - r_a
    chord_squared = dx * dx + dy * dy
    overlaps = chord_squared + dz * dz <= overlap_squared
    points_back = (z_a * dr - r_a * dz).abs() <= max_z0 * dr.abs()
    cross = (x_a * y_b - y_a * x_b).abs()
    bends_little = 2.0 * cross <= max_curvature * r_a * r_b * torch.sqrt(chord_squared)
    possible: Tensor = overlaps | (points_back & bends_little)
    return possible
