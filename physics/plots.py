"""Plots of the rates against pT, eta and production radius."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tritrack.physics.intervals import Share
from tritrack.physics.matching import MIN_COUNTED_HITS
from tritrack.physics.metrics import Rates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tritrack.physics.metrics import Profile, Report

_LABELS = {
    "efficiency": "efficiency (double majority)",
    "perfect_efficiency": "efficiency (perfect)",
    "lhc_efficiency": "efficiency (LHC, 75 %)",
    "fake_rate": "fake rate",
    "fragment_rate": "fragment rate",
    "duplicate_rate": "duplicate rate",
    "unmatched_rate": "unmatched rate",
}
# Any: matplotlib names its settings one by one in newer versions, as str in older.
_SIZES: dict[Any, int] = {
    "font.size": 13,
    "axes.labelsize": 15,
    "legend.fontsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.major.size": 7,
    "ytick.major.size": 7,
    "xtick.minor.size": 4,
    "ytick.minor.size": 4,
}
MIN_IN_BIN = 5
"""Bins of fewer particles or tracks than this are not drawn: they tell nothing and hide the rest."""


def write_plots(*, reports: Mapping[str, Report], folder: Path) -> list[Path]:
    """Write one PNG a rate, each against pT, eta and production radius.

    Parameters
    ----------
    reports
        What to compare, by the name in the legend.
    folder
        Where the files go, each named after its rate; made where it is missing.

    Returns
    -------
    list
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context({**mplhep.style.ATLAS, **_SIZES}):
        for field in fields(Rates):
            files.append(folder / f"{field.name}.png")
            draw_rate(reports=reports, rate=field.name).savefig(files[-1], dpi=120)
    return files


def draw_rate(*, reports: Mapping[str, Report], rate: str) -> Figure:
    """Draw one rate (a field of `Rates`) in three panels, its intervals as error bars.

    The grey histogram is the first report's denominator, in no scale.
    """
    figure = Figure(figsize=(17, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    of_particles = "efficiency" in rate
    top = 1.08
    if not of_particles:
        drawn = [_drawn(profile, rate) for report in reports.values() for profile in report.profiles]
        top = min(top, 1.6 * max(0.01, *(float(share.value.max(initial=0)) for _, share in drawn)))
    for place, axes in enumerate(panels):
        profiles = {name: report.profiles[place] for name, report in reports.items()}
        first = next(iter(profiles.values()))
        _draw_frame(axes, profile=first, of_particles=of_particles, top=top)
        for name, profile in profiles.items():
            _draw_points(axes, profile=profile, rate=rate, label=name)
    panels[0].set_ylabel(_LABELS[rate])
    one = next(iter(reports.values()))
    title = f"{one.n_events} events; efficiency for the selection “{one.selection}”"
    figure.suptitle(
        title if of_particles else f"{one.n_events} events; all tracks with at least {MIN_COUNTED_HITS} hits"
    )
    panels[0].legend(loc="center left" if of_particles else "upper right")
    return figure


def _denominator(profile: Profile, rate: str) -> NDArray[np.int64]:
    return profile.targets if "efficiency" in rate else profile.tracks


def _drawn(profile: Profile, rate: str) -> tuple[NDArray[np.int64], Share]:
    """Return the bins that are drawn, and their shares."""
    bins = np.flatnonzero(_denominator(profile, rate) >= MIN_IN_BIN)
    share: Share = getattr(profile.rates, rate)
    return bins, Share(value=share.value[bins], low=share.low[bins], high=share.high[bins])


def _draw_frame(axes: Axes, *, profile: Profile, of_particles: bool, top: float) -> None:
    axis = profile.axis
    number = profile.targets if of_particles else profile.tracks
    name = "targets" if of_particles else "tracks"
    axes.stairs(0.3 * top * number / max(1, number.max()), axis.edges, fill=True, color="0.9", label=name)
    if axis.log:
        axes.set_xscale("log")
    filled = np.flatnonzero(number) if number.any() else np.arange(axis.n_bins)
    axes.set_xlim(axis.edges[filled[0]], axis.edges[filled[-1] + 1])
    axes.set_ylim(-0.015 * top, top)
    unit = f" [{axis.unit}]" if axis.unit else ""
    axes.set_xlabel(("true " if of_particles else "leading particle's ") + axis.label + unit)


def _draw_points(axes: Axes, *, profile: Profile, rate: str, label: str) -> None:
    bins, share = _drawn(profile, rate)
    edges = np.array(profile.axis.edges)
    low, high = edges[bins], edges[bins + 1]
    centre = np.sqrt(low * high) if profile.axis.log else (low + high) / 2
    axes.errorbar(
        centre,
        share.value,
        xerr=np.stack([centre - low, high - centre]),
        yerr=np.stack([share.value - share.low, share.high - share.value]),
        linestyle="none",
        elinewidth=1.3,
        marker="o",
        markersize=4.5,
        label=label,
    )
