"""Plots of the rates against pT, eta and production radius."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tritrack.physics.axes import AXES
from tritrack.physics.intervals import Share
from tritrack.physics.matching import MIN_COUNTED_HITS
from tritrack.physics.metrics import Rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tritrack.physics.metrics import Profile, Report

RATE_NAMES = tuple(field.name for field in fields(Rates))
AXIS_NAMES = tuple(axis.name for axis in AXES)
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
STYLE: dict[Any, Any] = {
    **mplhep.style.ATLAS,
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
"""Settings of matplotlib for every plot."""
MARKERS = ("o", "s", "^", "D")
MIN_IN_BIN = 5
"""Bins of fewer particles or tracks than this are not drawn: they tell nothing and hide the rest."""


def write_plots(
    *,
    reports: Mapping[str, Report],
    folder: Path,
    rates: Iterable[str] = RATE_NAMES,
    apart: bool = False,
) -> list[Path]:
    """Write one PNG a rate, each against pT, eta and production radius.

    Parameters
    ----------
    reports
        What to compare, by the name in the legend.
    folder
        Where the files go, each named after its rate; made where it is missing.
    rates
        Which rates, by the fields of `Rates`.
    apart
        One PNG for each axis instead, named ``RATE-AXIS.png``: they fit narrow screens.

    Returns
    -------
    list
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context(STYLE):
        for rate in rates:
            for names in ((name,) for name in AXIS_NAMES) if apart else (AXIS_NAMES,):
                files.append(folder / ("-".join([rate, *names]) + ".png" if apart else f"{rate}.png"))
                draw_rate(reports=reports, rate=rate, axes=names).savefig(files[-1], dpi=120)
    return files


def draw_rate(
    *,
    reports: Mapping[str, Report],
    rate: str,
    axes: Sequence[str] = AXIS_NAMES,
) -> Figure:
    """Draw one rate (a field of `Rates`) against some axes, a panel each, its intervals as error bars.

    The grey histogram is the first report's denominator, in no scale.
    """
    # One panel alone is shown small: smaller paper makes larger letters.
    size = (17, 5.2) if len(axes) > 1 else (5.2, 4.5)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    places = [place for place, axis in enumerate(AXES) if axis.name in axes]
    of_particles = "efficiency" in rate
    low, high = _range(
        [_drawn(report.profiles[place], rate)[1] for report in reports.values() for place in places],
        of_particles=of_particles,
    )
    for place, panel in zip(places, panels, strict=True):
        profiles = {name: report.profiles[place] for name, report in reports.items()}
        first = next(iter(profiles.values()))
        _draw_frame(panel, profile=first, of_particles=of_particles, low=low, high=high)
        for number, (name, profile) in enumerate(profiles.items()):
            # Beside each other in a bin, for their intervals to be seen.
            place_in_bin = 0.5 + 0.16 * (number - (len(profiles) - 1) / 2)
            _draw_points(
                panel,
                profile=profile,
                rate=rate,
                label=name,
                marker=MARKERS[number % len(MARKERS)],
                place_in_bin=place_in_bin,
            )
    panels[0].set_ylabel(_LABELS[rate])
    one = next(iter(reports.values()))
    what = (
        f"selection “{one.selection}”"
        if of_particles
        else f"all tracks with at least {MIN_COUNTED_HITS} hits"
    )
    figure.suptitle(f"{one.n_events} events; {what}", fontsize=STYLE["legend.fontsize"])
    handles, labels = panels[0].get_legend_handles_labels()
    # The histogram is drawn first and named last.
    figure.legend([*handles[1:], handles[0]], [*labels[1:], labels[0]], loc="outside upper center", ncols=3)
    return figure


def _range(shares: Sequence[Share], *, of_particles: bool) -> tuple[float, float]:
    """Return the ends of the vertical axis: efficiencies are seen from near their lowest, rates from 0."""
    values = np.concatenate([share.value for share in shares])
    if not of_particles:
        return 0.0, min(1.08, 1.6 * max(0.01, float(values.max(initial=0))))
    low = max(0.0, np.floor(10 * float(values.min(initial=1)) - 1) / 10)
    return low, 1 + 0.08 * (1 - low)


def _denominator(profile: Profile, rate: str) -> NDArray[np.int64]:
    return profile.targets if "efficiency" in rate else profile.tracks


def _drawn(profile: Profile, rate: str) -> tuple[NDArray[np.int64], Share]:
    """Return the bins that are drawn, and their shares."""
    bins = np.flatnonzero(_denominator(profile, rate) >= MIN_IN_BIN)
    share: Share = getattr(profile.rates, rate)
    return bins, Share(value=share.value[bins], low=share.low[bins], high=share.high[bins])


def _draw_frame(axes: Axes, *, profile: Profile, of_particles: bool, low: float, high: float) -> None:
    axis = profile.axis
    number = profile.targets if of_particles else profile.tracks
    name = "targets" if of_particles else "tracks"
    height = low + 0.3 * (high - low) * number / max(1, number.max())
    axes.stairs(height, axis.edges, baseline=low, fill=True, color="0.9", label=name)
    if axis.log:
        axes.set_xscale("log")
    filled = np.flatnonzero(number) if number.any() else np.arange(axis.n_bins)
    axes.set_xlim(axis.edges[filled[0]], axis.edges[filled[-1] + 1])
    axes.set_ylim(low - 0.015 * (high - low), high)
    unit = f" [{axis.unit}]" if axis.unit else ""
    axes.set_xlabel(("true " if of_particles else "leading particle's ") + axis.label + unit)


def _draw_points(
    axes: Axes, *, profile: Profile, rate: str, label: str, marker: str, place_in_bin: float
) -> None:
    bins, share = _drawn(profile, rate)
    edges = np.array(profile.axis.edges)
    low, high = edges[bins], edges[bins + 1]
    if profile.axis.log:
        centre = low ** (1 - place_in_bin) * high**place_in_bin
    else:
        centre = (1 - place_in_bin) * low + place_in_bin * high
    axes.errorbar(
        centre,
        share.value,
        xerr=np.stack([centre - low, high - centre]),
        yerr=np.stack([share.value - share.low, share.high - share.value]),
        linestyle="none",
        elinewidth=1.3,
        marker=marker,
        markersize=4.5,
        label=label,
    )
