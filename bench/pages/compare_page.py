"""Table and plots of all finders: ``python -m tritrack.bench.pages.compare_page RESULT.json --out FOLDER``.

Takes what `tritrack.bench.compare` wrote and writes ``FOLDER/compare.html``, which holds its pictures in itself, and
the pictures as files in ``FOLDER/compare-plots``.
"""

from __future__ import annotations

from html import escape
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.figure import Figure

from tritrack.bench.compare import Result
from tritrack.bench.load_generator.figures import say_clients
from tritrack.bench.pages.page import plots, png_uri, share_cell, svg_uri, table, write_html
from tritrack.bench.pages.physics_page import RATES
from tritrack.bench.result import read_result
from tritrack.failures import one_sentence
from tritrack.physics.axes import AXES
from tritrack.physics.metrics import Report
from tritrack.physics.plots import MARKERS, STYLE, write_plots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tritrack.bench.compare import MeasuredSet, Row

PAGE_FILE, PLOTS_FOLDER = "compare.html", "compare-plots"
_OF_TRACKS = ("fake_rate", "duplicate_rate", "unmatched_rate")
"""Of the rates over tracks, which are the same for all selections, those of the table."""
_DEFINITIONS = {
    "Efficiency": "selected particles with a track that matches them by double majority / selected particles.",
    "Fakes, duplicates, unmatched": "of all tracks with at least 5 hits: no particle has more than half of the hits; the "
    "particle that has is matched by another track; fakes, duplicates and those whose particle is matched by none.",
    "Time an event": "of a served finder wall time at the one client, from the call to the labels, the server on the same "
    "machine; of the Kalman filter, which is not served, wall time of its algorithms alone in one thread, without the "
    "handing over of hits and tracks. After a warm-up. p50 where the events are enough for one, else the median.",
    "Events a second": "under clients that send their next event when the last one is answered; of the Kalman filter "
    "in one process with one thread, one event after the other: a machine has as many of these as cores.",
    "Memory": "most of all processes at once, looked at every 0.5 s, pages that they share counted once: of a server "
    "that serves the finder alone, or of the Kalman filter's process with its Python.",
    "What the finders know": "the chain and the rules get x, y, z of each hit. The Kalman filter gets the local "
    "measurements with their variances, the exact modules and material, and the field.",
}


def write_page(path: Path, *, out: Path) -> Path:
    """Write plots and page.

    Parameters
    ----------
    path
        JSON file of `tritrack.bench.compare`.
    out
        Folder for page and pictures; made where it is missing.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ResultError
        Where the file holds no such result.
    """
    result = read_result(path, Result)
    selections = "".join(f"<li>{escape(key)}: {escape(what)}</li>" for key, what in result.selections.items())
    sections = "".join(_section(result, some, folder=out / PLOTS_FOLDER / some.name) for some in result.sets)
    definitions = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(what)}</dd>" for key, what in _DEFINITIONS.items()
    )
    page = out / PAGE_FILE
    write_html(
        page,
        title="Track finding: networks, rules, and a Kalman filter",
        body="<h1>Track finding: networks, rules, and a Kalman filter</h1>"
        "<p>All finders ran on the same events. Intervals are 68 % Clopper-Pearson. Selections:</p>"
        f"<ul>{selections}</ul>{finders_table(result)}{_refusals(result)}{sections}"
        f"<h2>Ratios</h2>{_ratios(result)}<h2>Definitions</h2><dl>{definitions}{_provenance(result)}</dl>",
    )
    return page


def finders_table(result: Result) -> str:
    """Return the table of all finders."""
    heads = ["events", "finder", *(f"efficiency, {key}" for key in result.selections)]
    heads += [*(RATES[rate].lower() for rate in _OF_TRACKS), "s an event", "events/s", "memory, GB"]
    return table(heads, [[escape(row.events), escape(row.finder), *_cells(row)] for row in result.rows])


def _cells(row: Row) -> list[str]:
    if not row.reports:
        return ["takes none of the events"]
    first = next(iter(row.reports.values()))
    return [
        *(share_cell(report["efficiency"]) for report in row.reports.values()),
        *(share_cell(first[rate]) for rate in _OF_TRACKS),
        _time_cell(row),
        _rate_cell(row),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f}",
    ]


