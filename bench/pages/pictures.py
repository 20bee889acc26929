"""Pictures of measurements, as sources of images in a page: bars of ratios, and lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tritrack.bench.pages.page import svg_uri

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Any: matplotlib names its settings one by one in newer versions, as str in older.
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    # Okabe and Ito's colours, which the colour-blind tell apart.
    "axes.prop_cycle": cycler(
        color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
    ),
    "svg.hashsalt": "tritrack",  # the same picture is the same file
}
_MARKERS = "os^Dv<>"
_MOST_MARKERS = 30
"""Points of a series beyond which markers would hide its line."""

_FEW_DECADES = 2.0
"""Decades of a logarithmic axis below which ticks at powers of ten alone would be one or two."""

_PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one name, in the order given.

    Attributes
    ----------
    name
        In the legend.
    x, y
        Of the points.
    law
        Two points or more of a line that is drawn instead of one through the points: x and y.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    law: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def lines(series: Sequence[Series], *, x: str, y: str, log_x: bool = False, log_y: bool = False) -> str:
    """Draw series against each other; ``x`` and ``y`` name the axes with their units."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=4.2)
        for number, each in enumerate(series):
            marker = _MARKERS[number % len(_MARKERS)] if len(each.x) <= _MOST_MARKERS else None
            style = "-" if each.law is None else "none"
            (drawn,) = axes.plot(each.x, each.y, marker=marker, ms=5, linestyle=style, label=each.name)
            if each.law is not None:
                axes.plot(*each.law, color=drawn.get_color(), linewidth=1.2)
        for axis, log, name in ((axes.xaxis, log_x, x), (axes.yaxis, log_y, y)):
            axis.set_label_text(name)
            if log:
                axis.axes.set(**{f"{axis.axis_name}scale": "log"})
                low, high = axis.get_data_interval()
                axis.set_major_locator(
                    LogLocator(subs=(1, 2, 5) if np.log10(high / low) < _FEW_DECADES else (1,))
                )
                axis.set_minor_formatter(NullFormatter())
            else:
                axis.set_major_locator(_few_ticks())
            axis.set_major_formatter(_PLAIN)
        if not log_y:
            axes.set_ylim(bottom=0)
        _add_legend(figure, most_columns=4 if len(series) == 4 else 3)  # no last row of one alone
        return svg_uri(figure)


def bars(groups: Mapping[str, Mapping[str, float]], *, x: str) -> str:
    """Draw a bar for each name in each group, by group from above, and a line at 1; ``x`` names the axis."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=1.2 + 0.24 * len(groups) * (len(names) + 1))
        height = 1 / (len(names) + 1)
        for number, name in enumerate(names):
            there = [(place, group[name]) for place, group in enumerate(groups.values()) if name in group]
            place, width = np.array(there).T
            middle = place + (number - (len(names) - 1) / 2) * height
            drawn = axes.barh(middle, width, height=0.9 * height, label=name)
            # On white, or the line at 1 would strike through what is a little less.
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=9, bbox=paper)
        axes.axvline(1, color="0.2", linewidth=1)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(_few_ticks())
        axes.xaxis.set_major_formatter(_PLAIN)
        _add_legend(figure, most_columns=2)
        return svg_uri(figure)


def _figure(*, height: float) -> tuple[Figure, Any]:
    # Small paper makes large letters: one picture must be read on a phone.
    figure = Figure(figsize=(5.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _few_ticks() -> MaxNLocator:
    return MaxNLocator(nbins=6, steps=[1, 2, 5, 10])


def _add_legend(figure: Figure, *, most_columns: int) -> None:
    """Put the legend above the picture, in as many columns as the paper is wide for."""
    for columns in range(most_columns, 0, -1):
        legend = figure.legend(loc="outside upper center", ncols=columns, fontsize=9.5)
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        if columns > 1:
            legend.remove()
