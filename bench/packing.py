"""What packs and the fused model gain in a server: ``python -m tritrack.bench.packing --out FILE.json EVENTS...``.

Each argument is a set of events. Every way to send the set takes its turn in each round, so that whatever else the
machine does falls on all of them; what counts is the ratio of times within a round. With ``--device gpu`` the repository is
rendered for a GPU; ``--engines`` may be TensorRT's.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from tritrack.bench.event_sets import name_of
from tritrack.bench.machine import gpu_of
from tritrack.bench.result import Header, make_header, write_result
from tritrack.bench.timeout import TIMEOUT
from tritrack.ensemble_repo.plan import DeviceKind  # noqa: TC001 (typer reads the annotations)
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.source import read_all
from tritrack.failures import one_sentence
from tritrack.service.client import TrackFinder
from tritrack.service.protocol import make_packs
from tritrack.service.server import Server
from tritrack.stages.card import ENSEMBLE, FUSED, WorkingPointName, ensemble_name, read_card
from tritrack.stages.plan_file import Gpu, plan_file, read_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tritrack.events.event import Event


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to send a set of events.

    Attributes
    ----------
    events
        Name of the set.
    n_events, n_hits
        The set's events, and their hits together.
    model
        The ensemble or the fused model.
    pack_hits
        Most hits of a request; None for one event a request.
    n_requests
        Requests that the set takes.
    seconds
        Time for the whole set in each round.
    ratio
        In each round, the time of the ensemble with one event a request, by this one's: above 1 is a gain.
    """

    events: str
    n_events: int
    n_hits: int
    model: str
    pack_hits: int | None
    n_requests: int
    seconds: tuple[float, ...]
    ratio: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """All sets in every way.

    Attributes
    ----------
    header
        ``threads`` are those of each step.
    device, gpu, tensorrt
        What the repository is rendered for, and what it runs on; None where there is no such thing.
    in_flight
        Requests on their way at once.
    ways
        A row for each set and way to send it.
    """

    header: Header
    device: DeviceKind
    gpu: Gpu | None
    tensorrt: str | None
    in_flight: int
    ways: tuple[Row, ...]


def time_set(
    name: str,
    events: Sequence[Event],
    *,
    finders: Sequence[TrackFinder],
    pack_hits: Sequence[int],
    in_flight: int,
    repeats: int,
    at_most: float = math.inf,
) -> list[Row]:
    """Send a set in every way, once to warm up and then in rounds; the first finder is what others are set against.

    Parameters
    ----------
    name, events
        The set.
    finders
        One for each model.
    pack_hits
        The budgets that are tried, besides one event a request.
    in_flight
        Requests on their way at once.
    repeats
        Rounds that count.
    at_most
        Seconds after which no further round begins; one counts in any case.
    """
    ways = [(finder, budget) for budget in (None, *pack_hits) for finder in finders]
    rounds: list[list[float]] = []
    first = time.perf_counter()
    while len(rounds) < 2 or (len(rounds) <= repeats and time.perf_counter() - first < at_most):
        rounds.append([])
        for finder, budget in ways:
            start = time.perf_counter()
            for _ in finder.find_many(events, in_flight=in_flight, pack_hits=budget):
                pass
            rounds[-1].append(time.perf_counter() - start)
    seconds = np.array(rounds[1:])
    return [
        Row(
            events=name,
            n_events=len(events),
            n_hits=sum(event.n_hits for event in events),
            model=finder.model,
            pack_hits=budget,
            n_requests=len(list(make_packs(events, pack_hits=budget))),
            seconds=tuple(seconds[:, way].tolist()),
            ratio=tuple((seconds[:, 0] / seconds[:, way]).tolist()),
        )
        for way, (finder, budget) in enumerate(ways)
    ]


def main(
    events: Annotated[list[Path], typer.Argument(help="Sets of events, a folder each.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Working point; the card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each step.")] = 2,
    pack_hits: Annotated[
        list[int], typer.Option(min=1, help="Most hits of a request; may be given again.")
    ] = [20_000, 100_000],  # noqa: B006 (typer reads it, nothing writes to it)
    in_flight: Annotated[int, typer.Option(min=1, help="Requests on their way at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of a set after which no further round begins.")
    ] = math.inf,
    device: Annotated[DeviceKind, typer.Option(help="What the repository is rendered for.")] = "cpu",
) -> None:
    """Send sets of events to the ensemble and to the fused model, packed and not, and write JSON."""
    gpu = gpu_of(device, engines=engines)
    plan = engines / plan_file("gnn")
    models = [ensemble_name(working_point, ensemble=model) for model in (ENSEMBLE, FUSED)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        render_repository(
            engines=engines, out=repository, server="embedded", device=device, threads=threads, fused=True
        )
        with (
            Server(repository, models=models, start_timeout=TIMEOUT) as server,
            TrackFinder(server.url, model=models[0], timeout=TIMEOUT) as ensemble,
            TrackFinder(server.url, model=models[1], timeout=TIMEOUT) as fused,
        ):
            for path in events:
                rows += time_set(
                    name_of(path),
                    list(read_all([path])),
                    finders=(ensemble, fused),
                    pack_hits=pack_hits,
                    in_flight=in_flight,
                    repeats=repeats,
                    at_most=seconds,
                )
    result = Result(
        header=make_header(
            "packing",
            card=read_card(engines),
            working_point=working_point,
            threads=threads,
            packages=("tritrack", "numpy", "numba", "onnxruntime", "nvidia-pytriton"),
        ),
        device=device,
        gpu=gpu,
        tensorrt=read_facts(plan).tensorrt if plan.exists() else None,
        in_flight=in_flight,
        ways=tuple(rows),
    )
    write_result(result, out)
    for row in rows:
        print(
            f"{row.events}, {row.n_hits // max(row.n_events, 1)} hits an event, {row.model}, "
            f"{row.n_events} events in {row.n_requests} requests: {np.median(row.ratio):.2f} times as fast "
            f"({min(row.ratio):.2f} to {max(row.ratio):.2f})"
        )


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
