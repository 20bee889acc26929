"""Chains of pairs: a candidate pair stays where other pairs go on from it along one curve.

A cellular automaton as trackers have long used it (CATS: NIM A 489 (2002) 389; pixel tracks of CMS: arXiv:2008.13461):
in dense events nearly every pair of hits could be a particle's, but few pairs of strangers are continued twice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.stages.helix import measured
from tritrack.stages.pair_order import group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Windows
    from tritrack.stages.helix import Floats

    Intervals = NDArray[np.float32]
    Places = NDArray[np.int32]

# Half widths of the intervals, chosen on simulated events of pile-up 200: 99 % of the pairs of consecutive pairs of a
# particle above 1 GeV overlap.
ALONG = 2.3  # resolutions in z
ACROSS = 0.14  # mm, across the line of flight
SLOPE_SCATTERED = 7e-4  # at 1 GeV, of a slope along the beam line
CURVATURE_SCATTERED = 0.02  # at 1 GeV, over the distance of the outer hit from the beam line
ONE_GEV = 6e-4  # 1/mm, curvature of a particle of 1 GeV in 2 T
SOFTEST, HARDEST = (
    4.0,
    0.1,
)  # of curvatures in that unit: what is scattered as if it were so soft, or so hard

SLOPE, SLOPE_WIDTH, CURVATURE, CURVATURE_WIDTH, D0_WEIGHT = range(5)


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
        int32 [2, n_pairs]: inner hit first, sorted by it.
    windows
        ``min_chain`` (64 at most), ``max_d0`` and ``overlap`` of them; up to a ``min_chain`` of 1 every pair stays.

    Returns
    -------
    ndarray
        bool [n_pairs].
    """
    n_hits, n_pairs = hits.shape[0], pairs.shape[1]
    if windows.min_chain <= 1 or n_pairs == 0:
        return np.ones(n_pairs, dtype=np.bool_)
    interval = intervals(measured(hits), pairs[0], pairs[1], windows.overlap)
    starts, ends, by_end = _at_hits(pairs, n_hits)
    further, max_d0 = windows.min_chain - 1, np.float32(windows.max_d0)
    outwards, inwards = _chain_lengths(interval, starts, ends, by_end, max_d0=max_d0, longest=further)
    has_direction = interval[SLOPE_WIDTH] >= 0
    stays: NDArray[np.bool_] = has_direction & (outwards + inwards >= further)
    # By their numbers: a mask is slow on so many.
    chained, close = np.flatnonzero(stays), np.flatnonzero(~has_direction)
    at_hits = _at_hits(pairs.take(chained, axis=1), n_hits)
    stays[close] = _hits_agree(pairs.take(close, axis=1), interval.take(chained, axis=1), *at_hits, max_d0)
    return stays


def _at_hits(pairs: Places, n_hits: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Places]:
    """Return where the pairs of each hit are.

    Those that start at hit h are ``starts[h]`` to ``starts[h + 1]``, those that end there
    ``by_end[ends[h]:ends[h + 1]]``.
    """
    starts = np.searchsorted(pairs[0], np.arange(n_hits + 1, dtype=pairs.dtype)).astype(np.int64)
    return starts, *group(pairs[1], n_hits)


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
        float32 [5, n_pairs]: dz over the arc, and how far it may be off; the signed curvature, in 1/mm, of the circle
        through the beam line and both hits, and how far that may be off; by how much the curvature changes, in
        1/mm, for each mm that the circle passes the beam line at. A pair that tells nothing has a width of minus
        infinity: it agrees with none.
    """
    # From NumPy: it takes large pages where it can.
    result = np.empty((5, inner.size), dtype=np.float32)
    _measure(points, inner, outer, overlap, result)
    return result


@numba.njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def _measure(points: Floats, inner: Places, outer: Places, overlap: float, result: Intervals) -> None:
    for pair in numba.prange(inner.size):
        a, b = inner[pair], outer[pair]
        dx, dy, dz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        chord_squared = dx * dx + dy * dy
        chord = max(math.sqrt(chord_squared), 1e-3)
        r_a = max(math.sqrt(points[a, 0] * points[a, 0] + points[a, 1] * points[a, 1]), 1e-3)
        r_b = max(math.sqrt(points[b, 0] * points[b, 0] + points[b, 1] * points[b, 1]), 1e-3)
        weight = 2.0 / (r_a * r_b)
        curvature = weight * (points[a, 0] * points[b, 1] - points[a, 1] * points[b, 0]) / chord
        half_turn = min(0.5 * abs(curvature) * chord, 0.95)
        arc = chord * (math.asin(half_turn) / half_turn if half_turn > 1e-3 else 1.0)
        slope = dz / arc
        softness = min(max(abs(curvature) / ONE_GEV, HARDEST), SOFTEST)
        # On a disk it is the radius that is measured, and a slope turns its error into one of z.
        resolution = math.sqrt(points[a, 3] * points[a, 3] + points[b, 3] * points[b, 3]) * max(
            1.0, abs(slope)
        )
        width = ALONG * resolution / arc + SLOPE_SCATTERED * math.sqrt(1.0 + slope * slope) * softness
        result[SLOPE, pair] = slope
        result[SLOPE_WIDTH, pair] = width if chord_squared + dz * dz > overlap * overlap else -math.inf
        result[CURVATURE, pair] = curvature
        result[CURVATURE_WIDTH, pair] = (
            2.0 * ACROSS * math.sqrt(1.0 / (r_a * r_a) + 1.0 / (r_b * r_b)) / chord
            + CURVATURE_SCATTERED * softness / r_b
        )
        result[D0_WEIGHT, pair] = weight


def _chain_lengths(
    interval: Intervals,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    by_end: Places,
    *,
    max_d0: np.float32,
    longest: int,
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return how many pairs, ``longest`` at most, go on from each one outwards and inwards; 0 without a direction."""
    outwards = np.zeros(by_end.size, dtype=np.int8)
    inwards = np.zeros(by_end.size, dtype=np.int8)
    for reached in range(longest):
        _go_on(interval, starts, ends, by_end, max_d0, reached, outwards, inwards)
    return outwards, inwards


