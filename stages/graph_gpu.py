"""The graphs on tensors, wherever they lie: what `tritrack.stages.graph` gives, on a GPU.

Hits are sorted along the first principal axis of the learned space, and tiles of them are compared with those
within the radius along it. A matrix product tells roughly which pairs of a tile can be near; only of
these are distance and windows computed, in the arithmetic of the compiled search. The radius graph, pair for pair that of
the compiled search, takes two passes, one to count and one to fill, so that nothing is ever stored but the pairs, and an
event over the limit is refused before. The graph of nearest neighbours is exact for events of any size; a row of tiles keeps
its hits' k nearest so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tritrack.stages.chains_gpu import in_chains
from tritrack.stages.contract import check_pairs
from tritrack.stages.windows import bounds

if TYPE_CHECKING:
    from tritrack.stages.card import Windows
    from tritrack.stages.windows import Bounds

TILE_ROWS, TILE_COLUMNS = 2048, 16_384
"""Hits that are compared at once: 134 MB of distances."""

_ROUGH = {"highest": 1e-5, "high": 2e-3, "medium": 2e-2}
"""Of the squares: what the matrix product may be wrong by, up to a hundred dimensions; by the precision that torch is
allowed, float32, TF32 or bfloat16 (NVIDIA's images allow TF32)."""


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
    order, rows_of_tiles = _sort_into_tiles(embedding, radius=radius, later=True)
    points, place = _Points(embedding[order]), _geometry(hits[order])
    squared, limits = _square(radius), bounds(windows)
    tiles = [tile for row in rows_of_tiles for tile in row]
    counts = [_later_pairs(points, place, tile, squared=squared, limits=limits).shape[1] for tile in tiles]
    check_pairs(sum(counts), max_pairs=max_pairs)
    found = torch.empty((2, sum(counts)), dtype=torch.int64, device=hits.device)
    at = 0
    for tile, count in zip(tiles, counts, strict=True):
        pairs = _later_pairs(points, place, tile, squared=squared, limits=limits)
        found[:, at : at + count] = order[pairs]
        at += count
    pairs = orient_pairs(hits, found)
    return pairs[:, in_chains(hits, pairs, windows=windows)]


def knn_graph(
    hits: Tensor, embedding: Tensor, *, k: int, radius: float, windows: Windows, max_pairs: int
) -> Tensor:
    """Return the pairs of each hit with its k nearest neighbours within a radius that pass the windows.

    Parameters
    ----------
    hits, embedding, radius, windows, max_pairs
        As in :func:`radius_graph`.
    k
        Neighbours of a hit. A pair is kept where either hit is among the other's nearest. Of neighbours at the same
        distance the lower index counts as nearer.

    Returns
    -------
    Tensor
        EDGE_INDEX, int32 [2, n_edges], on the hits' device.

    Raises
    ------
    ContractError
        Where there are more than ``max_pairs`` pairs.
    """
    n_hits = hits.shape[0]
    if n_hits < 2:
        return torch.empty((2, 0), dtype=torch.int32, device=hits.device)
    order, rows_of_tiles = _sort_into_tiles(embedding, radius=radius, later=False)
    points = _Points(embedding[order])
    nearest = [_nearest_pairs(points, order, row, squared=_square(radius), k=k) for row in rows_of_tiles]
    a, b = torch.cat(nearest, dim=1)
    once = torch.unique(torch.minimum(a, b) * n_hits + torch.maximum(a, b))
    a, b = once // n_hits, once % n_hits
    keep = _is_possible(_geometry(hits[order]), a, b, bounds(windows))
    pairs = order[torch.stack([a[keep], b[keep]])]
    check_pairs(pairs.shape[1], max_pairs=max_pairs)
    pairs = orient_pairs(hits, pairs)
    return pairs[:, in_chains(hits, pairs, windows=windows)]


def orient_pairs(hits: Tensor, pairs: Tensor) -> Tensor:
    """Put pairs, int64 [2, n_pairs], in the contract's order, as `tritrack.stages.pair_order.orient_pairs` does."""
    n_hits = hits.shape[0]
    squares = hits[:, :3].double().square()
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


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """Hits that are compared with others, as ranges of positions in the sorted event."""

    first_row: int
    last_row: int
    first_column: int
    last_column: int


class _Points:
    """The sorted hits in the learned space, float32 [n_hits, d], and what a rough distance takes."""

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact
        self.centred = exact - exact.mean(dim=0)
        self.norm = self.centred.square().sum(dim=1)


def _square(radius: float) -> float:
    return float(np.float32(radius) * np.float32(radius))


def _sort_into_tiles(embedding: Tensor, *, radius: float, later: bool) -> tuple[Tensor, list[list[_Tile]]]:
    """Return the order along the first principal axis, and for each range of rows the tiles that can be near.

    With ``later``, columns begin with the rows themselves: each pair is in one tile, or in the triangle of one.
    """
    centred = embedding.double()
    centred = centred - centred.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    along, order = (centred @ axes[:, -1]).sort(stable=True)
    n_hits = along.numel()
    # A hair over the radius: rounding in the projection must not push a neighbour out of reach.
    reach = radius * 1.0001 + 1e-12 * (along[-1] - along[0])
    rows = torch.arange(0, n_hits, TILE_ROWS, device=along.device)
    last = (rows + TILE_ROWS - 1).clamp(max=n_hits - 1)
    begins = rows if later else torch.searchsorted(along, along[rows] - reach)
    ends = torch.searchsorted(along, along[last] + reach, right=True)
    return order, [
        [
            _Tile(
                first_row=first_row,
                last_row=min(first_row + TILE_ROWS, n_hits),
                first_column=column,
                last_column=min(column + TILE_COLUMNS, end),
            )
            for column in range(begin, end, TILE_COLUMNS)
        ]
        for first_row, begin, end in zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True)
    ]


