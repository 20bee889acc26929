"""How many instances of each step serve best: ``python -m tritrack.bench.sweep --events EVENTS... --out FILE.json``.

A server runs for each setting: all steps alike with 1, 2, ... instances, then the heaviest step alone with more than
one. The settings take turns in each round, under loads of few and of many clients, so that whatever else the machine
does falls on all of them; what counts is the ratio of throughputs within a round.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from tritrack.bench.load import LoadError, closed_loop, whole_turns
from tritrack.bench.load_generator.figures import Load, say_clients, summary
from tritrack.bench.result import Header, make_header, write_result
from tritrack.bench.timeout import TIMEOUT
from tritrack.bench.turns import orders
from tritrack.ensemble_repo.plan import ONE_EACH, Instances, plan_chain
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.source import read_all
from tritrack.failures import UsageError, one_sentence
from tritrack.service.server import Server
from tritrack.stages.card import ModelCard, WorkingPointName, ensemble_name, read_card

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
"""Loads of the long form."""

SHORT_CLIENTS = (1, 8)
"""Loads of the short form."""

MANY = 8
"""Clients at which settings are compared."""

LEAST_GAIN = 1.05
"""What a better setting gains in every round: of six that gain nothing, two in five times one is above 1 in each of three."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting under one load.

    Attributes
    ----------
    setting
        Instances of every step ("2"), or more of one ("gnn=3").
    n_clients
        Clients of the closed loop.
    loads
        What was measured in each round.
    ratio
        In each round, throughput by that of one instance of every step under the same load: above 1 is a gain.
    cpu_ratio
        Likewise the server's processor time an event with one instance of every step, by this setting's: near 1 the
        settings do the same work, and a gain in throughput comes from more of the machine. Empty without psutil, and
        where a load was too short for the processor's clock, which counts in hundredths of a second.
    """

    setting: str
    n_clients: int
    loads: tuple[Load, ...]
    ratio: tuple[float, ...]
    cpu_ratio: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """All settings under all loads.

    Attributes
    ----------
    header
        ``threads`` are those of each instance.
    n_hits
        Of each event, in the order sent.
    heaviest
        The step that takes most of the server's time, with one instance each and one client.
    heaviest_share
        Its share of the time of all steps: on C cores more instances can gain where it is above 1 / C.
    rows
        By setting and load.
    best
        The setting with the largest median ratio at 8 clients (or the most there were), of those that gain
        `LEAST_GAIN` in every round; else "1".
    """

    header: Header
    n_hits: tuple[int, ...]
    heaviest: str
    heaviest_share: float
    rows: tuple[Row, ...]
    best: str

    def ratios(self) -> dict[str, float]:
        """Throughput of the best setting over one instance each, and of many clients over one."""
        many = compared_at(self.rows)
        row = {(row.setting, row.n_clients): row for row in self.rows}
        ratios = {"events_per_s, best instances over 1 each": float(np.median(row[self.best, many].ratio))}
        if ("1", 1) in row and many > 1:
            pairs = zip(row["1", many].loads, row["1", 1].loads, strict=True)
            gains = [more.events_per_s / one.events_per_s for more, one in pairs]
            ratios[f"events_per_s, {many} clients over 1"] = float(np.median(gains))
        return ratios


def compared_at(rows: Sequence[Row]) -> int:
    """Return the number of clients at which settings are compared."""
    there = {row.n_clients for row in rows}
    return MANY if MANY in there else max(there)


def best_setting(rows: Sequence[Row]) -> str:
    """Return the setting that serves best: one that gains enough in every round, or "1"."""
    many = compared_at(rows)
    gaining = [row for row in rows if row.n_clients == many and min(row.ratio) >= LEAST_GAIN]
    return max(gaining, key=lambda row: np.median(row.ratio)).setting if gaining else "1"


def alternate(events: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return events in the order lightest, heaviest, second lightest, second heaviest, ..."""
    rising = sorted(events, key=len)
    return [rising[i // 2] if i % 2 == 0 else rising[-1 - i // 2] for i in range(len(rising))]


def heaviest_step(load: Load, *, card: ModelCard, point: WorkingPointName) -> tuple[str, float]:
    """Return what the step computes that took most of the server's time, and its share of the time of all."""
    computes = {step.name: step.computes for step in plan_chain(card, "embedded", point)}
    spent = {computes[step.name]: step.count * (step.compute or 0.0) for step in load.steps}
    heaviest = max(spent, key=lambda step: spent[step])
    return heaviest, spent[heaviest] / sum(spent.values())


def measure(
    servers: dict[str, Server],
    events: Sequence[NDArray[np.float32]],
    *,
    model: str,
    clients: Sequence[int],
    n_requests: int,
    rounds: int,
) -> list[Row]:
    """Put every load on every server in turns; the first server is what the others are compared with.

    Parameters
    ----------
    servers
        Running, by setting.
    events
        Sent in this order, again and again.
    model
        What is asked.
    clients
        Loads.
    n_requests
        Least requests of a load; each takes at least four for each client, and whole turns of the events.
    rounds
        Rounds.

    Raises
    ------
    LoadError
        Where a request fails: settings that did not do the same work cannot be compared.
    """
    for server in servers.values():  # every instance has seen events before they count
        n_warm = max(2 * MANY, len(events))
        closed_loop(
            server.url, events=events, n_clients=MANY, model=model, n_requests=n_warm, timeout=TIMEOUT
        )
    loads: dict[tuple[str, int], list[Load]] = {}
    settings = list(servers)
    in_turn = {n_clients: orders(len(servers), seed=n_clients) for n_clients in clients}
    for _ in range(rounds):
        for n_clients in clients:
            for setting in (settings[number] for number in next(in_turn[n_clients])):
                load = _put_on(
                    servers[setting],
                    setting,
                    events,
                    model=model,
                    n_clients=n_clients,
                    n_requests=whole_turns(max(n_requests, 4 * n_clients), len(events)),
                )
                loads.setdefault((setting, n_clients), []).append(load)
    first = next(iter(servers))
    return [
        make_row(setting, n_clients, loads[setting, n_clients], ones=loads[first, n_clients])
        for setting in servers
        for n_clients in clients
    ]


def _put_on(
    server: Server,
    setting: str,
    events: Sequence[NDArray[np.float32]],
    *,
    model: str,
    n_clients: int,
    n_requests: int,
) -> Load:
    """Put a load on a server, say how it was borne, and return it (raises LoadError)."""
    load = closed_loop(
        server.url,
        events=events,
        n_clients=n_clients,
        model=model,
        n_requests=n_requests,
        timeout=TIMEOUT,
        pid=server.pid,
    )
    print(f"instances {setting}, {summary(load)}", flush=True)
    if load.errors.first:
        raise LoadError(f"instances {setting}: {load.errors.first[0].message}")
    return load


def make_row(setting: str, n_clients: int, loads: Sequence[Load], *, ones: Sequence[Load]) -> Row:
    """Set the loads of a setting against those of one instance each, round by round."""
    spent, of_one = _cpu_seconds(loads), _cpu_seconds(ones)
    told = all(seconds > 0 for seconds in (*spent, *of_one))
    return Row(
        setting=setting,
        n_clients=n_clients,
        loads=tuple(loads),
        ratio=tuple(load.events_per_s / one.events_per_s for load, one in zip(loads, ones, strict=True)),
        cpu_ratio=tuple(one / some for one, some in zip(of_one, spent, strict=True)) if told else (),
    )


def _cpu_seconds(loads: Sequence[Load]) -> list[float]:
    """Return the server's processor seconds an event in each round."""
    return [load.process.cores / load.events_per_s for load in loads if load.process is not None]


def _make_server(
    engines: Path, repository: Path, *, model: str, threads: int, instances: Instances
) -> Server:
    """Render a repository and return a server of it that is not started yet."""
    render_repository(
        engines=engines,
        out=repository,
        server="embedded",
        device="cpu",
        threads=threads,
        instances=instances,
    )
    return Server(repository, models=[model], start_timeout=TIMEOUT)


def sweep(
    engines: Path,
    events: Sequence[NDArray[np.float32]],
    *,
    point: WorkingPointName,
    threads: int,
    most: int,
    clients: Sequence[int],
    n_requests: int,
    rounds: int,
) -> Result:
    """Serve with one instance each and with more, and put every load on every server.

    Parameters
    ----------
    engines
        Folder of engines.
    point
        Working point.
    threads, most
        Threads of each instance, and most instances of a step.
    events, clients, n_requests, rounds
        As for `measure`.

    Raises
    ------
    LoadError
        As `measure`.
    """
    card, model = read_card(engines), ensemble_name(point)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def start(setting: str, instances: Instances) -> Server:
            repository = Path(folder) / setting
            server = _make_server(engines, repository, model=model, threads=threads, instances=instances)
            return stack.enter_context(server)

        servers = {"1": start("1", ONE_EACH)}
        first = _put_on(servers["1"], "1", events, model=model, n_clients=1, n_requests=len(events))
        heaviest, share = heaviest_step(first, card=card, point=point)
        for count in range(2, most + 1):
            servers[str(count)] = start(str(count), Instances(each=count))
        for count in range(2, most + 1):
            servers[f"{heaviest}={count}"] = start(f"{heaviest}={count}", Instances(of={heaviest: count}))
        rows = measure(servers, events, model=model, clients=clients, n_requests=n_requests, rounds=rounds)
    return Result(
        header=make_header(
            "sweep",
            card=card,
            working_point=point,
            threads=threads,
            packages=("tritrack", "numpy", "numba", "onnxruntime", "nvidia-pytriton", "grpcio"),
        ),
        n_hits=tuple(len(hits) for hits in events),
        heaviest=heaviest,
        heaviest_share=share,
        rows=tuple(rows),
        best=best_setting(rows),
    )


def main(
    *,
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    events: Annotated[list[Path], typer.Option(help="Events, light and heavy ones; may be given again.")],
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Working point; the card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each instance.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Most instances of a step.")] = 4,
    clients: Annotated[
        list[int], typer.Option(min=1, help="Clients of a load; may be given again. 1, 2, 4, ... 64 if not.")
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    requests: Annotated[int, typer.Option(min=1, help="Least events of a load.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    short: Annotated[
        bool, typer.Option("--short", help="At most 2 instances, 1 and 8 clients, 2 rounds of 16 events.")
    ] = False,
) -> None:
    """Serve with several numbers of instances, under several loads, and write JSON."""
    point = working_point or read_card(engines).default
    sent = alternate([event.hits for event in read_all(events)])
    if not sent:
        raise UsageError("bench.sweep: the event files hold no events")
    if short:
        most, requests, rounds = min(most, 2), 16, 2
    result = sweep(
        engines,
        sent,
        point=point,
        threads=threads,
        most=most,
        clients=clients or (SHORT_CLIENTS if short else CLIENTS),
        n_requests=requests,
        rounds=rounds,
    )
    write_result(result, out)
    for row in result.rows:
        print(
            f"instances {row.setting}, {say_clients(row.n_clients)}: {np.median(row.ratio):.2f} times as many events a "
            f"second as with 1 ({min(row.ratio):.2f} to {max(row.ratio):.2f}), "
            f"processor time an event {', '.join(f'{cpu * 1e3:.0f}' for cpu in _cpu_seconds(row.loads))} ms"
        )
    print(
        f"best: {result.best}; {result.heaviest} takes {result.heaviest_share:.2f} of the time of one event"
    )


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
