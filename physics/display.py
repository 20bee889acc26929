"""The picture of an event: its hits, and the tracks found in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tritrack.physics.matching import MIN_COUNTED_HITS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tritrack.events.event import Event

STIFF_RADIUS = 3300.0
"""Tracks of at least this bending radius in mm stand out; 2 GeV in a field of 2 T."""

MAX_DETOUR = 1.02
"""And whose way from hit to hit is at most this much longer than the straight line."""


def write_display(*, event: Event, pairs: NDArray[np.int64], path: Path) -> None:
    """Draw an event with its found tracks, x-y and r-z side by side, and write it as a PNG.

    Parameters
    ----------
    event
        The event; truth is not looked at.
    pairs
        int64 [2, n_pairs], track numbers above hit indices. Tracks of at least 5 hits are drawn.
    path
        Where the PNG goes; its folder is made where it is missing.
    """
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 11}):
        figure = draw_display(event=event, pairs=pairs)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def draw_display(*, event: Event, pairs: NDArray[np.int64]) -> Figure:
    """Draw an event with its found tracks; see `write_display`."""
    figure = Figure(figsize=(17, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    x, y, z = event.hits.astype(np.float64).T
    views = {"x": x, "y": y, "z": z, "r": np.hypot(x, y)}
    tracks = _ordered_tracks(pairs=pairs, distance=np.hypot(views["r"], z))
    stiff = np.array([_is_stiff(event.hits[hits].astype(np.float64)) for hits in tracks], dtype=np.bool_)
    transverse, longitudinal = figure.subplots(1, 2, width_ratios=(1, 1.35))
    for axes, across, up in ((transverse, "x", "y"), (longitudinal, "z", "r")):
        _draw_view(axes, points=np.stack([views[across], views[up]], axis=1), tracks=tracks, stiff=stiff)
        axes.set_xlabel(f"{across} [mm]")
        axes.set_ylabel(f"{up} [mm]")
    transverse.set_aspect("equal")
    longitudinal.set_ylim(bottom=0)
    figure.suptitle(
        f"Event {event.event_id}:  {event.n_hits:,} hits,  {len(tracks):,} tracks with at least "
        f"{MIN_COUNTED_HITS} hits  ({np.count_nonzero(stiff):,} nearly straight ones in colour)"
    )
    return figure


def _draw_view(
    axes: Axes, *, points: NDArray[np.float64], tracks: list[NDArray[np.int64]], stiff: NDArray[np.bool_]
) -> None:
    axes.plot(*points.T, linestyle="none", marker=".", markersize=1.1, color="0.6", zorder=1)
    lines = [points[hits] for hits in tracks]
    soft_lines = [line for line, bold in zip(lines, stiff, strict=True) if not bold]
    stiff_hits = [hits for hits, bold in zip(tracks, stiff, strict=True) if bold]
    colours = _colours(len(stiff_hits))
    axes.add_collection(LineCollection(soft_lines, colors="#7fa6c9", linewidths=0.3, alpha=0.4, zorder=2))
    axes.add_collection(
        LineCollection([points[hits] for hits in stiff_hits], colors=list(colours), linewidths=1.0, zorder=3)
    )
    for hits, colour in zip(stiff_hits, colours, strict=True):
        axes.plot(*points[hits].T, linestyle="none", marker="o", markersize=1.9, color=colour, zorder=4)
    axes.autoscale_view()


def _colours(n: int) -> NDArray[np.float64]:
    """Return n colours that differ from their neighbours' (steps of the golden ratio round the wheel)."""
    wheel = mpl.colormaps["turbo"]
    return np.asarray(wheel(np.arange(n) * 0.6180339887 % 1))


def _ordered_tracks(*, pairs: NDArray[np.int64], distance: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the hits of each long enough track, from the inside out."""
    track, hit = pairs[:, np.lexsort((distance[pairs[1]], pairs[0]))]
    starts = np.flatnonzero(np.diff(track)) + 1
    return [hits for hits in np.split(hit, starts) if hits.size >= MIN_COUNTED_HITS]


def _is_stiff(points: NDArray[np.float64]) -> bool:
    """Tell whether a track, float64 [n, 3] from the inside out, bends little and does not zigzag."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    if steps > MAX_DETOUR * np.linalg.norm(points[-1] - points[0]):
        return False
    corner = points[[0, len(points) // 2, -1], 0] + 1j * points[[0, len(points) // 2, -1], 1]
    # The circle through three points: product of the sides over four times the area.
    sides = np.prod(np.abs(corner - np.roll(corner, 1)))
    area = abs(np.imag((corner[1] - corner[0]) * np.conj(corner[2] - corner[0]))) / 2
    return bool(sides >= STIFF_RADIUS * 4 * area)
