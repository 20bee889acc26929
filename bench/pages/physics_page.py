"""Plots and a page of measurements: ``python -m tritrack.bench.pages.physics_page RESULT.json... --out FOLDER``.

Takes what `tritrack.bench.physics` wrote, one file a set of events, and writes ``FOLDER/physics.html``, which
holds its pictures in itself, and the pictures as PNG in a folder for each set.
"""

from __future__ import annotations

from html import escape
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer

from tritrack.bench.pages.page import plots, png_uri, share_cell, table, write_html
from tritrack.failures import one_sentence
from tritrack.physics.axes import AXES
from tritrack.physics.metrics import Report
from tritrack.physics.plots import write_plots

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE_FILE = "physics.html"
RATES = {
    "efficiency": "Efficiency",
    "fake_rate": "Fakes",
    "unmatched_rate": "Unmatched",
    "duplicate_rate": "Duplicates",
    "fragment_rate": "Fragments",
    "perfect_efficiency": "Perfect efficiency",
    "lhc_efficiency": "LHC efficiency (75 %)",
}
"""The rates of the tables, in order, with their names there."""
_OF_TRACKS = ("fake_rate", "unmatched_rate", "duplicate_rate")
"""Of the rates over tracks, which are the same for all selections, those that are drawn."""


def write_page(results: Sequence[Path], *, out: Path) -> Path:
    """Write plots and page.

    Parameters
    ----------
    results
        JSON files of `tritrack.bench.physics`, one for each set of events.
    out
        Folder for page and pictures; made where it is missing.

    Returns
    -------
    Path
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = [msgspec.json.decode(path.read_bytes()) for path in results]
    body = []
    for number, result in enumerate(found, start=1):
        body.append(_section(result, pictures=out / f"plots-{number}"))
    selections = [
        f"<li>{escape(name)}: {escape(meaning)}</li>" for name, meaning in _selections(found).items()
    ]
    page = out / PAGE_FILE
    write_html(
        page,
        title="Track finding: graph network and Kalman filter",
        body="<h1>Track finding: tritrack beside ACTS' Kalman filter</h1>"
        "<p>Both finders ran on the same events and the same hits. Matched is a track by double majority; "
        "intervals are 68 % Clopper-Pearson.</p>"
        f"<ul>{''.join(selections)}</ul>"
        f"{summary(found)}{''.join(body)}{_definitions(found)}",
    )
    return page


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Return what most readers want, of all sets of events."""
    rows = []
    for result in results:
        for name in result["threads"]:
            rows.append([escape(_title(result)), escape(name), *_summary_cells(result, name)])
    heads = ["events", "finder", *(f"efficiency, {key}" for key in _selections(results))]
    return table([*heads, *(RATES[rate].lower() for rate in _OF_TRACKS), "s an event"], rows)


def _summary_cells(result: dict[str, Any], name: str) -> list[str]:
    if name not in result["finders"]:
        refused = sum(row["finders"][name]["refused"] is not None for row in result["events"])
        return [f"refuses {refused} of {len(result['events'])} events"]
    reports = result["finders"][name]["reports"]
    first = next(iter(reports.values()))
    return [
        *(share_cell(report["efficiency"]) for report in reports.values()),
        *(share_cell(first[rate]) for rate in _OF_TRACKS),
        _seconds(result, name),
    ]


