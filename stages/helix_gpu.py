"""Which hits lie on one helix, on tensors of many tracks at once: what `tritrack.stages.helix` tells, on a GPU.

A track is a row: ``points`` float64 [n_tracks, n_places, 5], of :func:`tritrack.stages.helix.measured`, from one end to the
other, and ``there`` bool [n_tracks, n_places], true from the first place on for as many hits as the track has. The formulas are
those of the compiled fits; sums may differ in the last digit.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from tritrack.stages.helix import (
    ACROSS,
    ACROSS_MOST,
    ACROSS_SCATTERED,
    ALONG,
    ALONG_MOST,
    ALONG_SCATTERED,
    COLLINEAR,
    FIELD_MOST,
    JOIN_FIELD,
    MAX_ANCHORS,
    MIN_HELIX_HITS,
    MIN_LEVER,
    ONE_MODULE,
    ONE_SURFACE,
    PATH_FIELD,
    REFITS,
    SOLENOID,
    STRAIGHT,
    resolution_along,
)

_NEWTON_STEPS = 30

_AT_ONCE = 1 << 21
"""Places of helices through three hits that are computed at once: some GB."""


def measured(hits: Tensor) -> Tensor:
    """Return what the fits need of each hit, float64 [n_hits, 5], as `tritrack.stages.helix.measured` does."""
    x, y, z = hits[:, :3].double().T
    r = torch.hypot(x, y)
    in_barrel = z.abs() < torch.where(r < 200.0, 550.0, 1150.0)
    return torch.stack([x, y, z, resolution_along(r), torch.where(in_barrel, r, -z.abs())], dim=1)


def fit_circles(points: Tensor, use: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a circle to the hits of each track that count, as `tritrack.stages.helix.fit_circle` does.

    Returns
    -------
    x, y, radius
        float64 [n_tracks], mm.
    """
    n = use.sum(dim=1)
    use = use.double()

    def mean(values: Tensor) -> Tensor:
        return (values * use).sum(dim=1) / n

    mean_x, mean_y = mean(points[..., 0]), mean(points[..., 1])
    x, y = points[..., 0] - mean_x[:, None], points[..., 1] - mean_y[:, None]
    z = x * x + y * y
    xx, yy, xy, xz, yz, zz = mean(x * x), mean(y * y), mean(x * y), mean(x * z), mean(y * z), mean(z * z)
    spread, area = xx + yy, xx * yy - xy * xy
    variance = zz - spread * spread
    a3, a2 = 4 * spread, -3 * spread * spread - zz
    a1 = variance * spread + 4 * area * spread - xz * xz - yz * yz
    a0 = xz * (xz * yy - yz * xy) + yz * (yz * xx - xz * xy) - variance * area
    root, value = torch.zeros_like(a0), a0
    going = torch.ones_like(a0, dtype=torch.bool)
    for _ in range(_NEWTON_STEPS):
        moved = root - value / (a1 + root * (2 * a2 + 3 * root * a3))
        new = a0 + moved * (a1 + moved * (a2 + moved * a3))
        going = going & (new.abs() < value.abs())
        root, value = torch.where(going, moved, root), torch.where(going, new, value)
    divisor = 2 * (root * root - root * spread + area)
    x0, y0 = (xz * (yy - root) - yz * xy) / divisor, (yz * (xx - root) - xz * xy) / divisor
    radius = torch.sqrt(x0 * x0 + y0 * y0 + spread)
    bent = (area > COLLINEAR * spread * spread) & (radius < STRAIGHT)
    # Across the direction in which the points lie.
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    return (
        mean_x + torch.where(bent, x0, -STRAIGHT * torch.sin(angle)),
        mean_y + torch.where(bent, y0, STRAIGHT * torch.cos(angle)),
        torch.where(bent, radius, STRAIGHT),
    )


def misfits(points: Tensor, there: Tensor, use: Tensor, field: float) -> Tensor:
    """Return each hit's distance from its track's helix in units of the tolerance, float64 [n_tracks, n_places].

    As `tritrack.stages.helix.misfit`; ``use`` are the hits that the helix is fitted to. Where no hit is, it is 0.
    """
    x0, y0, radius = fit_circles(points, use)
    radius = radius.clamp(min=1.0)
    x, y, z, resolution = (
        points[..., 0] - x0[:, None],
        points[..., 1] - y0[:, None],
        points[..., 2],
        points[..., 3],
    )
    a, b, c, d = x[:, :-1], y[:, :-1], x[:, 1:], y[:, 1:]
    turned = radius[:, None] * torch.atan2(a * d - b * c, a * c + b * d)
    arc = torch.cumsum(torch.where(there[:, 1:], turned, 0.0), dim=1)
    arc = torch.cat([torch.zeros_like(arc[:, :1]), arc], dim=1)
    # Where no hit is, there is no resolution either.
    weight = torch.where(use, 1.0 / torch.where(use, resolution, 1.0) ** 2, 0.0)
    total = weight.sum(dim=1)
    from_mean_s = arc - ((weight * arc).sum(dim=1) / total)[:, None]
    from_mean_z = z - ((weight * z).sum(dim=1) / total)[:, None]
    ss, sz = (weight * from_mean_s**2).sum(dim=1), (weight * from_mean_s * from_mean_z).sum(dim=1)
    slope = torch.where(ss > 1e-9, sz / torch.where(ss > 1e-9, ss, 1.0), 0.0)
    reach = torch.where(there, z.abs(), 0.0).amax(dim=1)
    across, along, bend = _tolerances(radius, slope, arc[:, -1].abs(), reach, field)
    from_circle = (torch.hypot(x, y) - radius[:, None]).abs() / across[:, None]
    from_line = (from_mean_z - slope[:, None] * from_mean_s).abs() / (
        resolution * along[:, None] + bend[:, None]
    )
    return torch.where(there, torch.maximum(from_circle, from_line), 0.0)


