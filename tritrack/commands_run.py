"""The commands that run things: a server, the finding of tracks, a load on a server, evaluation."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritrack.ensemble_repo.plan import IN_FLIGHT
from tritrack.events.event import EventError
from tritrack.failures import FAILED, UsageError
from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError, ServerStartError
from tritrack.stages.card import ENSEMBLE, WorkingPointName
from tritrack.stages.contract import FIT_STEP, FITTED, HITS, TRACK_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.events.tracks import TrackWriter
    from tritrack.physics.fitted import FittedWriter
    from tritrack.physics.metrics import Report

    Found = NDArray[np.int64] | EventRefusedError
    Fit = Callable[[Event, NDArray[np.int64]], NDArray[np.float32]]

# Libraries are imported inside each command, so that a client without extras has every --help.

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

FinderName = Literal["chain", "rules"]
Events = Annotated[
    list[Path],
    typer.Argument(help="Parquet events, folders of them, or TrackML event*-hits.csv(.gz) files."),
]
Model = Annotated[str, typer.Option(help="Name of the server's model at its default working point.")]
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


def find(
    events: Events,
    *,
    out: Annotated[Path, typer.Option(help="Track file: .parquet, or .csv for a TrackML submission.")],
    url: Annotated[str | None, typer.Option(help="HOST:PORT of a server's gRPC service.")] = None,
    model: Model = ENSEMBLE,
    local: Annotated[
        bool, typer.Option("--local", help="Run the same finder in process, without a server.")
    ] = False,
    finder: Annotated[
        FinderName, typer.Option(help="The chain of networks, or the rule-based finder (with --local).")
    ] = "chain",
    rules: Annotated[
        Path, typer.Option(help="Folder of the rules, for --local with --finder rules or --fitted.")
    ] = Path("weights/rules"),
    fitted: Annotated[
        Path | None,
        typer.Option(help="Also fit a helix to each track, and write them to this .parquet file."),
    ] = None,
    working_point: Annotated[
        WorkingPointName | None,
        typer.Option(help="What to trade: time for efficiency; the model's default if not given."),
    ] = None,
    engines: Annotated[Path, typer.Option(help="Folder of engines, for --local.")] = Path("build/engines"),
    threads: Annotated[int, typer.Option(min=1, help="Threads of the chain, for --local.")] = 2,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Time a server may take for an event, in s.")
    ] = 60.0,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests on their way to a server at once.")] = 2,
    pack_hits: Annotated[
        int | None,
        typer.Option(min=1, help="Send several events in one request, of so many hits together at most."),
    ] = None,
) -> None:
    """Find the tracks of events, through a server or in process."""
    from tritrack.events.source import check_numbers, read_all
    from tritrack.events.tracks import write_tracks
    from tritrack.physics.fitted import write_fitted

    if (url is None) != local:
        raise UsageError("find: give either --url HOST:PORT or --local")
    if finder == "rules" and (not local or working_point is not None):
        raise UsageError(
            "find: --finder rules runs with --local, and has no working points; on a server it is "
            "--model rule_finder"
        )
    _check_files(out, fitted)
    check_numbers(events)
    source, sent = itertools.tee(read_all(events))
    with contextlib.ExitStack() as stack:
        tracks = stack.enter_context(write_tracks(out))
        fits = None if fitted is None else stack.enter_context(write_fitted(fitted))
        fit = None if fitted is None else stack.enter_context(_fitting(url, rules=rules, timeout=timeout))
        if url is not None:
            results = _find_remote(
                source,
                url=url,
                model=model,
                timeout=timeout,
                in_flight=in_flight,
                pack_hits=pack_hits,
                working_point=working_point,
            )
        elif finder == "rules":
            results = _find_by_rules(source, rules=rules)
        else:
            results = _find_local(source, engines=engines, threads=threads, working_point=working_point)
        refused = _write_found(zip(sent, results, strict=True), fit, tracks=tracks, fits=fits)
    if refused:
        errors.print(f"tritrack: {out}: written, without the {refused} events named above")
        raise typer.Exit(FAILED)
    for path in (out, *([] if fitted is None else [fitted])):
        console.print(f"{path}: written", markup=False)


def load(
    *,
    events: Annotated[
        list[Path],
        typer.Option(help="Events to send in turns: a file or folder, as for find; may be given again."),
    ],
    url: Annotated[str | None, typer.Option(help="HOST:PORT of a server's gRPC service.")] = None,
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

    hits = [event.hits for event in read_all(events)]
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
    as_json: AsJson = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots of the rates.")] = None,
) -> None:
    """Compare tracks with the truth: efficiency, fakes, duplicates, with binomial intervals."""
    from tritrack.events.source import read_all
    from tritrack.events.tracks import read_tracks
    from tritrack.physics.matching import pairs_from_labels
    from tritrack.physics.metrics import count
    from tritrack.physics.selection import SELECTIONS

    if selection not in SELECTIONS:
        raise UsageError(f"--selection: {selection} given, {' or '.join(SELECTIONS)} wanted")
    if plots is not None:
        from tritrack.physics.plots import write_plots  # a missing library shows before the work
    found = read_tracks(tracks)
    total = None
    for event in read_all(events):
        counts = count(
            event=event, pairs=pairs_from_labels(found.labels_for(event)), selection=SELECTIONS[selection]
        )
        total = counts if total is None else total + counts
    if total is None:
        raise UsageError("evaluate: the event files hold no events")
    report = total.report()
    if plots is not None:
        write_plots(reports={tracks.stem: report}, folder=plots)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        console.print(rates_table(report))


def info(
    *,
    url: Annotated[str | None, typer.Option(help="HOST:PORT of a server's gRPC service.")] = None,
    model: Model = ENSEMBLE,
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    as_json: AsJson = False,
) -> None:
    """Say what is installed here, and what a server serves."""
    from tritrack.installed import describe, describe_server

    facts = describe(engines) if url is None else describe(engines) | describe_server(url, model=model)
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


def _find_remote(
    events: Iterable[Event],
    *,
    url: str,
    model: str,
    timeout: float,
    in_flight: int,
    pack_hits: int | None,
    working_point: WorkingPointName | None,
) -> Iterator[Found]:
    with TrackFinder(url, model=model, working_point=working_point, timeout=timeout) as finder:
        yield from finder.find_many(events, in_flight=in_flight, pack_hits=pack_hits, return_refusals=True)


def _find_local(
    events: Iterable[Event], *, engines: Path, threads: int, working_point: WorkingPointName | None
) -> Iterator[Found]:
    from tritrack.stages.pipeline import Pipeline

    yield from _find_each(events, Pipeline.load(engines, threads=threads, working_point=working_point).find)


def _find_by_rules(events: Iterable[Event], *, rules: Path) -> Iterator[Found]:
    from tritrack.rules.finder import RuleFinder

    yield from _find_each(events, RuleFinder.load(rules).find)


def _find_each(
    events: Iterable[Event], find_in: Callable[[NDArray[np.float32]], NDArray[np.int64]]
) -> Iterator[Found]:
    from tritrack.stages.contract import ContractError

    for event in events:
        try:
            yield find_in(event.hits)
        except ContractError as error:
            yield EventRefusedError(f"event {event.event_id}: {error}")


@contextlib.contextmanager
def _fitting(url: str | None, *, rules: Path, timeout: float) -> Iterator[Fit]:
    """Give the helix fit: a server's, or the same step in process."""
    if url is not None:
        with TrackFinder(url, model=FIT_STEP.name, timeout=timeout) as fitter:
            fitter.server_info()  # a server without the model shows before the work
            yield fitter.fit
        return
    from tritrack.ensemble_repo.steps import load_step
    from tritrack.stages.contract import ContractError

    step = load_step(FIT_STEP.name, rules, threads=1)

    def fit(event: Event, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            fitted: NDArray[np.float32] = step({HITS.name: event.hits, TRACK_LABEL.name: labels})[FITTED.name]
        except ContractError as error:
            raise EventRefusedError(f"event {event.event_id}: {error}") from None
        return fitted

    yield fit


def _check_files(out: Path, fitted: Path | None) -> None:
    """Check the names of the files to write, before work is spent on them (raises UsageError)."""
    from tritrack.events.tracks import check_track_file
    from tritrack.physics.fitted import check_fitted_file

    for option, path, check in (("--out", out, check_track_file), ("--fitted", fitted, check_fitted_file)):
        try:
            if path is not None:
                check(path)
        except EventError as error:
            raise UsageError(f"{option}: {error}") from None


def _write_found(
    found: Iterable[tuple[Event, Found]],
    fit: Fit | None,
    *,
    tracks: TrackWriter,
    fits: FittedWriter | None,
) -> int:
    """Write the tracks of each event and say how many there are; return the number of events that were refused."""
    refused = 0
    for event, labels_or_refusal in found:
        labels, rows = _fit_found(event, labels_or_refusal, fit)
        if isinstance(labels, EventRefusedError):
            refused += 1
            errors.print(f"tritrack: {labels}; this event is left out")
            continue
        tracks.add(event, labels)
        if fits is not None and rows is not None:
            fits.add(event.event_id, rows)
        console.print(f"event {event.event_id}: {event.n_hits} hits, {labels.max(initial=-1) + 1} tracks")
    return refused


def _fit_found(event: Event, found: Found, fit: Fit | None) -> tuple[Found, NDArray[np.float32] | None]:
    """Return what was found of an event, and its fits where they are wanted; a refusal of either is one."""
    if isinstance(found, EventRefusedError) or fit is None:
        return found, None
    try:
        return found, fit(event, found)
    except EventRefusedError as error:
        return error, None