@numba.njit(cache=True, parallel=True, nogil=True)
def _go_on(
    interval: Intervals,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    by_end: Places,
    max_d0: np.float32,
    reached: int,
    outwards: NDArray[np.int8],
    inwards: NDArray[np.int8],
) -> None:
    """Make chains of ``reached`` pairs longer by one where they go on, in both directions."""
    # A pair is written to at one hit alone, and what others read of it, ``reached`` or not, stays as it is.
    for hit in numba.prange(starts.size - 1):
        first, last = starts[hit], starts[hit + 1]
        slope, width = interval[SLOPE, first:last], interval[SLOPE_WIDTH, first:last]
        curvature, bound = interval[CURVATURE, first:last], interval[CURVATURE_WIDTH, first:last]
        weight = interval[D0_WEIGHT, first:last]
        outer_outwards, outer_inwards = outwards[first:last], inwards[first:last]
        for pair in by_end[ends[hit] : ends[hit + 1]]:
            own_slope, own_width = interval[SLOPE, pair], interval[SLOPE_WIDTH, pair]
            own_curvature, own_bound = interval[CURVATURE, pair], interval[CURVATURE_WIDTH, pair]
            own_weight = interval[D0_WEIGHT, pair]
            comes_in = inwards[pair] >= reached
            if own_width < 0 or not (comes_in or outwards[pair] >= reached):
                continue
            goes_out = False
            for outer in range(last - first):
                if (abs(own_slope - slope[outer]) <= own_width + width[outer]) and (
                    abs(own_curvature - curvature[outer])
                    <= own_bound + bound[outer] + max_d0 * abs(own_weight - weight[outer])
                ):
                    goes_out |= outer_outwards[outer] >= reached
                    if comes_in:
                        outer_inwards[outer] = reached + 1
            if goes_out:
                outwards[pair] = reached + 1


@numba.njit(cache=True, nogil=True, inline="always")
def agree(interval: Intervals, p: int, q: int, max_d0: np.float32) -> bool:
    """Whether two pairs can be of one particle that passes the beam line within ``max_d0``, in mm."""
    return bool(
        abs(interval[SLOPE, p] - interval[SLOPE, q]) <= interval[SLOPE_WIDTH, p] + interval[SLOPE_WIDTH, q]
        and abs(interval[CURVATURE, p] - interval[CURVATURE, q])
        <= interval[CURVATURE_WIDTH, p]
        + interval[CURVATURE_WIDTH, q]
        + max_d0 * abs(interval[D0_WEIGHT, p] - interval[D0_WEIGHT, q])
    )


@numba.njit(cache=True, parallel=True, nogil=True)
def _hits_agree(
    close: Places,
    interval: Intervals,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    by_end: Places,
    max_d0: np.float32,
) -> NDArray[np.bool_]:
    """Whether a pair at one hit of each close pair agrees with one at the other hit; int32 [2, n] -> bool [n]."""
    result = np.zeros(close.shape[1], dtype=np.bool_)
    for pair in numba.prange(close.shape[1]):
        a, b = close[0, pair], close[1, pair]
        n_starts, m_starts = starts[a + 1] - starts[a], starts[b + 1] - starts[b]
        for i in range(n_starts + ends[a + 1] - ends[a]):
            p = starts[a] + i if i < n_starts else by_end[ends[a] + i - n_starts]
            for j in range(m_starts + ends[b + 1] - ends[b]):
                q = starts[b] + j if j < m_starts else by_end[ends[b] + j - m_starts]
                if agree(interval, p, q, max_d0):
                    result[pair] = True
                    break
            if result[pair]:
                break
    return result
