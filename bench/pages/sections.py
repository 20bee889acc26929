"""The sections of the page of measurements: of each measurement, one function from its result to HTML."""

from __future__ import annotations

from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.bench.engine_rows import CHAIN, OURS, PLAIN, REFERENCE
from tritrack.bench.pages.page import plots, png_uri, table
from tritrack.bench.pages.physics_page import summary
from tritrack.bench.pages.pictures import bars
from tritrack.bench.quantiles import quantile
from tritrack.physics.axes import AXES
from tritrack.physics.metrics import Report
from tritrack.physics.plots import write_plots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.bench.engine_rows import Result as Engines
    from tritrack.bench.result import Header, Measured

TOO_FEW = "<small>too few samples</small>"


def headers(found: Mapping[str, Header]) -> str:
    """Return what the results, by name, were made with."""
    rows = [
        [
            name,
            escape(f"{head.cpu}, {head.cores} cores"),
            str(head.threads),
            f"{escape(str(head.model))}<small>{escape(str(head.card_sha256)[:12])}</small>",
            escape(str(head.working_point)),
        ]
        for name, head in found.items()
    ]
    versions: dict[str, dict[str, None]] = {}
    for head in found.values():
        for package, version in head.versions.items():
            versions.setdefault(package, {})[version] = None
    listed = ", ".join(f"{package} {' and '.join(some)}" for package, some in versions.items())
    heads = ["result", "machine", "threads", "model, card", "working point"]
    return f"{table(heads, rows)}<p class='note'>{escape(listed)}</p>"


def ratios(result: Measured) -> str:
    """Return the ratios of any measurement."""
    rows = [[escape(name), f"{ratio:.3g}"] for name, ratio in result.ratios().items()]
    return (
        table(["ratio within one run", ""], rows)
        if rows
        else sentence("Its samples are too few for any ratio.")
    )


def engines(result: Engines) -> str:
    """Return what `tritrack.bench.engines` measured."""
    here = [row.engine for row in result.engines if row.missing is None]
    parts = []
    for events in dict.fromkeys(events for events, _ in result.places()):
        stages = [stage for some, stage in result.places() if some == events]
        rows = [[escape(name), *_engine_cells(result, events, stages, name)] for name in here]
        heads = ["engine", *stages, "largest deviation", "other tracks"]
        some = result.times_of(events, CHAIN, REFERENCE)
        hits = [row.n_hits for row in some]
        parts.append(
            f"<h3>{escape(events)}, {len(some)} of its events: {min(hits):,} to {max(hits):,} hits</h3>"
            f"<p class='note'>n = {sum(len(row.seconds) for row in some)}: {len(some[0].seconds)} rounds on each event. Large: times as fast "
            "as torch, by processor time (of an engine on a GPU: by wall time), median. Small: wall time as of this "
            f"machine.</p>{table(heads, rows)}"
        )
        parts.append(plots(_gains_picture(result, events, stages, here)))
    missing = [[escape(row.engine), escape(row.missing)] for row in result.engines if row.missing is not None]
    if missing:
        parts.append(f"<h3>Not measured</h3>{table(['engine', 'why'], missing)}")
    return "".join([*parts, _engine_costs(result, here)])


def _engine_cells(result: Engines, events: str, stages: Sequence[str], engine: str) -> list[str]:
    cells = []
    for stage in stages:
        gain = quantile(result.gains(events, stage, engine), 0.5)
        seconds = np.concatenate([row.seconds for row in result.times_of(events, stage, engine)])
        cells.append((TOO_FEW if gain is None else f"{gain:.2f}") + _quantiles(seconds))
    of_networks = [row for stage in stages for row in result.times_of(events, stage, engine)]
    deviations = [row.deviation for row in of_networks if row.deviation is not None]
    others = [row.other_tracks for row in of_networks if row.other_tracks is not None]
    return [*cells, f"{max(deviations, default=0.0):.1e}", f"{100 * max(others, default=0.0):.2f} %"]


def _quantiles(seconds: NDArray[np.float64]) -> str:
    found = {name: quantile(seconds, q) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return "".join(
        f"<small>{name} {_ms(value)}</small>" for name, value in found.items() if value is not None
    )


def _gains_picture(
    result: Engines, events: str, stages: Sequence[str], here: Iterable[str]
) -> list[tuple[str, str]]:
    gains = {
        stage: {
            name: gain
            for name in here
            if name != REFERENCE and (gain := quantile(result.gains(events, stage, name), 0.5)) is not None
        }
        for stage in stages
    }
    if not any(gains.values()):
        return []
    pictures = [(f"{events}: times as fast as torch", bars(gains, x="times as fast as torch"))]
    ours = {
        stage: {f"{OURS} by plain export": gain}
        for stage in stages
        if (gain := quantile(result.gains(events, stage, OURS, over=PLAIN), 0.5)) is not None
    }
    if ours:
        shown = f"{events}: ours by the plain export"
        pictures.append((shown, bars(ours, x="times as fast as the plain ONNX export")))
    return pictures


def _engine_costs(result: Engines, here: Iterable[str]) -> str:
    rows = []
    for row in (row for row in result.engines if row.engine in here):
        first = [time for time in result.times if (time.engine, time.stage) == (row.engine, CHAIN)]
        extra = [time.first_seconds - float(np.median(time.seconds)) for time in first]
        rows.append(
            [
                escape(row.engine),
                f"{sum(row.load_seconds.values()):.2f}",
                f"{sum(row.warm_up_seconds.values()):.2f}",
                f"{max(extra, default=0.0):.2f}",
            ]
        )
    heads = ["engine", "load or export, s", "first calls, s", "a first event more than later ones, s"]
    return (
        "<h3>What it costs before the first event</h3><p class='note'>Wall time, once, as of this machine. First calls: "
        f"the gates' cases of all three networks.</p>{table(heads, rows)}"
    )


def physics(found: Sequence[dict[str, Any]]) -> str:
    """Return what `tritrack.bench.physics` found, a set of events each."""
    parts = [
        "<p class='note'>Intervals: 68 % Clopper-Pearson. Times: wall, as of this machine.</p>",
        summary(found),
    ]
    for result in found:
        if not result["finders"]:
            continue
        selection = next(iter(result["selections"]))
        reports = {
            name: Report.from_json(finder["reports"][selection]) for name, finder in result["finders"].items()
        }
        title = escape(result["title"] or f"{len(result['events'])} events")
        parts.append(
            f"<h3>Efficiency, {title}: {result['n_judged']} events, "
            f"{escape(result['selections'][selection])}</h3>"
        )
        with TemporaryDirectory() as folder:
            files = write_plots(reports=reports, folder=Path(folder), rates=["efficiency"], apart=True)
            images = [png_uri(file.read_bytes()) for file in files]
        shown = [f"efficiency against {axis.name}" for axis in AXES]
        parts.append(plots(zip(shown, images, strict=True)))
    return "".join(parts)


def sentence(text: str) -> str:
    """Return a sentence in the place of what is not there."""
    return f"<p class='missing'>{escape(text)}</p>"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
