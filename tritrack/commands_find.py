"""The command that finds the tracks of events, through a server or in process."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from tritrack import __version__
from tritrack.commands_run import Events, console
from tritrack.ensemble_repo.plan import RULE_FINDER
from tritrack.events.event import EventError
from tritrack.failures import FAILED, UsageError
from tritrack.options import Header, Tls, TlsCa, Url, read_access
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
    from tritrack.service.access import Access

    Found = NDArray[np.int64] | ServiceError
    Fit = Callable[[Event, NDArray[np.int64]], NDArray[np.float32]]

# Libraries are imported inside each command, so that a client without extras has every --help.

errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

FinderName = Literal["chain", "rules"]


def find(
    events: Events,
    *,
    out: Annotated[Path, typer.Option(help="Track file: .parquet, or .csv for a TrackML submission.")],
    url: Url = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    header: Header = [],  # noqa: B006 (typer reads it, nothing writes to it)
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
    _check_options(
        of_server={
            "--tls": tls or None,
            "--tls-ca": tls_ca,
            "--header": header or None,
            "--model": model,
            "--timeout": timeout,
            "--in-flight": in_flight,
            "--pack-hits": pack_hits,
        },
        of_chain={"--engines": engines, "--threads": threads},
        finder=finder,
        rules=rules,
        local=local,
        fitted=fitted is not None,
    )
    access = read_access(tls=tls, tls_ca=tls_ca, header=header)
    _check_files(out, fitted)
    numbers = check_numbers(events)
    rules, timeout = rules or Path("weights/rules"), timeout or 60.0
    source, sent = itertools.tee(read_all(events, truth=False))
    with contextlib.ExitStack() as stack:
        fit = None
        if fitted is not None:
            fit = stack.enter_context(_fitting(url, rules=rules, timeout=timeout, access=access))
        if url is not None:
            remote = _remote(
                url,
                access=access,
                model=model or ENSEMBLE,
                timeout=timeout,
                in_flight=in_flight or 2,
                pack_hits=pack_hits,
                working_point=working_point,
            )
            chosen = stack.enter_context(remote)
        elif finder == "rules":
            chosen = _rule_finder(rules)
        else:
            chosen = _chain(engines or Path("build/engines"), threads=threads or 2, point=working_point)
        tracks = stack.enter_context(write_tracks(out, metadata=chosen.origin))
        fits = None if fitted is None else stack.enter_context(write_fitted(fitted))
        found = zip(sent, chosen.find_all(source), strict=True)
        written, named = _write_found(found, fit, tracks=tracks, fits=fits)
    missed = numbers[written + named :]
    if named or missed:
        errors.print(f"tritrack: {out}: written, without {_lacking(named, missed)}")
        raise typer.Exit(FAILED)
    for path in (out, *([] if fitted is None else [fitted])):
        console.print(f"{path}: written", markup=False)


def _check_options(
    *,
    of_server: Mapping[str, object],
    of_chain: Mapping[str, object],
    finder: FinderName | None,
    rules: Path | None,
    local: bool,
    fitted: bool,
) -> None:
    """Refuse, by its name, an option that the way of finding has no use for (raises UsageError)."""
    if not local:
        where, unused = "--url", {"--finder": finder, "--rules": rules, **of_chain}
    elif finder == "rules":
        where, unused = "--finder rules", {**of_server, **of_chain}
    else:
        where, unused = "--local", {**of_server}
    if local and finder != "rules" and not fitted and rules is not None:
        raise UsageError("find: --rules does not go with --local, but for --finder rules or --fitted")
    for option, value in unused.items():
        if value is not None:
            raise UsageError(f"find: {option} does not go with {where}")


@dataclass(frozen=True, kw_only=True)
class _Finder:
    """A finder that is ready.

    Attributes
    ----------
    origin
        Which it is, for the track file.
    find_all
        Gives the labels of events in their order, or why an event has none.
    """

    origin: Mapping[str, str]
    find_all: Callable[[Iterable[Event]], Iterator[Found]]


@contextlib.contextmanager
def _remote(
    url: str,
    *,
    access: Access,
    model: str,
    timeout: float,
    in_flight: int,
    pack_hits: int | None,
    working_point: WorkingPointName | None,
) -> Iterator[_Finder]:
    with TrackFinder(url, model=model, working_point=working_point, timeout=timeout, access=access) as finder:
        info = finder.server_info()
        what: Literal["card", "rules"] = "rules" if info.model == RULE_FINDER.name else "card"
        yield _Finder(
            origin=_origin(info.model, what, info.card_name, info.card_sha256, point=info.working_point),
            find_all=lambda events: finder.find_many(
                events, in_flight=in_flight, pack_hits=pack_hits, return_refusals=True
            ),
        )


def _chain(engines: Path, *, threads: int, point: WorkingPointName | None) -> _Finder:
    from tritrack.stages.pipeline import Pipeline

    chain = Pipeline.load(engines, threads=threads, working_point=point)
    return _Finder(
        origin=_origin("chain", "card", chain.card.name, chain.card.hash, point=chain.working_point),
        find_all=lambda events: _find_each(events, chain.find),
    )


def _rule_finder(folder: Path) -> _Finder:
    from tritrack.rules.finder import RuleFinder

    finder = RuleFinder.load(folder)
    return _Finder(
        origin=_origin("rules", "rules", finder.rules.name, finder.rules.hash, point=None),
        find_all=lambda events: _find_each(events, finder.find),
    )


def _origin(
    finder: str, what: Literal["card", "rules"], name: str, sha256: str, *, point: str | None
) -> dict[str, str]:
    """Return the metadata of a track file: the served model or the finder in process, and the card or rules of it."""
    origin = {
        "tritrack_version": __version__,
        "tritrack_finder": finder,
        f"tritrack_{what}": name,
        f"tritrack_{what}_sha256": sha256,
    }
    return origin if point is None else origin | {"tritrack_working_point": point}


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
def _fitting(url: str | None, *, rules: Path, timeout: float, access: Access) -> Iterator[Fit]:
    """Give the helix fit: a server's, or the same step in process."""
    if url is not None:
        with TrackFinder(url, model=FIT_STEP.name, timeout=timeout, access=access) as fitter:
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


def _lacking(named: int, missed: list[int]) -> str:
    """Say which events the files lack: how many are named already, and the numbers of those not come to."""
    parts = [f"the {_n_events(named)} named above"] if named else []
    parts += [f"the {_n_events(len(missed))} from event {missed[0]} on"] if missed else []
    return " and ".join(parts)


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