def _time_cell(row: Row) -> str:
    n_times = sum(map(len, row.seconds))
    if row.p50 is not None:
        return f"{row.p50:.3f}<small>p50 of {n_times}</small>"
    return f"{row.median:.3f}<small>median of {n_times}</small>"


def _rate_cell(row: Row) -> str:
    rates = [rate for rate in row.events_per_s if rate is not None]
    if not rates:
        return f"not measured<small>{escape(row.not_loaded or '')}</small>"
    how = "1 process, 1 thread" if row.n_clients is None else say_clients(row.n_clients)
    return f"{np.mean(rates):.2f}<small>{how}</small>"


def _refusals(result: Result) -> str:
    items = [
        f"<li>{escape(row.events)}, {escape(row.finder)}: {escape(sentence)}</li>"
        for row in result.rows
        for sentence in row.refused
    ]
    if not items:
        return ""
    return f"<div class='refused'><p>Refused, and in none of the rates:</p><ul>{''.join(items)}</ul></div>"


def _section(result: Result, some: MeasuredSet, *, folder: Path) -> str:
    rows = [row for row in result.rows if row.events == some.name and row.reports]
    counted = (
        f"<p>{len(some.n_hits)} events of {min(some.n_hits):,} to {max(some.n_hits):,} hits; judged are "
        f"{some.n_judged} that every finder of the table takes.</p>"
    )
    parts = [f"<h2>{escape(some.name)}</h2>", counted]
    for selection in result.selections if rows else ():
        reports = {row.finder: Report.from_json(row.reports[selection]) for row in rows}
        files = write_plots(reports=reports, folder=folder / selection, rates=["efficiency"], apart=True)
        images = [
            (f"efficiency, {selection}, against {axis.name}", png_uri(file.read_bytes()))
            for file, axis in zip(files, AXES, strict=True)
        ]
        with mpl.rc_context(STYLE):
            figure = draw_trade(rows, reports, selection=selection)
            images.append((f"efficiency, {selection}, against time", svg_uri(figure)))
        parts.append(f"<h3>Efficiency: {escape(selection)}</h3>{plots(images)}")
    return "".join(parts)


def draw_trade(rows: Sequence[Row], reports: Mapping[str, Report], *, selection: str) -> Figure:
    """Draw the efficiency of each finder against its time for an event."""
    figure = Figure(figsize=(5.2, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        efficiency = reports[row.finder].rates.efficiency
        axes.errorbar(
            np.array([row.median], dtype=np.float64),
            [efficiency.value],
            yerr=[[efficiency.value - efficiency.low], [efficiency.high - efficiency.value]],
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            label=row.finder,
        )
    axes.set_xscale("log")
    axes.set_xlabel("time an event [s]")
    axes.set_ylabel(f"efficiency, {selection}")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _ratios(result: Result) -> str:
    rows = [[escape(name), f"{ratio:.2f}"] for name, ratio in result.ratios().items()]
    return table(["above 1: quicker, or more events a second", ""], rows)


def _provenance(result: Result) -> str:
    header = result.header
    versions = ", ".join(f"{key} {value}" for key, value in header.versions.items())
    facts = {
        "Model": f"{header.model}, card {header.card_sha256}; default working point {header.working_point}",
        "Rules": f"{result.rules}, {result.rules_sha256}",
        "Kalman filter": f"ACTS, working point {result.ckf}",
        "Machine": f"{header.cpu}, {header.cores} cores; {header.threads} threads of each step of a server",
        "Versions": versions,
    }
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(what)}</dd>" for key, what in facts.items())


def main(
    result: Annotated[Path, typer.Argument(help="JSON file of tritrack.bench.compare.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for page and pictures.")],
) -> None:
    """Make the table, the plots and one page of a comparison."""
    print(f"{write_page(result, out=out)}: written")


if __name__ == "__main__":
    with one_sentence(extra="plots"):
        typer.run(main)
