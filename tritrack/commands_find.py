"""The command that finds the tracks of events, through a server or in process."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from tritrack.commands_run import Events, console
from tritrack.events.event import EventError
from tritrack.failures import FAILED, UsageError
from tritrack.service.client import TrackFinder
from tritrack.service.errors import OF_ONE_EVENT, EventRefusedError, ServiceError
from tritrack.stages.card import ENSEMBLE, WorkingPointName
from tritrack.stages.contract import FIT_STEP, FITTED, HITS, TRACK_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.events.tracks import TrackWriter
    from tritrack.physics.fitted import FittedWriter

    Found = NDArray[np.int64] | ServiceError
    Fit = Callable[[Event, NDArray[np.int64]], NDArray[np.float32]]

# Libraries are imported inside each command, so that a client without extras has every --help.

errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

FinderName = Literal["chain", "rules"]


def find(
    events: Events,
    *,
    out: Annotated[Path, typer.Option(help="Track file: .parquet, or .csv for a TrackML submission.")],
    url: Annotated[str | None, typer.Option(help="HOST:PORT of a server's gRPC service.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"Name of the server's model at its default working point ({ENSEMBLE})."),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run the same finder in process, without a server.")
    ] = False,
    finder: Annotated[
        FinderName | None,
        typer.Option(help="For --local: the chain of networks (if not given), or the rule-based finder."),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the rules, for --local with --finder rules or --fitted (weights/rules)."
        ),
    ] = None,
    fitted: Annotated[
        Path | None,
        typer.Option(help="Also fit a helix to each track, and write them to this .parquet file."),
    ] = None,
    working_point: Annotated[
        WorkingPointName | None,
        typer.Option(help="What to trade: time for efficiency; the model's default if not given."),
    ] = None,
    engines: Annotated[
        Path | None, typer.Option(help="Folder of engines, for the chain with --local (build/engines).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the chain, for --local (2).")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Time a server may take for an event, in s (60).")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="Requests on their way to a server at once (2).")
    ] = None,
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
    of_chain = {"--engines": engines, "--threads": threads}
    if url is not None:
        _refuse("--url", {"--finder": finder, "--rules": rules, **of_chain})
    else:
        of_server = {"--timeout": timeout, "--in-flight": in_flight, "--pack-hits": pack_hits}
        _refuse("--local", {"--model": model, **of_server})
        if finder == "rules":
            _refuse("--finder rules", of_chain)
        elif fitted is None:
            _refuse("--local, but for --finder rules or --fitted", {"--rules": rules})
    _check_files(out, fitted)
    numbers = check_numbers(events)
    rules, timeout = rules or Path("weights/rules"), timeout or 60.0
    source, sent = itertools.tee(read_all(events))
    with contextlib.ExitStack() as stack:
        tracks = stack.enter_context(write_tracks(out))
        fits = None if fitted is None else stack.enter_context(write_fitted(fitted))
        fit = None if fitted is None else stack.enter_context(_fitting(url, rules=rules, timeout=timeout))
        if url is not None:
            results = _find_remote(
                source,
                url=url,
                model=model or ENSEMBLE,
                timeout=timeout,
                in_flight=in_flight or 2,
                pack_hits=pack_hits,
                working_point=working_point,
            )
        elif finder == "rules":
            results = _find_by_rules(source, rules=rules)
        else:
            results = _find_local(
                source,
                engines=engines or Path("build/engines"),
                threads=threads or 2,
                working_point=working_point,
            )
        written, named = _write_found(zip(sent, results, strict=True), fit, tracks=tracks, fits=fits)
    missed = numbers[written + named :]
    if named or missed:
        lacking = [f"the {_n_events(named)} named above"] if named else []
        lacking += [f"the {_n_events(len(missed))} from event {missed[0]} on"] if missed else []
        errors.print(f"tritrack: {out}: written, without {' and '.join(lacking)}")
        raise typer.Exit(FAILED)
    for path in (out, *([] if fitted is None else [fitted])):
        console.print(f"{path}: written", markup=False)


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


def _refuse(where: str, given: Mapping[str, object]) -> None:
    """Raise UsageError for the first of the options that is given."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"find: {option} does not go with {where}")


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
    if fitted is not None and out.resolve() == fitted.resolve():
        raise UsageError(f"find: --out and --fitted are one file, {fitted}")


def _write_found(
    found: Iterable[tuple[Event, Found]],
    fit: Fit | None,
    *,
    tracks: TrackWriter,
    fits: FittedWriter | None,
) -> tuple[int, int]:
    """Write the tracks of each event and say how many there are; return how many events are written, and left out.

    A server that fails ends it, and what was written stays; where nothing was, its error is raised.
    """
    written = left_out = 0
    try:
        for event, labels_or_error in found:
            labels, rows = _fit_found(event, labels_or_error, fit)
            if isinstance(labels, ServiceError):
                left_out += 1
                errors.print(f"tritrack: {labels}; this event is left out")
                continue
            tracks.add(event, labels)
            if fits is not None and rows is not None:
                fits.add(event.event_id, rows)
            written += 1
            console.print(f"event {event.event_id}: {event.n_hits} hits, {labels.max(initial=-1) + 1} tracks")
    except ServiceError as error:
        if not written:
            raise
        errors.print(f"tritrack: {error}")
    return written, left_out


def _n_events(n: int) -> str:
    return f"{n} event" if n == 1 else f"{n} events"


def _fit_found(event: Event, found: Found, fit: Fit | None) -> tuple[Found, NDArray[np.float32] | None]:
    """Return what was found of an event, and its fits where they are wanted; an error of either is one."""
    if isinstance(found, ServiceError) or fit is None:
        return found, None
    try:
        return found, fit(event, found)
    except OF_ONE_EVENT as error:
        return error, None
