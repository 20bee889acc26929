"""Chains of pairs on tensors, wherever they lie: what `tritrack.stages.chains` gives, pair for pair, on a GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritrack.stages.chains import (
    ACROSS,
    ALONG,
    CURVATURE,
    CURVATURE_SCATTERED,
    CURVATURE_WIDTH,
    D0_WEIGHT,
    HARDEST,
    ONE_GEV,
    SLOPE,
    SLOPE_SCATTERED,
    SLOPE_WIDTH,
    SOFTEST,
)
from tritrack.stages.helix import resolution_along

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tritrack.stages.card import Windows

MOST_AT_ONCE = 1 << 24
"""Pairs of pairs that are compared at once: some 1.5 GB."""


def in_chains(hits: Tensor, pairs: Tensor, *, windows: Windows) -> Tensor:
    """Tell which pairs are on a chain of at least ``windows.min_chain`` pairs.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    pairs
        int32 [2, n_pairs], in the contract's order, on the same device.
    windows
        As in :func:`tritrack.stages.chains.in_chains`.

    Returns
    -------
    Tensor
        bool [n_pairs], on that device.
    """
    n_hits, n_pairs = hits.shape[0], pairs.shape[1]
    if windows.min_chain <= 1 or n_pairs == 0:
        return torch.ones(n_pairs, dtype=torch.bool, device=pairs.device)
    inner, outer = pairs.long()
    interval = _intervals(hits, inner, outer, windows.overlap)
    max_d0 = torch.tensor(windows.max_d0, dtype=torch.float32, device=pairs.device)
    further = windows.min_chain - 1
    outwards = _chain_lengths(interval, outer, inner, n_hits, max_d0, further)
    inwards = _chain_lengths(interval, inner, outer, n_hits, max_d0, further)
    has_direction = interval[SLOPE_WIDTH] >= 0
    stays: Tensor = has_direction & (outwards + inwards >= further)
    close = ~has_direction
    stays[close] = _hits_agree(
        pairs[:, close].long(), pairs[:, stays].long(), interval[:, stays], n_hits, max_d0
    )
    return stays


def _intervals(hits: Tensor, inner: Tensor, outer: Tensor, overlap: float) -> Tensor:
    """Return what each pair tells about its particle, as `tritrack.stages.chains.intervals` does."""
    x, y, z = hits[:, :3].double().T
    points = torch.stack([x, y, z, resolution_along((x * x + y * y).sqrt())])
    (x_a, y_a, z_a, resolution_a), (x_b, y_b, z_b, resolution_b) = points[:, inner], points[:, outer]
    dx, dy, dz = x_b - x_a, y_b - y_a, z_b - z_a
    chord_squared = dx * dx + dy * dy
    chord = chord_squared.sqrt().clamp(min=1e-3)
    r_a = (x_a * x_a + y_a * y_a).sqrt().clamp(min=1e-3)
    r_b = (x_b * x_b + y_b * y_b).sqrt().clamp(min=1e-3)
    weight = 2.0 / (r_a * r_b)
    curvature = weight * (x_a * y_b - y_a * x_b) / chord
    half_turn = (0.5 * curvature.abs() * chord).clamp(max=0.95)
    arc = chord * torch.where(half_turn > 1e-3, half_turn.asin() / half_turn, 1.0)
    slope = dz / arc
    softness = (curvature.abs() / ONE_GEV).clamp(HARDEST, SOFTEST)
    resolution = (resolution_a * resolution_a + resolution_b * resolution_b).sqrt() * slope.abs().clamp(
        min=1.0
    )
    width = ALONG * resolution / arc + SLOPE_SCATTERED * (1.0 + slope * slope).sqrt() * softness
    width = torch.where(chord_squared + dz * dz > overlap * overlap, width, -math.inf)
    curvature_width = (
        2.0 * ACROSS * (1.0 / (r_a * r_a) + 1.0 / (r_b * r_b)).sqrt() / chord
        + CURVATURE_SCATTERED * softness / r_b
    )
    return torch.stack([slope, width, curvature, curvature_width, weight]).float()


def _agree(interval: Tensor, p: Tensor, other: Tensor, q: Tensor, max_d0: Tensor) -> Tensor:
    slopes = (interval[SLOPE, p] - other[SLOPE, q]).abs()
    curvatures = (interval[CURVATURE, p] - other[CURVATURE, q]).abs()
    weights = (interval[D0_WEIGHT, p] - other[D0_WEIGHT, q]).abs()
    agree: Tensor = (slopes <= interval[SLOPE_WIDTH, p] + other[SLOPE_WIDTH, q]) & (
        curvatures <= interval[CURVATURE_WIDTH, p] + other[CURVATURE_WIDTH, q] + max_d0 * weights
    )
    return agree


def _chain_lengths(
    interval: Tensor, at: Tensor, start: Tensor, n_hits: int, max_d0: Tensor, longest: int
) -> Tensor:
    """Return how many pairs, ``longest`` at most, go on from each one at its hit ``at``, where those ``start``."""
    order = torch.argsort(start, stable=True)
    count = torch.bincount(start, minlength=n_hits)
    first = count.cumsum(0) - count
    length = torch.zeros(at.numel(), dtype=torch.int64, device=at.device)
    for reached in range(longest):
        long_enough = length >= reached
        asked = torch.nonzero(long_enough & (interval[SLOPE_WIDTH] >= 0))[:, 0]
        goes_on = torch.zeros(at.numel(), dtype=torch.bool, device=at.device)
        for place, owner in _expanded(count[at[asked]]):
            pair = asked[owner]
            other = order[first[at[pair]] + place]
            linked = long_enough[other] & _agree(interval, pair, interval, other, max_d0)
            goes_on[pair[linked]] = True
        length[goes_on] = reached + 1
    return length


def _hits_agree(close: Tensor, chained: Tensor, interval: Tensor, n_hits: int, max_d0: Tensor) -> Tensor:
    """Whether a chained pair at one hit of each close pair agrees with one at the other hit."""
    order = torch.argsort(chained.flatten(), stable=True)
    pair_there = order % max(chained.shape[1], 1)
    count = torch.bincount(chained.flatten(), minlength=n_hits)
    first = count.cumsum(0) - count
    a, b = close
    result = torch.zeros(a.numel(), dtype=torch.bool, device=a.device)
    for place, owner in _expanded(count[a] * count[b]):
        n_b = count[b[owner]]
        p = pair_there[first[a[owner]] + place // n_b]
        q = pair_there[first[b[owner]] + place % n_b]
        result[owner[_agree(interval, p, interval, q, max_d0)]] = True
    return result


def _expanded(count: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each owner of ``count`` things, the number of the thing and of its owner, piece by piece."""
    ends = count.cumsum(0)
    first = 0
    while first < count.numel():
        before = int(ends[first - 1]) if first else 0
        last = max(int(torch.searchsorted(ends, before + MOST_AT_ONCE, right=True)), first + 1)
        owner = torch.arange(first, last, device=count.device).repeat_interleave(count[first:last])
        start = ends[first:last] - count[first:last] - before
        place = torch.arange(owner.numel(), device=count.device) - start[owner - first]
        yield place, owner
        first = last
