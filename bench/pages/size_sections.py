"""The sections of how costs grow with an event, and of how far they are from what the machine allows."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tritrack.bench.pages.page import plots, table
from tritrack.bench.pages.pictures import Series, lines
from tritrack.bench.pages.sections import sentence

if TYPE_CHECKING:
    from tritrack.bench.costs.sizes import Axis
    from tritrack.bench.floors import Result as Floors
    from tritrack.bench.scaling import Fit, Quantity, Rows
    from tritrack.bench.scaling import Result as Scaling

_AXES: dict[Axis, str] = {
    "phi": "more of the detector, at one density",
    "density": "more collisions in the whole detector",
}
_DRAWN: dict[Quantity, tuple[str, float]] = {"seconds": ("time [s]", 1.0), "bytes": ("memory [MB]", 1e-6)}


def scaling(result: Scaling) -> str:
    """Return what `tritrack.bench.scaling` measured."""
    parts = []
    for axis, meaning in _AXES.items():
        points = [point for point in result.points if axis in point.axes]
        if not points:
            continue
        n_hits = [point.n_hits for point in points]
        rounds = max(point.n_rounds for point in points)
        parts.append(
            f"<h3>{escape(axis)}: {meaning}</h3><p class='note'>n = {len(points)} events of {min(n_hits):,} to "
            f"{max(n_hits):,} hits; of times, as of this machine, the middle of {rounds} rounds; memory once.</p>"
        )
        if len(points) > 1:
            pictures = [
                (f"{what} against hits, {axis}", _picture(result, axis, quantity, what, scale))
                for quantity, (what, scale) in _DRAWN.items()
            ]
            parts += [plots(pictures), _exponents(result, axis)]
        refused = [point for point in points if point.memory.refused is not None]
        parts += [sentence(f"{point.n_hits:,} hits: {point.memory.refused}") for point in refused]
    rows = [
        [
            f"{row.memory_gb:g}",
            f"{row.n_hits:,}",
            "extrapolated" if row.extrapolated else "",
            "over the model's limit" if row.over_limit else "",
        ]
        for row in result.largest
    ]
    if rows:
        parts.append(f"<h3>The largest event of a memory</h3>{table(['GB', 'hits', '', ''], rows)}")
    return "".join(parts)


def _picture(result: Scaling, axis: Axis, quantity: Quantity, what: str, scale: float) -> str:
    laws = {fit.stage: fit.law for fit in _fits(result, axis, quantity)}
    points = [point for point in result.points if axis in point.axes]
    series = []
    for stage in dict.fromkeys(stage for point in points for stage in point.seconds):
        told = [(float(point.n_hits), cost) for point in points if (cost := point.cost(stage, quantity))]
        if not told:
            continue
        x, y = zip(*sorted(told), strict=True)
        law = laws.get(stage)
        ends = None if law is None else (law.smallest, law.largest)
        series.append(
            Series(
                name=stage if law is None else f"{stage}: {law.exponent:.2f}",
                x=x,
                y=tuple(scale * cost for cost in y),
                law=None
                if law is None or ends is None
                else (ends, tuple(scale * law.at(end) for end in ends)),
            )
        )
    return lines(series, x="hits", y=what, log_x=True, log_y=True)


def _fits(result: Scaling, axis: Axis, quantity: Quantity, against: Rows = "n_hits") -> list[Fit]:
    """Return the law of each stage through its larger events, through all where those are too few."""
    laws: dict[str, Fit] = {}
    for fit in sorted(result.fits, key=lambda fit: fit.from_hits):
        if (fit.axis, fit.quantity, fit.against) == (axis, quantity, against):
            laws[fit.stage] = fit
    return list(laws.values())


def _exponents(result: Scaling, axis: Axis) -> str:
    rows = []
    for against in ("n_hits", "n_pairs", "n_edges"):
        times = {fit.stage: fit for fit in _fits(result, axis, "seconds", against)}
        memories = {fit.stage: fit for fit in _fits(result, axis, "bytes", against)}
        rows += [
            [
                f"{escape(stage)} by {against.removeprefix('n_')}",
                *(_exponent(laws.get(stage)) for laws in (times, memories)),
            ]
            for stage in dict.fromkeys((*times, *memories))
        ]
    return table(["cost grows with the power", "of time", "of memory"], rows) if rows else ""


def _exponent(fit: Fit | None) -> str:
    if fit is None:
        return ""
    error = "" if fit.law.error is None else f" ± {fit.law.error:.2f}"
    return (
        f"{fit.law.exponent:.2f}{error}<small>n = {fit.law.n_points}, from {fit.law.smallest:,.0f} on</small>"
    )


def floors(result: Floors) -> str:
    """Return what `tritrack.bench.floors` measured."""
    reached = [
        [
            f"{machine.device}, {machine.clock} time",
            f"{np.median(machine.bandwidth) / 1e9:.1f}",
            _best(machine.rates),
        ]
        for machine in result.machines
    ]
    rows = [
        [
            f"{escape(row.stage)} on {row.device}<small>event {row.event_id}, {row.n_hits:,} hits</small>",
            f"{_ms(row.seconds)}<small>n = {len(row.seconds)}</small>",
            _ms(row.floor_seconds),
            _ms(row.unfused_seconds) if row.unfused_seconds else "",
            escape(row.bound),
            f"{100 * row.fraction:.1f} %",
            "" if row.cpu_fraction is None else f"{100 * row.cpu_fraction:.1f} %",
        ]
        for row in result.rows
    ]
    heads = ["stage", "time, ms", "floor, ms", "unfused, ms", "set by", "reached", "by processor time"]
    gaps = [
        f"<li>{escape(gap.stage)} on {gap.device}: {1e3 * gap.seconds:,.0f} ms above its floor, {gap.factor:.1f} times as "
        "long</li>"
        for gap in result.gaps
    ]
    return (
        "<p class='note'>Medians of rounds. Times and rates as of this machine; what is reached is a ratio within each "
        "round.</p>"
        f"{table(heads, rows)}<h3>What the machine reached</h3>"
        f"{table(['device', 'GB/s', 'best products, GFLOP/s'], reached)}"
        f"<h3>The largest gaps</h3><ol>{''.join(gaps)}</ol>"
    )


def _ms(seconds: tuple[float, ...]) -> str:
    median = 1e3 * float(np.median(seconds))
    return f"{median:,.0f}" if median >= 100 else f"{median:.3g}"


def _best(rates: dict[str, tuple[float, ...]]) -> str:
    name = max(rates, key=lambda one: float(np.median(rates[one])))
    return f"{np.median(rates[name]) / 1e9:.1f}<small>{escape(name)}</small>"