def _roughly_near(points: _Points, tile: _Tile, *, squared: float) -> tuple[Tensor, Tensor]:
    """Return the pairs of a tile, as sorted positions, that a product of matrices cannot tell to be apart."""
    a, b = slice(tile.first_row, tile.last_row), slice(tile.first_column, tile.last_column)
    rows, columns = points.norm[a, None], points.norm[None, b]
    rough = rows + columns - 2.0 * (points.centred[a] @ points.centred[b].T)
    wrong_by = _ROUGH[torch.get_float32_matmul_precision()]
    near = torch.nonzero(rough <= squared + wrong_by * (rows + columns))
    return near[:, 0] + tile.first_row, near[:, 1] + tile.first_column


def _later_pairs(points: _Points, place: Tensor, tile: _Tile, *, squared: float, limits: Bounds) -> Tensor:
    """Return a tile's pairs of a hit and a later one, int64 [2, n_pairs], as positions in the sorted event."""
    a, b = _roughly_near(points, tile, squared=squared)
    later = b > a
    a, b = a[later], b[later]
    keep = _distance(points.exact, a, b) <= squared
    a, b = a[keep], b[keep]
    keep = _is_possible(place, a, b, limits)
    return torch.stack([a[keep], b[keep]])


def _nearest_pairs(points: _Points, order: Tensor, tiles: list[_Tile], *, squared: float, k: int) -> Tensor:
    """Return the pairs of each hit of a row of tiles with its nearest, int64 [2, n_pairs], as sorted positions."""
    nearest = torch.empty((2, 0), dtype=torch.int64, device=points.exact.device)
    # Of float32 that are not negative the bits, as integers, have the same order.
    keys = nearest[0]
    for tile in tiles:
        a, b = _roughly_near(points, tile, squared=squared)
        distance = _distance(points.exact, a, b)
        keep = (distance <= squared) & (a != b)
        a, b, distance = a[keep], b[keep], distance[keep]
        nearest = torch.cat([nearest, torch.stack([a, b])], dim=1)
        keys = torch.cat([keys, (a << 32) + distance.view(torch.int32)])
        by_index = torch.argsort(order[nearest[1]])
        keys, by_key = keys[by_index].sort(stable=True)
        nearest = nearest[:, by_index[by_key]]
        hit = nearest[0].contiguous()
        rank = torch.arange(hit.numel(), device=hit.device) - torch.searchsorted(hit, hit)
        nearest, keys = nearest[:, rank < k], keys[rank < k]
    return nearest


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
