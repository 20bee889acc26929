"""The commands that run things: a server, a load on a server, evaluation."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritrack.ensemble_repo.plan import IN_FLIGHT
from tritrack.failures import FAILED, UsageError
from tritrack.options import Header, Model, Tls, TlsCa, Url, read_access
from tritrack.service.errors import ServerStartError
from tritrack.stages.card import ENSEMBLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tritrack.physics.metrics import Report

# Libraries are imported inside each command, so that a client without extras has every --help.

console = Console(highlight=False, soft_wrap=True)

Events = Annotated[
    list[Path],
    typer.Argument(help="Parquet events, folders of them, or TrackML event*-hits.csv(.gz) files."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def serve(
    repository: Annotated[Path, typer.Argument(help="Folder of the model repository.")],
    *,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for HTTP; a free one if not given.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for gRPC; a free one if not given.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for metrics; a free one if not given.")
    ] = None,
    tritonserver: Annotated[
        Path | None,
        typer.Option(help="The server to run; else /opt/tritonserver, PATH, the nvidia-pytriton wheel."),
    ] = None,
    model: Annotated[
        list[str],
        typer.Option(
            help="Load this model alone (an ensemble with its steps); may be given again. All if not given."
        ),
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    in_flight: Annotated[
        int,
        typer.Option(
            min=1, help="Events at the model's limits that there is room for on a GPU, between the steps."
        ),
    ] = IN_FLIGHT,
    log: Annotated[Path | None, typer.Option(help="File for the server's log.")] = None,
) -> None:
    """Serve a model repository in the foreground; Ctrl-C stops it."""
    from tritrack.service.log import explain
    from tritrack.service.server import Ports, Server

    server = Server(
        repository,
        executable=tritonserver,
        address=address,
        ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port),
        models=model,
        in_flight=in_flight,
        log=log,
    )
    console.print(f"tritonserver from {server.installation.source}: {server.installation.binary}")
    # A service manager's stop is as clean as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with server:
            console.print(f"ready: gRPC {server.url}, HTTP {server.http_url}, metrics {server.metrics_url}")
            status = server.wait()
            reason = explain(server.log())  # its log may be gone once it is stopped
    except KeyboardInterrupt:
        console.print("stopped")
        return
    raise ServerStartError(f"the server ended by itself with status {status}: {reason}")


def load(
    *,
    events: Annotated[
        list[Path],
        typer.Option(help="Events to send in turns: a file or folder, as for find; may be given again."),
    ],
    url: Url = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    header: Header = [],  # noqa: B006 (typer reads it, nothing writes to it)
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    model: Model = ENSEMBLE,
    concurrency: Annotated[
        list[int],
        typer.Option(min=1, help="Clients that wait for each answer (closed loop); may be given again."),
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    rate: Annotated[
        list[float],
        typer.Option(
            help="Events due in a second, whatever the server does (open loop); may be given again."
        ),
    ] = [],  # noqa: B006
    duration: Annotated[float | None, typer.Option(help="Time of each load, in s; 10 if not given.")] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Events of each load, instead of a time.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals, for --rate.")] = 1,
    max_in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests on their way at once, for --rate; no cap if not given."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Time that an event may take, in s.")] = 60.0,
    pid: Annotated[
        int | None,
        typer.Option(min=1, help="Process id of the server, where it is on this machine: watches it, too."),
    ] = None,
    perf_analyzer: Annotated[
        Path | None,
        typer.Option(help="Write the events as an input file of NVIDIA's perf_analyzer, and send nothing."),
    ] = None,
) -> None:
    """Put a server under load and measure its throughput and latency."""
    from tritrack.bench.load import Plan, run_plan
    from tritrack.bench.load_generator.perf_analyzer import write_input
    from tritrack.bench.result import write_result
    from tritrack.events.source import read_all

    hits = [event.hits for event in read_all(events, truth=False)]
    if perf_analyzer is not None:
        write_input(hits, perf_analyzer)
        console.print(f"{perf_analyzer}: written, {len(hits)} events", markup=False)
        return
    if url is None or out is None:
        raise UsageError("load: give --url HOST:PORT and --out FILE.json, or --perf-analyzer FILE.json")
    if bool(concurrency) == bool(rate):
        raise UsageError("load: give either --concurrency or --rate")
    if duration is not None and requests is not None:
        raise UsageError("load: give either --duration or --requests")
    plan = Plan(
        model=model,
        access=read_access(tls=tls, tls_ca=tls_ca, header=header),
        n_clients=tuple(concurrency),
        rates=tuple(rate),
        duration=10.0 if duration is None and requests is None else duration,
        n_requests=requests,
        seed=seed,
        max_in_flight=max_in_flight,
        timeout=timeout,
        pid=pid,
    )
    result = run_plan(url, plan, events=hits, tell=console.print)
    write_result(result, out)
    console.print(f"{out}: written", markup=False)
    if not any(run.n_answered for run in result.loads):
        raise typer.Exit(FAILED)


def evaluate(
    events: Events,
    *,
    tracks: Annotated[Path, typer.Option(help="Track file of the events: .parquet or .csv.")],
    selection: Annotated[str, typer.Option(help="Particles to find: targets or comparison.")] = "targets",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out events that the track file lacks.")
    ] = False,
    as_json: AsJson = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots of the rates.")] = None,
) -> None:
    """Compare tracks with the truth: efficiency, fakes, duplicates, with binomial intervals."""
    from tritrack.events.source import read_all
    from tritrack.events.tracks import MissingEventError, read_tracks
    from tritrack.physics.matching import pairs_from_labels
    from tritrack.physics.metrics import count
    from tritrack.physics.selection import SELECTIONS

    if selection not in SELECTIONS:
        raise UsageError(f"--selection: {selection} given, {' or '.join(SELECTIONS)} wanted")
    if plots is not None:
        from tritrack.physics.plots import write_plots  # a missing library shows before the work
    found = read_tracks(tracks)
    total, n_missing = None, 0
    for event in read_all(events):
        try:
            labels = found.labels_for(event)
        except MissingEventError as error:
            if not skip_missing:
                raise MissingEventError(f"{error}; --skip-missing leaves such events out") from None
            n_missing += 1
            continue
        counts = count(event=event, pairs=pairs_from_labels(labels), selection=SELECTIONS[selection])
        total = counts if total is None else total + counts
    if total is None:
        what = f"{tracks} has none of the events" if n_missing else "the event files hold no events"
        raise UsageError(f"evaluate: {what}")
    report = total.report()
    if plots is not None:
        write_plots(reports={tracks.stem: report}, folder=plots)
    if as_json:
        print(json.dumps(report.to_json() | {"n_missing": n_missing}, indent=2))
        return
    console.print(rates_table(report))
    if n_missing:
        console.print(
            f"left out, since {tracks} lacks them: {n_missing} of {n_missing + report.n_events} events",
            markup=False,
        )


def info(
    *,
    url: Url = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    header: Header = [],  # noqa: B006 (typer reads it, nothing writes to it)
    model: Model = ENSEMBLE,
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    as_json: AsJson = False,
) -> None:
    """Say what is installed here, and what a server serves."""
    from tritrack.installed import describe, describe_server

    facts = describe(engines)
    if url is not None:
        access = read_access(tls=tls, tls_ca=tls_ca, header=header)
        facts |= describe_server(url, model=model, access=access)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None)
    for key, text in _rows("", facts):
        table.add_row(key, Text(text, overflow="fold"))
    console.print(table)


def _rows(name: str, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a row for each dictionary of values; those inside another one carry its name."""
    values = {key: fact for key, fact in facts.items() if not isinstance(fact, dict)}
    texts = {key: f"{fact:.6g}" if isinstance(fact, float) else str(fact) for key, fact in values.items()}
    if name and texts:
        yield name, ", ".join(f"{key} {text}" for key, text in texts.items())
    for key, fact in facts.items():
        if isinstance(fact, dict):
            yield from _rows(f"{name}, {key}" if name else key, fact)
        elif not name:
            yield key, texts[key]


def rates_table(report: Report) -> Table:
    """Return the physics of a finder as a table."""
    table = Table(
        title=f"{report.n_events} events, {report.n_hits} hits, {report.n_tracks} tracks of 5 hits or more, "
        f"{report.n_targets} particles to find ({report.selection})"
    )
    for heading in ("rate", "value", "68 % interval"):
        table.add_column(heading, justify="left" if heading == "rate" else "right")
    for name, rate in report.rates.to_json().items():
        value = "none to count" if rate["value"] is None else f"{rate['value']:.4f}"
        table.add_row(name.replace("_", " "), value, f"{rate['low']:.4f} to {rate['high']:.4f}")
    if report.trackml_score is not None:
        table.add_row("TrackML score", f"{report.trackml_score:.4f}", "")
    return table