def _selections(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {name: meaning for result in results for name, meaning in result["selections"].items()}


def _title(result: dict[str, Any]) -> str:
    return result["title"] or f"{len(result['events'])} events"


def _section(result: dict[str, Any], *, pictures: Path) -> str:
    hits = [row["n_hits"] for row in result["events"]]
    counted = (
        f"<p>{len(hits)} events of {min(hits, default=0):,} to {max(hits, default=0):,} hits; judged are "
        f"{result['n_judged']} that every finder below takes.</p>"
    )
    parts = [f"<h2>{escape(_title(result))}</h2>", counted, _refusals(result)]
    if result["finders"]:
        parts += [
            _rates(result),
            _plots(result, pictures),
            _losses(result),
            _edges(result),
        ]
    return "".join([*parts, _times(result), _provenance(result)])


def _refusals(result: dict[str, Any]) -> str:
    refused = [
        (name, row["event_id"], outcome["refused"])
        for row in result["events"]
        for name, outcome in row["finders"].items()
        if outcome["refused"]
    ]
    if not refused:
        return ""
    n_events = len(result["events"])
    numbers = [
        f"{sum(name == one for one, _, _ in refused)} of {n_events} by {escape(name)}"
        for name in dict.fromkeys(name for name, _, _ in refused)
    ]
    items = [f"<li>event {event} by {escape(name)}: {escape(reason)}</li>" for name, event, reason in refused]
    return (
        f"<div class='refused'><p>Refused, and in none of the rates: {', '.join(numbers)}.</p>"
        f"<ul>{''.join(items)}</ul></div>"
    )


def _rates(result: dict[str, Any]) -> str:
    finders = result["finders"]
    rows = []
    for key, name in RATES.items():
        # Rates of tracks are the same whatever the selection of particles.
        for selection in result["selections"] if "efficiency" in key else list(result["selections"])[:1]:
            label = f"{name}, {selection}" if "efficiency" in key else name
            rows.append([label, *(share_cell(f["reports"][selection][key]) for f in finders.values())])
    for cut in dict.fromkeys(cut for finder in finders.values() for cut in finder["fitted"]):
        fits = (finder["fitted"].get(cut) for finder in finders.values())
        cells = ("not fitted" if fit is None else share_cell(fit["unmatched_rate"]) for fit in fits)
        rows.append([f"Unmatched, fitted {escape(cut)}", *cells])
    for selection in result["selections"]:
        rows.append(
            [
                f"Particles, {selection}",
                *(f"{f['reports'][selection]['n_targets']:,}" for f in finders.values()),
            ]
        )
    first = next(iter(result["selections"]))
    rows.append(["Tracks", *(f"{f['reports'][first]['n_tracks']:,}" for f in finders.values())])
    rows.append(["Median time per event, s", *(_seconds(result, name) for name in finders)])
    return "<h3>What was found</h3>" + table(["", *finders], rows)


def _plots(result: dict[str, Any], pictures: Path) -> str:
    parts = []
    reports = {
        selection: {
            name: Report.from_json(finder["reports"][selection]) for name, finder in result["finders"].items()
        }
        for selection in result["selections"]
    }
    for selection, of_finders in reports.items():
        files = write_plots(reports=of_finders, folder=pictures / selection, rates=["efficiency"], apart=True)
        parts.append(
            f"<h3>Efficiency: {escape(selection)}</h3>{_pictures(files, f'efficiency, {selection}')}"
        )
    of_finders = next(iter(reports.values()))
    for rate in _OF_TRACKS:
        files = write_plots(reports=of_finders, folder=pictures, rates=[rate], apart=True)
        parts.append(f"<h3>{RATES[rate]}</h3>{_pictures(files, RATES[rate].lower())}")
    note = (
        "<p class='note'>Grey: the denominator (of the first finder), in no scale. Bins with fewer than 5 entries "
        "are not drawn; the first and the last bin hold what lies beyond. Fakes, unmatched and duplicate tracks "
        "stand at the values of the particle with most of their hits.</p>"
    )
    return "".join(parts) + note


def _pictures(files: Iterable[Path], what: str) -> str:
    return plots(
        (f"{what} against {axis.name}", png_uri(file.read_bytes()))
        for file, axis in zip(files, AXES, strict=True)
    )


def _losses(result: dict[str, Any]) -> str:
    parts = []
    for name, finder in result["finders"].items():
        losses = finder["losses"]
        if not losses:
            continue
        stages = next(iter(losses.values()))["lost"]
        rows = [
            [stage, *(_lost(of_selection["lost"][stage]) for of_selection in losses.values())]
            for stage in stages
        ]
        rows.append(["all", *(f"{entry['n_lost']:,} of {entry['n_targets']:,}" for entry in losses.values())])
        parts.append(f"<h3>Where {escape(name)} lost them</h3>{table(['stage', *losses], rows)}")
    return "".join(parts)


def _lost(entry: dict[str, Any]) -> str:
    return f"{entry['n']:,} = {share_cell(entry['share'])}"


def _edges(result: dict[str, Any]) -> str:
    parts = []
    for name, finder in result["finders"].items():
        if not finder["edges"]:
            continue
        rows = [
            [
                stage,
                f"{views['targets']['n_edges'] / views['targets']['n_events']:,.0f}",
                *(share_cell(views[selection]["edge_efficiency"]) for selection in result["selections"]),
                share_cell(views["targets"]["edge_efficiency_all"]),
                share_cell(views["targets"]["edge_purity"]),
                share_cell(views["targets_skip_one"]["edge_purity"]),
            ]
            for stage, views in finder["edges"].items()
        ]
        heads = ["after", "edges an event", *(f"efficiency, {key}" for key in result["selections"])]
        heads += ["efficiency, all particles", "purity", "purity, one hit skipped"]
        parts.append(f"<h3>Edges of {escape(name)}</h3>{table(heads, rows)}")
    return "".join(parts)


def _judged(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return what a finder did with each event that is judged: which all finders take that take any."""
    rows = [row["finders"] for row in result["events"]]
    taking = [each for each in result["threads"] if any(row[each]["refused"] is None for row in rows)]
    return [
        row[name] for row in rows if name in taking and all(row[each]["refused"] is None for each in taking)
    ]


def _times(result: dict[str, Any]) -> str:
    parts = []
    for name, threads in result["threads"].items():
        runs = _judged(result, name)
        if not runs:
            continue
        rows = [[step, *_spread([run["seconds"][step] for run in runs])] for step in runs[0]["seconds"]]
        rows.append(["all steps", *_spread([sum(run["seconds"].values()) for run in runs])])
        rows.append(["all steps, processor time", *_spread([run["cpu_seconds"] for run in runs])])
        if any(run["conversion_seconds"] for run in runs):
            rows.append(["besides: handing over", *_spread([run["conversion_seconds"] for run in runs])])
        title = f"{escape(name)}, {threads} thread{'s' if threads > 1 else ''}, {len(runs)} events"
        parts.append(f"<h3>Time: {title}</h3>" + table(["s", "median", "least", "most"], rows))
    return "".join(parts)


def _spread(seconds: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in (np.median(seconds), min(seconds), max(seconds))]


def _seconds(result: dict[str, Any], name: str) -> str:
    runs = _judged(result, name)
    threads = result["threads"][name]
    median = np.median([sum(run["seconds"].values()) for run in runs])
    processor = np.median([run["cpu_seconds"] for run in runs])
    return f"{median:.2f}<small>{threads} thread{'s' if threads > 1 else ''}, {processor:.2f} s of processor</small>"


def _provenance(result: dict[str, Any]) -> str:
    card, machine = result["card"], result["machine"]
    settings = ", ".join(f"{key} = {_plain(value)}" for key, value in result["ckf"]["settings"].items())
    cuts = ", ".join(f"{key} = {_plain(value)}" for key, value in result["cuts"].items())
    versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    return (
        "<h3>With what</h3><dl>"
        f"<dt>Model</dt><dd>{escape(card['name'])}, card <code>{escape(card['sha256'])}</code>; "
        f"working point “{escape(result['working_point'])}”: {escape(cuts)}</dd>"
        f"<dt>Kalman filter (working point “{escape(result['ckf']['working_point'])}”; mm, GeV)</dt>"
        f"<dd>{escape(settings)}; two-way, seed deduplication, stay on seed; 2 T, exact detector</dd>"
        f"<dt>Machine</dt><dd>{escape(machine['cpu'])}, {machine['cores']} cores</dd>"
        f"<dt>Versions</dt><dd>{escape(versions)}</dd></dl>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, dict):
        return f"({', '.join(f'{key} = {_plain(part)}' for key, part in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _definitions(results: Sequence[dict[str, Any]]) -> str:
    terms = {f"Selection “{name}”": meaning for name, meaning in _selections(results).items()} | {
        "Matched (double majority)": "more than half of the track's hits are one particle's, and more than half "
        "of that particle's hits are in the track.",
        "Efficiency": "selected particles with a matched track / selected particles. Perfect: all of its hits and "
        "no other. LHC: at least 75 % of the track's hits are the particle's.",
        "Fake, duplicate, fragment": "of all tracks with at least 5 hits, whatever the selection: no particle has "
        "more than half of the hits; the particle that has is matched by another track; it is matched by none. "
        "Unmatched is all three together.",
        "Unmatched, fitted pT > 1 GeV": "the same share among the Kalman filter's tracks with such a fit, "
        "as fake rates of Kalman filters are often given. The chain fits no momentum.",
        "Where particles were lost": "a particle is within reach of a graph while more than half of its hits hang "
        "together by edges between its own hits. A lost one is the first stage's that puts it out of reach; "
        "one still within reach after the GNN's cut is lost by the labelling.",
        "Edge efficiency, purity": "share of the pairs of hits that follow each other on a particle that are "
        "edges; share of the edges that are such pairs. The networks keep pairs that leave out one hit on "
        "purpose: the last column counts these as true.",
        "Time": "wall time of the finder alone, events in memory, after a warm-up (processor time tells more "
        "where others used the machine); the Kalman filter's is space "
        "points, seeds, their parameters, the filter, and ambiguity solving.",
        "What the finders know": "the chain gets x, y, z of each hit. The Kalman filter gets the local "
        "measurements with their variances, the exact modules and material, and the field; it looks for tracks "
        "from 0.9 GeV and with at least 7 measurements, while the chain looks for all.",
    }  # fmt: skip
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return f"<h2>Definitions</h2><dl>{items}</dl>"


def main(
    results: Annotated[list[Path], typer.Argument(help="JSON files of tritrack.bench.physics.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for page and pictures.")],
) -> None:
    """Make plots and one page of measurements."""
    print(f"{write_page(results, out=out)}: written")


if __name__ == "__main__":
    with one_sentence(extra="plots"):
        typer.run(main)
