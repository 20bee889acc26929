"""Latency of events that come on their own: ``python -m tritrack.bench.tail_latency EVENTS... --out FILE.json``.

A few clients that wait for each answer (closed loop) find a server's throughput; then events come as a Poisson process
(open loop) at shares of it, whether or not earlier ones are answered, as they would from an experiment.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritrack.bench.event_sets import read_sets
from tritrack.bench.load import LoadError, closed_loop, open_loop
from tritrack.bench.load_generator.figures import Load, summary
from tritrack.bench.result import Header, make_header, write_result
from tritrack.bench.timeout import TIMEOUT
from tritrack.ensemble_repo.render import render_repository
from tritrack.failures import UsageError, one_sentence
from tritrack.service.server import Server
from tritrack.stages.card import WorkingPointName, ensemble_name, read_card

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

SHARES = (0.3, 0.5, 0.7, 0.9)
"""Shares of the throughput, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """An open loop at a share of the throughput.

    Attributes
    ----------
    share
        Of the throughput of the set's closed loop.
    load
        How it was borne; its ``rate`` is the share times that throughput.
    """

    share: float
    load: Load


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of events.

    Attributes
    ----------
    events
        Name of the set.
    n_hits
        Of each event, in the order sent.
    closed
        The closed loop; its ``events_per_s`` is the throughput that the shares are of.
    points
        The open loops, in the order of their shares.
    """

    events: str
    n_hits: tuple[int, ...]
    closed: Load
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Open loops on a server, by set of events."""

    header: Header
    model: str
    rows: tuple[Row, ...]

    def ratios(self) -> dict[str, float]:
        """Events answered a second by the rate at which they came at each share, and p95 at the lowest share by p95 at the highest.

        Both are 1 of a server that bears every rate alike. A p95 of too few requests, of one without an answer, or of
        one share alone, has no ratio.
        """
        ratios = {}
        for row in self.rows:
            for point in row.points:
                if (borne := point.load.borne()) is not None:
                    ratios[f"{row.events}: events_per_s over rate at {point.share:g}"] = borne
            low, high = row.points[0], row.points[-1]
            p95, p95_high = low.load.latency.p95, high.load.latency.p95
            if low.share < high.share and p95 is not None and p95_high is not None:
                ratios[f"{row.events}: p95 at {low.share:g} over {high.share:g}"] = p95 / p95_high
        return ratios


def requests_of_shares(shares: Sequence[float], requests: Sequence[int]) -> dict[float, int]:
    """Return the requests of each share, the shares rising (raises UsageError).

    Parameters
    ----------
    shares
        Above 0, each once; what lies above 1 the server cannot bear.
    requests
        One number for all shares, or one for each in the order of ``shares``.
    """
    if not all(0 < share < float("inf") for share in shares) or len(set(shares)) < len(shares):
        raise UsageError(
            f"--share: {', '.join(f'{s:g}' for s in shares)} given, each above 0 and once wanted"
        )
    if len(requests) not in (1, len(shares)):
        raise UsageError(f"--requests: {len(requests)} given for {len(shares)} shares, 1 or as many wanted")
    each = requests if len(requests) > 1 else [*requests] * len(shares)
    return dict(sorted(zip(shares, each, strict=True)))


def measure(
    name: str,
    events: Sequence[NDArray[np.float32]],
    *,
    server: Server,
    model: str,
    n_clients: int,
    closed_requests: int,
    requests: dict[float, int],
    seed: int,
) -> Row:
    """Put a closed loop on a server that runs, and then an open one for each share.

    Parameters
    ----------
    name, events
        The set, and its hits, float32 [n_hits, n_columns].
    server, model
        What is asked.
    n_clients, closed_requests
        Of the closed loop.
    requests
        Share -> requests of its open loop.
    seed
        Of the arrivals: the same gaps for every share, shorter at higher ones.

    Raises
    ------
    LoadError
        Where the closed loop lacks an answer: its throughput is then none. What an open loop lacks is counted.
    """
    closed = closed_loop(
        server.url,
        events=events,
        n_clients=n_clients,
        model=model,
        n_requests=closed_requests,
        warm_up=max(2 * n_clients, len(events)),
        timeout=TIMEOUT,
        pid=server.pid,
    )
    print(f"{name}, {summary(closed)}", flush=True)
    if closed.errors.first:
        raise LoadError(f"{name}: {closed.errors.first[0].message}")
    points: list[Point] = []
    for share, n_requests in requests.items():
        load = open_loop(
            server.url,
            events=events,
            rate=share * closed.events_per_s,
            seed=seed,
            model=model,
            n_requests=n_requests,
            timeout=TIMEOUT,
            pid=server.pid,
        )
        print(f"{name}, {share:g} of the throughput, {summary(load)}", flush=True)
        points.append(Point(share=share, load=load))
    return Row(events=name, n_hits=tuple(len(hits) for hits in events), closed=closed, points=tuple(points))


def main(
    events: Annotated[list[Path], typer.Argument(help="Sets of events, a folder each.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Working point; the card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each step.")] = 1,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the closed loop.")] = 4,
    closed_requests: Annotated[int, typer.Option(min=1, help="Requests of the closed loop.")] = 200,
    share: Annotated[
        list[float],
        typer.Option(help="Share of the throughput; may be given again. 0.3, 0.5, 0.7, 0.9 if not."),
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    requests: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Requests of each open loop: once for all, or once for each share in their order. 1000 if not.",
        ),
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals.")] = 1,
) -> None:
    """Find a server's throughput, let events come at shares of it, and write the latencies as JSON."""
    of_shares = requests_of_shares(share or SHARES, requests or [1000])
    sets = {name: [event.hits for event in some] for name, some in read_sets(events).items()}
    card, model = read_card(engines), ensemble_name(working_point)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        render_repository(engines=engines, out=repository, server="embedded", device="cpu", threads=threads)
        with Server(repository, models=[model], start_timeout=TIMEOUT) as server:
            rows = [
                measure(
                    name,
                    hits,
                    server=server,
                    model=model,
                    n_clients=clients,
                    closed_requests=closed_requests,
                    requests=of_shares,
                    seed=seed,
                )
                for name, hits in sets.items()
            ]
    header = make_header(
        "tail_latency",
        card=card,
        working_point=working_point,
        threads=threads,
        packages=("tritrack", "numpy", "numba", "onnxruntime", "nvidia-pytriton", "grpcio"),
    )
    result = Result(header=header, model=model, rows=tuple(rows))
    write_result(result, out)
    for name, ratio in result.ratios().items():
        print(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