def _tolerances(
    radius: Tensor, slope: Tensor, length: Tensor, reach: Tensor, field: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `tritrack.stages.helix.tolerances` does, float64 [n_tracks] each."""
    scattered = length / radius
    steep = slope.abs().clamp(min=1.0)
    across = (ACROSS + ACROSS_SCATTERED * scattered).clamp(max=ACROSS_MOST)
    along = (ALONG + ALONG_SCATTERED * scattered).clamp(max=ALONG_MOST) * steep
    bend = (field * length * scattered * reach / SOLENOID).clamp(max=FIELD_MOST)
    return across + bend, along, bend * steep


def are_one_helix(points: Tensor, there: Tensor) -> Tensor:
    """Tell which tracks lie on one helix each, and cross each surface once, bool [n_tracks]; each has three hits or more."""
    step = points[:, 1:] - points[:, :-1]
    far = torch.hypot(torch.hypot(step[..., 0], step[..., 1]), step[..., 2]) >= ONE_MODULE
    apart = (step[..., 4].abs() >= ONE_SURFACE) | far | ~there[:, 1:]
    fits = (misfits(points, there, there, JOIN_FIELD) <= 1.0).all(dim=1)
    return apart.all(dim=1) & fits


def on_one_helix(points: Tensor, there: Tensor) -> Tensor:
    """Return the hits that lie on one helix, bool [n_tracks, n_places], as `tritrack.stages.helix.on_one_helix` does.

    Each track has four hits or more.
    """
    fits = (misfits(points, there, there, PATH_FIELD) <= 1.0).all(dim=1)
    found = there.clone()
    if fits.all():
        return found
    points, there = points[~fits], there[~fits]
    agreeing = _most_agreeing(points, there)
    settled = torch.zeros_like(fits[~fits])
    for _ in range(REFITS):
        enough = agreeing.sum(dim=1) >= MIN_HELIX_HITS
        # A fit to no hits is none, and nobody asks for it.
        again = there & (
            misfits(points, there, torch.where(enough[:, None], agreeing, there), PATH_FIELD) <= 1.0
        )
        goes_on = enough & ~settled
        settled = settled | (goes_on & (again == agreeing).all(dim=1))
        agreeing = torch.where(goes_on[:, None], again, agreeing)
    found[~fits] = agreeing & (agreeing.sum(dim=1, keepdim=True) >= MIN_HELIX_HITS)
    return found


def _most_agreeing(points: Tensor, there: Tensor) -> Tensor:
    """Return the hits on the helix, through three anchors of each track, that most lie on, and lie nearest to."""
    n_tracks, device = there.shape[0], points.device
    last = there.sum(dim=1, keepdim=True) - 1
    last_anchor = last.clamp(max=MAX_ANCHORS - 1)
    triples = torch.tensor(list(combinations(range(MAX_ANCHORS), 3)), device=device)
    places = (triples * last[:, None] // last_anchor[:, None]).minimum(last[:, None])
    every = torch.arange(n_tracks, device=device)[:, None]
    lever = points[every, places[..., 0]] - points[every, places[..., 2]]
    tried = (triples[:, 2] <= last_anchor) & (torch.hypot(lever[..., 0], lever[..., 1]) >= MIN_LEVER)
    track, number = tried.nonzero().T
    three = places[track, number]
    count = torch.zeros_like(track)
    distance = torch.zeros(track.numel(), dtype=torch.float64, device=device)
    at_once = max(_AT_ONCE // there.shape[1], 1)
    for begin in range(0, track.numel(), at_once):
        some = slice(begin, begin + at_once)
        off = _off_three(points, there, track[some], three[some])
        near = there[track[some]] & (off <= 1.0)
        count[some] = torch.where(near.gather(1, three[some]).all(dim=1), near.sum(dim=1), 0)
        distance[some] = torch.where(near, off * off, 0.0).sum(dim=1)
    most = torch.ones_like(last[:, 0]).scatter_reduce(0, track, count, "amax")
    best = count == most[track]
    nearest = torch.full((n_tracks,), torch.inf, dtype=torch.float64, device=device)
    nearest = nearest.scatter_reduce(0, track[best], distance[best], "amin")
    best &= distance == nearest[track]
    none = track.numel()
    chosen = torch.full((n_tracks,), none, device=device).scatter_reduce(
        0, track[best], best.nonzero()[:, 0], "amin"
    )
    found = torch.zeros_like(there)
    best_three = chosen[chosen < none]
    off = _off_three(points, there, track[best_three], three[best_three])
    found[chosen < none] = there[track[best_three]] & (off <= 1.0)
    return found


def _off_three(points: Tensor, there: Tensor, track: Tensor, three: Tensor) -> Tensor:
    """Return the misfits of tracks to helices through three of their places each."""
    use = torch.zeros_like(there[track]).scatter(1, three, True)
    return misfits(points[track], there[track], use, JOIN_FIELD)
