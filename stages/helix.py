"""Which hits lie on one helix: compiled fits for the labelling, in a field along z."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from tritrack.stages.placement import Array, namespace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]
    Circle = tuple[float, float, float]

MIN_HELIX_HITS = 4
"""A circle goes through any three hits; a fourth can be off it."""

# Tolerances, chosen on simulated events of pile-up 40 and 200: a constant for the resolution, and for scattering a
# part that grows with the curvature (1 GeV in 2 T is a radius of 1667 mm) and the length of the track; and a bound.
ACROSS, ACROSS_SCATTERED, ACROSS_MOST = 0.2, 1.5, 4.0  # mm, mm, mm
ALONG, ALONG_SCATTERED, ALONG_MOST = 1.0, 6.0, 12.0  # of the resolution
# In a real solenoid the field falls off towards its ends: a track's curvature changes on its way there. A path is
# allowed that when its strays are told from it; its steps, and what joins, must fit without.
PATH_FIELD, JOIN_FIELD = 0.012, 0.0  # of length^2 / radius
SOLENOID, FIELD_MOST = 3000.0, 6.0  # mm

# A particle crosses a surface once. Surfaces that overlap are half a millimetre apart or more.
ONE_SURFACE = 0.4  # mm of depth
ONE_MODULE = 20.0  # mm

COLLINEAR = 1e-14  # of the fourth power of the points' spread
STRAIGHT = 1e8  # mm; the radius that stands for a straight line
MAX_ANCHORS = 12  # of a track; helices are tried through every three of them
MIN_LEVER = 20.0  # mm, between the first and the last of the three
REFITS = 4


def measured(hits: NDArray[np.float32]) -> Floats:
    """Return what the fits need of each hit.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.

    Returns
    -------
    ndarray
        float64 [n_hits, 5], mm: x, y, z; how well z is measured; depth, which is the distance from the beam line
        in a barrel and -abs(z) on a disk. Where barrels end, and pixels and strips begin, is as in the detector of
        TrackML and of the simulation.
    """
    x, y, z = hits[:, :3].astype(np.float64).T
    r = np.hypot(x, y)
    resolution = resolution_along(r)
    in_barrel = np.abs(z) < np.where(r < 200.0, 550.0, 1150.0)
    return np.stack([x, y, z, resolution, np.where(in_barrel, r, -np.abs(z))], axis=1)


def resolution_along(r: Array) -> Array:
    """Return how well z is measured, mm, at a distance from the beam line, float64 [n_hits], mm."""
    where = namespace(r).where
    resolution: Array = where(r < 200.0, 0.1, where(r < 750.0, 0.4, namespace(r).full_like(r, 3.0)))
    return resolution


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fit_circle(points: Floats, use: Mask) -> Circle:
    """Fit a circle by Taubin's method (IEEE TPAMI 13 (1991) 1115), solved by Newton's.

    Parameters
    ----------
    points
        float64 [n, 2 or more], x, y in mm.
    use
        bool [n], the points that count.

    Returns
    -------
    tuple of float
        Centre x, y and radius in mm; a straight line is a circle of 100 km.
    """
    n, mean_x, mean_y = 0, 0.0, 0.0
    for i in range(use.size):
        if use[i]:
            n += 1
            mean_x += points[i, 0]
            mean_y += points[i, 1]
    mean_x, mean_y = mean_x / n, mean_y / n
    xx, yy, xy, xz, yz, zz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(use.size):
        if use[i]:
            x, y = points[i, 0] - mean_x, points[i, 1] - mean_y
            z = x * x + y * y
            xx += x * x / n
            yy += y * y / n
            xy += x * y / n
            xz += x * z / n
            yz += y * z / n
            zz += z * z / n
    spread, area = xx + yy, xx * yy - xy * xy
    if area > COLLINEAR * spread * spread:
        variance = zz - spread * spread
        a3, a2 = 4 * spread, -3 * spread * spread - zz
        a1 = variance * spread + 4 * area * spread - xz * xz - yz * yz
        a0 = xz * (xz * yy - yz * xy) + yz * (yz * xx - xz * xy) - variance * area
        root, value = 0.0, a0
        for _ in range(30):
            slope = a1 + root * (2 * a2 + 3 * root * a3)
            moved = root - value / slope
            new = a0 + moved * (a1 + moved * (a2 + moved * a3))
            if not abs(new) < abs(value):
                break
            root, value = moved, new
        divisor = 2 * (root * root - root * spread + area)
        x = (xz * (yy - root) - yz * xy) / divisor
        y = (yz * (xx - root) - xz * xy) / divisor
        radius = np.sqrt(x * x + y * y + spread)
        if radius < STRAIGHT:
            return mean_x + x, mean_y + y, radius
    # Across the direction in which the points lie.
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    return mean_x - STRAIGHT * np.sin(angle), mean_y + STRAIGHT * np.cos(angle), STRAIGHT


@numba.njit(cache=True, nogil=True)
def tolerances(
    radius: float, slope: float, length: float, reach: float, field: float
) -> tuple[float, float, float]:
    """Return how far a hit may lie from a helix.

    Parameters
    ----------
    radius
        Of the circle, in mm.
    slope
        dz over the length of arc.
    length
        Of the arc, in mm.
    reach
        Largest abs(z) of the track, in mm.
    field
        ``PATH_FIELD`` or ``JOIN_FIELD``.

    Returns
    -------
    tuple of float
        Across the field in mm; along z in units of a hit's resolution; and what comes to that, in mm.
    """
    scattered = length / radius
    across = min(ACROSS + ACROSS_SCATTERED * scattered, ACROSS_MOST)
    # On a disk it is the radius that is measured, and a slope turns its error into one of z.
    along = min(ALONG + ALONG_SCATTERED * scattered, ALONG_MOST) * max(1.0, abs(slope))
    bend = min(field * length * scattered * reach / SOLENOID, FIELD_MOST)
    return across + bend, along, bend * max(1.0, abs(slope))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def misfit(points: Floats, use: Mask, field: float) -> Floats:
    """Fit a helix and return each point's distance from it in units of the tolerance, float64 [n].

    Parameters
    ----------
    points
        float64 [n, 5], of :func:`measured`, from one end of the track to the other.
    use
        bool [n], the points that the helix is fitted to: a circle across the field, and z linear in the length
        of arc, weighted by resolution.
    field
        See :func:`tolerances`.
    """
    n = use.size
    x0, y0, radius = fit_circle(points, use)
    radius = max(radius, 1.0)
    arc = np.zeros(n, dtype=np.float64)
    weight, mean_s, mean_z = 0.0, 0.0, 0.0
    for i in range(n):
        if i > 0:
            a, b = points[i - 1, 0] - x0, points[i - 1, 1] - y0
            c, d = points[i, 0] - x0, points[i, 1] - y0
            arc[i] = arc[i - 1] + radius * np.arctan2(a * d - b * c, a * c + b * d)
        if use[i]:
            w = points[i, 3] ** -2
            weight += w
            mean_s += w * arc[i]
            mean_z += w * points[i, 2]
    mean_s, mean_z = mean_s / weight, mean_z / weight
    ss, sz = 0.0, 0.0
    for i in range(n):
        if use[i]:
            w = points[i, 3] ** -2
            ss += w * (arc[i] - mean_s) ** 2
            sz += w * (arc[i] - mean_s) * (points[i, 2] - mean_z)
    slope = sz / ss if ss > 1e-9 else 0.0
    reach = np.abs(points[:, 2]).max()
    across, along, bend = tolerances(radius, slope, abs(arc[n - 1]), reach, field)
    off = np.empty(n, dtype=np.float64)
    for i in range(n):
        from_circle = abs(np.hypot(points[i, 0] - x0, points[i, 1] - y0) - radius) / across
        from_line = abs(points[i, 2] - mean_z - slope * (arc[i] - mean_s)) / (points[i, 3] * along + bend)
        off[i] = max(from_circle, from_line)
    return off


@numba.njit(cache=True, nogil=True, error_model="numpy")
def is_one_helix(points: Floats) -> bool:
    """Whether all points lie on one helix, and it crosses each surface once.

    Parameters
    ----------
    points
        As for :func:`misfit`, at least three.
    """
    for i in range(points.shape[0] - 1):
        step = points[i + 1] - points[i]
        if abs(step[4]) < ONE_SURFACE and np.hypot(np.hypot(step[0], step[1]), step[2]) < ONE_MODULE:
            return False
    fits: bool = misfit(points, np.ones(points.shape[0], dtype=np.bool_), JOIN_FIELD).max() <= 1.0
    return fits


@numba.njit(cache=True, nogil=True, error_model="numpy")
def on_one_helix(points: Floats) -> Mask:
    """Return the points that lie on one helix: all, or the most that agree; none where fewer than four do.

    Where the helix through all points leaves one out, helices through three of them are tried; the one that
    most points lie on (of several the one that they lie nearest to) is fitted to these again.

    Parameters and return value
        As :func:`misfit`; bool [n].
    """
    n = points.shape[0]
    everything = np.ones(n, dtype=np.bool_)
    if misfit(points, everything, PATH_FIELD).max() <= 1.0:
        return everything
    agreeing = _most_agreeing(points)
    for _ in range(REFITS):
        if agreeing.sum() < MIN_HELIX_HITS:
            break
        again = misfit(points, agreeing, PATH_FIELD) <= 1.0
        settled = (again == agreeing).all()
        agreeing = again
        if settled:
            break
    if agreeing.sum() < MIN_HELIX_HITS:
        agreeing[:] = False
    return agreeing


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _most_agreeing(points: Floats) -> Mask:
    n = points.shape[0]
    n_anchors = min(n, MAX_ANCHORS)
    best, n_best, nearest = np.zeros(n, dtype=np.bool_), 0, np.inf
    three = np.zeros(n, dtype=np.bool_)
    for p in range(n_anchors - 2):
        i = p * (n - 1) // (n_anchors - 1)
        for q in range(p + 1, n_anchors - 1):
            j = q * (n - 1) // (n_anchors - 1)
            for r in range(q + 1, n_anchors):
                k = r * (n - 1) // (n_anchors - 1)
                if np.hypot(points[i, 0] - points[k, 0], points[i, 1] - points[k, 1]) < MIN_LEVER:
                    continue
                three[i], three[j], three[k] = True, True, True
                off = misfit(points, three, JOIN_FIELD)
                if off[i] <= 1.0 and off[j] <= 1.0 and off[k] <= 1.0:
                    near = off <= 1.0
                    distance = np.sum(np.where(near, off * off, 0.0))
                    if near.sum() > n_best or (near.sum() == n_best and distance < nearest):
                        best, n_best, nearest = near, near.sum(), distance
                three[i], three[j], three[k] = False, False, False
    return best


@numba.njit(cache=True, parallel=True, nogil=True)
def drop_strays(points: Floats, members: NDArray[np.int64], starts: NDArray[np.int64], keep: Mask) -> None:
    """Say which hits of each track stay: those on one helix; of a track of three, all.

    Parameters
    ----------
    points
        float64 [n_hits, 5], of :func:`measured`.
    members, starts
        Hits of track t, from the inside outwards: ``members[starts[t]:starts[t + 1]]``.
    keep
        bool [n_hits]; set to False for the others.
    """
    for track in numba.prange(starts.size - 1):
        hits = members[starts[track] : starts[track + 1]]
        if hits.size >= MIN_HELIX_HITS:
            keep[hits] = on_one_helix(points[hits])
