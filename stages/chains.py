"""Chains of pairs: a candidate pair stays where other pairs go on from it along one curve.

A cellular automaton as trackers have long used it (CATS: NIM A 489 (2002) 389; pixel tracks of CMS: arXiv:2008.13461):
in dense events nearly every pair of hits could be a particle's, but few pairs of strangers are continued twice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np
from scipy.sparse import csr_array

from tritrack.stages.helix import measured

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Windows
    from tritrack.stages.helix import Floats

    Intervals = NDArray[np.float32]
    Places = NDArray[np.int32]

# Half widths of the intervals, chosen on simulated events of pile-up 200: 99 % of the pairs of consecutive pairs of a
# particle above 1 GeV overlap.
_ALONG = 2.3  # resolutions in z
_ACROSS = 0.14  # mm, across the line of flight
_SLOPE_SCATTERED = 7e-4  # at 1 GeV, of a slope along the beam line
_CURVATURE_SCATTERED = 0.02  # at 1 GeV, over the distance of the outer hit from the beam line
_ONE_GEV = 6e-4  # 1/mm, curvature of a particle of 1 GeV in 2 T
_SOFTEST, _HARDEST = (
    4.0,
    0.1,
)  # of curvatures in that unit: what is scattered as if it were so soft, or so hard

SLOPE, SLOPE_WIDTH, CURVATURE, CURVATURE_WIDTH, D0_WEIGHT, HAS_DIRECTION = range(6)


def in_chains(hits: NDArray[np.float32], pairs: NDArray[np.int32], *, windows: Windows) -> NDArray[np.bool_]:
    """Tell which pairs are on a chain of at least ``windows.min_chain`` pairs.

    Two pairs that share a hit, the outer one of the first and the inner one of the second, are linked where their
    intervals of slope and of curvature overlap (see :func:`intervals`). Hits closer than ``windows.overlap`` tell no
    direction: such a pair stays where both of its hits have a pair that stays, and these two agree.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    pairs
        int32 [2, n_pairs], in the contract's order: inner hit first, sorted.
    windows
        ``min_chain``, ``max_d0`` and ``overlap`` of them; up to a ``min_chain`` of 1 every pair stays.

    Returns
    -------
    ndarray
        bool [n_pairs].
    """
    n_hits, n_pairs = hits.shape[0], pairs.shape[1]
    if windows.min_chain <= 1 or n_pairs == 0:
        return np.ones(n_pairs, dtype=np.bool_)
    inner, outer = pairs
    interval = intervals(measured(hits), inner, outer, windows.overlap)
    starts = np.searchsorted(inner, np.arange(n_hits + 1, dtype=inner.dtype)).astype(np.int64)
    ordinal = np.arange(n_pairs, dtype=np.int32)
    by_outer = csr_array((ordinal, outer, starts), shape=(n_hits, n_hits)).tocsc()
    ends, by_end = by_outer.indptr.astype(np.int64), by_outer.data
    further, max_d0 = windows.min_chain - 1, np.float32(windows.max_d0)
    outwards = _chain_lengths(interval, outer, starts, ordinal, max_d0, further)
    inwards = _chain_lengths(interval, inner, ends, by_end, max_d0, further)
    stays = (interval[:, HAS_DIRECTION] > 0) & (outwards + inwards >= further)
    _keep_close_pairs(interval, inner, outer, starts, ends, by_end, max_d0, stays)
    return stays


@numba.njit(cache=True, parallel=True, nogil=True)
def intervals(points: Floats, inner: Places, outer: Places, overlap: float) -> Intervals:
    """Return what each pair tells about its particle.

    Parameters
    ----------
    points
        float64 [n_hits, 5], of :func:`tritrack.stages.helix.measured`.
    inner, outer
        int32 [n_pairs].
    overlap
        Distance of the hits, in mm, up to which a pair tells nothing.

    Returns
    -------
    ndarray
        float32 [n_pairs, 6]: dz over the arc, and how far it may be off; the signed curvature, in 1/mm, of the circle
        through the beam line and both hits, and how far that may be off; by how much the curvature changes, in
        1/mm, for each mm that the circle passes the beam line at; 1 or 0, whether the pair tells a direction.
    """
    result = np.empty((inner.size, 6), dtype=np.float32)
    for pair in numba.prange(inner.size):
        a, b = points[inner[pair]], points[outer[pair]]
        dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        chord_squared = dx * dx + dy * dy
        chord = max(math.sqrt(chord_squared), 1e-3)
        r_a = max(math.sqrt(a[0] * a[0] + a[1] * a[1]), 1e-3)
        r_b = max(math.sqrt(b[0] * b[0] + b[1] * b[1]), 1e-3)
        weight = 2.0 / (r_a * r_b)
        curvature = weight * (a[0] * b[1] - a[1] * b[0]) / chord
        half_turn = min(0.5 * abs(curvature) * chord, 0.95)
        arc = chord * (math.asin(half_turn) / half_turn if half_turn > 1e-3 else 1.0)
        slope = dz / arc
        softness = min(max(abs(curvature) / _ONE_GEV, _HARDEST), _SOFTEST)
        # On a disk it is the radius that is measured, and a slope turns its error into one of z.
        resolution = math.sqrt(a[3] * a[3] + b[3] * b[3]) * max(1.0, abs(slope))
        result[pair, SLOPE] = slope
        result[pair, SLOPE_WIDTH] = (
            _ALONG * resolution / arc + _SLOPE_SCATTERED * math.sqrt(1.0 + slope * slope) * softness
        )
        result[pair, CURVATURE] = curvature
        result[pair, CURVATURE_WIDTH] = (
            2.0 * _ACROSS * math.sqrt(1.0 / (r_a * r_a) + 1.0 / (r_b * r_b)) / chord
            + _CURVATURE_SCATTERED * softness / r_b
        )
        result[pair, D0_WEIGHT] = weight
        result[pair, HAS_DIRECTION] = chord_squared + dz * dz > overlap * overlap
    return result


@numba.njit(cache=True, nogil=True, inline="always")
def agree(interval: Intervals, p: int, q: int, max_d0: np.float32) -> bool:
    """Whether two pairs can be of one particle that passes the beam line within ``max_d0``, in mm."""
    return bool(
        interval[q, HAS_DIRECTION] > 0
        and abs(interval[p, SLOPE] - interval[q, SLOPE])
        <= interval[p, SLOPE_WIDTH] + interval[q, SLOPE_WIDTH]
        and abs(interval[p, CURVATURE] - interval[q, CURVATURE])
        <= interval[p, CURVATURE_WIDTH]
        + interval[q, CURVATURE_WIDTH]
        + max_d0 * abs(interval[p, D0_WEIGHT] - interval[q, D0_WEIGHT])
    )


@numba.njit(cache=True, parallel=True, nogil=True)
def _chain_lengths(
    interval: Intervals,
    at: Places,
    starts: NDArray[np.int64],
    order: Places,
    max_d0: np.float32,
    longest: int,
) -> NDArray[np.int64]:
    """Return how many pairs, ``longest`` at most, go on from each one at its hit ``at``; 0 without a direction.

    The pairs that go on at hit h are ``order[starts[h]:starts[h + 1]]``.
    """
    length = np.zeros(at.size, dtype=np.int64)
    for reached in range(longest):
        longer = length.copy()
        for pair in numba.prange(at.size):
            if length[pair] < reached or interval[pair, HAS_DIRECTION] == 0:
                continue
            for place in range(starts[at[pair]], starts[at[pair] + 1]):
                next_pair = order[place]
                if length[next_pair] >= reached and agree(interval, pair, next_pair, max_d0):
                    longer[pair] = reached + 1
                    break
        length = longer
    return length


@numba.njit(cache=True, parallel=True, nogil=True)
def _keep_close_pairs(
    interval: Intervals,
    inner: Places,
    outer: Places,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    by_end: Places,
    max_d0: np.float32,
    stays: NDArray[np.bool_],
) -> None:
    for pair in numba.prange(inner.size):
        if interval[pair, HAS_DIRECTION] == 0:
            a, b = inner[pair], outer[pair]
            stays[pair] = _hits_agree(a, b, interval, starts, ends, by_end, max_d0, stays)


@numba.njit(cache=True, nogil=True)
def _hits_agree(
    a: int,
    b: int,
    interval: Intervals,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    by_end: Places,
    max_d0: np.float32,
    stays: NDArray[np.bool_],
) -> bool:
    """Whether a pair that stays at one hit agrees with one that stays at the other."""
    n_starts, m_starts = starts[a + 1] - starts[a], starts[b + 1] - starts[b]
    n, m = n_starts + ends[a + 1] - ends[a], m_starts + ends[b + 1] - ends[b]
    for i in range(n):
        p = starts[a] + i if i < n_starts else by_end[ends[a] + i - n_starts]
        # Pairs without a direction are decided on meanwhile, by other threads: they do not count.
        if interval[p, HAS_DIRECTION] == 0 or not stays[p]:
            continue
        for j in range(m):
            q = starts[b] + j if j < m_starts else by_end[ends[b] + j - m_starts]
            if agree(interval, p, q, max_d0) and stays[q]:
                return True
    return False
