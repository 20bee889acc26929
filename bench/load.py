"""Put a server under load and say how it bears it: ``tritrack load``, or ``python -m tritrack.bench.load``.

A *closed loop* is a number of clients, each of which sends its next event when its last one is answered: it finds what
a server can do, and slows down with it. An *open loop* sends events as they come, whatever the server does, and counts
each one's latency from the time at which it was due: a request that the generator sends late, or that queues behind
others, is not forgiven its waiting.

Requests are written as bytes before the clock runs, so that a core drives many clients; what the generator itself
takes is measured, and a load that it may have bounded is marked.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

from tritrack.bench.load_generator.arrivals import poisson_arrivals
from tritrack.bench.load_generator.figures import Load, Run, Tally, make_load, summary
from tritrack.bench.load_generator.watch import Watch
from tritrack.bench.load_generator.wire import Connection, Served, WireRequest, encode
from tritrack.bench.result import Header, describe_here
from tritrack.failures import one_sentence
from tritrack.service.access import PLAIN
from tritrack.service.protocol import FIRST_DELAY
from tritrack.stages.card import ENSEMBLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.service.access import Access
    from tritrack.service.protocol import StepStatistics

TIMEOUT = 60.0
"""Seconds that a request may take, if nothing else is said."""


LOOKS = 10
"""At the server's account, at most, until it stands still."""


class LoadError(ValueError):
    """A load that cannot be put on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Loads on one server, one after the other.

    Attributes
    ----------
    header
        Processor and cores are those of the generator's machine; card, working point and threads those that the
        server tells, None where it does not.
    url, model
        What was asked.
    served
        What the server says of it.
    n_events, n_hits
        The events that were sent again and again, and their hits together.
    loads
        In the order given.
    """

    header: Header
    url: str
    model: str
    served: Served
    n_events: int
    n_hits: int
    loads: tuple[Load, ...]

    def ratios(self) -> dict[str, float]:
        """Throughput of each number of clients over that of the first; of each rate, by that at which they came."""
        first = self.loads[0].events_per_s
        closed = [load for load in self.loads[1:] if load.loop == "closed" and first > 0]
        ratios = {
            f"events_per_s, {load.n_clients} clients over {self.loads[0].n_clients}": load.events_per_s
            / first
            for load in closed
        }
        return ratios | {
            f"events_per_s over rate {load.rate:g}": borne
            for load in self.loads
            if (borne := load.borne()) is not None
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Loads to put on a server, one after the other.

    Attributes
    ----------
    model
        Name of the model.
    n_clients
        Closed loops of so many clients.
    rates
        Open loops of so many arrivals a second.
    duration, n_requests, seed, max_in_flight, timeout, pid, access
        As for `closed_loop` and `open_loop`.
    """

    model: str = ENSEMBLE
    n_clients: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    duration: float | None = None
    n_requests: int | None = None
    seed: int = 1
    max_in_flight: int | None = None
    timeout: float = TIMEOUT
    pid: int | None = None
    access: Access = PLAIN


def closed_loop(
    url: str,
    *,
    events: Sequence[NDArray[np.float32]],
    n_clients: int,
    model: str = ENSEMBLE,
    duration: float | None = None,
    n_requests: int | None = None,
    warm_up: int | None = None,
    timeout: float = TIMEOUT,
    pid: int | None = None,
    access: Access = PLAIN,
) -> Load:
    """Let clients send events, each its next one when its last is answered.

    Parameters
    ----------
    url
        HOST:PORT of the gRPC service of any server that speaks KServe v2.
    events
        Hits, float32 [n_hits, n_columns]; sent in turns, whichever client is free.
    n_clients
        Clients, each with its connection; a request on its way for each.
    model
        Name of the model.
    duration, n_requests
        Seconds in which requests are begun, or their number: one of the two.
    warm_up
        Requests before, which do not count; one for each client if not given.
    timeout
        Seconds that a request may take.
    pid
        Process id of the server, where it runs on this machine: its processor time and memory are measured, too.
    access
        TLS and headers, where the server wants them.

    Raises
    ------
    LoadError
        Where there are no events, or a number is none that a load can have. Whatever goes wrong with the server is
        counted, not raised.
    """
    _check(events, duration=duration, n_requests=n_requests, counts={"n_clients": n_clients}, warm_up=warm_up)

    run = asyncio.run(
        _measure(
            url,
            model=model,
            events=events,
            n_connections=n_clients,
            n_requests=n_requests,
            warm_up=n_clients if warm_up is None else warm_up,
            timeout=timeout,
            pid=pid,
            access=access,
            drive=functools.partial(_drive_clients, duration=duration),
        )
    )
    return make_load(run, loop="closed", n_clients=n_clients)


def open_loop(
    url: str,
    *,
    events: Sequence[NDArray[np.float32]],
    rate: float,
    seed: int = 1,
    model: str = ENSEMBLE,
    duration: float | None = None,
    n_requests: int | None = None,
    max_in_flight: int | None = None,
    warm_up: int | None = None,
    timeout: float = TIMEOUT,
    pid: int | None = None,
    access: Access = PLAIN,
) -> Load:
    """Send events when they are due, as a Poisson process, whether or not earlier ones are answered.

    Parameters
    ----------
    rate, seed
        Mean arrivals a second, and the seed of their gaps (`tritrack.bench.load_generator.arrivals.poisson_arrivals`).
    duration, n_requests
        Seconds within which requests are due, or their number: one of the two.
    max_in_flight
        Most requests on their way at once; one that is due then waits, is counted, and its latency with it. None: no
        cap.
    warm_up
        Requests before, one after the other, which do not count; one if not given.
    url, events, model, timeout, pid, access
        As for `closed_loop`; all requests go over one connection.

    Raises
    ------
    LoadError
        As `closed_loop`.
    """
    counts = {} if max_in_flight is None else {"max_in_flight": max_in_flight}
    _check(events, duration=duration, n_requests=n_requests, counts=counts, warm_up=warm_up)
    arrivals = _arrivals(rate, seed=seed, duration=duration, n_requests=n_requests)

    run = asyncio.run(
        _measure(
            url,
            model=model,
            events=events,
            n_connections=1,
            n_requests=None,
            warm_up=1 if warm_up is None else warm_up,
            timeout=timeout,
            pid=pid,
            access=access,
            drive=functools.partial(_drive_arrivals, arrivals=arrivals, max_in_flight=max_in_flight),
        )
    )
    return make_load(run, loop="open", rate=rate, seed=seed, max_in_flight=max_in_flight)


def whole_turns(n_requests: int, n_events: int) -> int:
    """Return the least requests, from that number on, in which each event is sent equally often."""
    return -(-n_requests // n_events) * n_events


def ask(url: str, *, model: str, access: Access = PLAIN) -> Served:
    """Ask a server what it serves."""

    async def run() -> Served:
        async with Connection(url, timeout=TIMEOUT, access=access) as connection:
            return await connection.served(model)

    return asyncio.run(run())


def run_plan(
    url: str, plan: Plan, *, events: Sequence[NDArray[np.float32]], tell: Callable[[str], None]
) -> Result:
    """Put the loads on a server, say each in a line, and return all that was measured (raises LoadError)."""
    # All of them before the first: it may run for an hour.
    for counts in ({}, *({"n_clients": n_clients} for n_clients in plan.n_clients)):
        _check(events, duration=plan.duration, n_requests=plan.n_requests, counts=counts, warm_up=None)
    for rate in plan.rates:
        _arrivals(rate, seed=plan.seed, duration=plan.duration, n_requests=plan.n_requests)
    served = ask(url, model=plan.model, access=plan.access)
    loads = []
    for n_clients in plan.n_clients:
        loads.append(
            closed_loop(
                url,
                events=events,
                n_clients=n_clients,
                model=plan.model,
                duration=plan.duration,
                n_requests=plan.n_requests,
                timeout=plan.timeout,
                pid=plan.pid,
                access=plan.access,
            )
        )
        tell(summary(loads[-1]))
    for rate in plan.rates:
        loads.append(
            open_loop(
                url,
                events=events,
                rate=rate,
                seed=plan.seed,
                model=plan.model,
                duration=plan.duration,
                n_requests=plan.n_requests,
                max_in_flight=plan.max_in_flight,
                timeout=plan.timeout,
                pid=plan.pid,
                access=plan.access,
            )
        )
        tell(summary(loads[-1]))
    return Result(
        header=_header(served),
        url=url,
        model=plan.model,
        served=served,
        n_events=len(events),
        n_hits=sum(len(hits) for hits in events),
        loads=tuple(loads),
    )


def _header(served: Served) -> Header:
    threads = {step.threads for step in served.steps}
    return describe_here(
        "load",
        model=served.card_name,
        card_sha256=served.card_sha256,
        working_point=served.working_point,
        threads=threads.pop() if len(threads) == 1 else None,
        packages=("tritrack", "numpy", "grpcio", "tritonclient"),
    )


async def _measure(
    url: str,
    *,
    model: str,
    events: Sequence[NDArray[np.float32]],
    n_connections: int,
    n_requests: int | None,
    warm_up: int,
    timeout: float,
    pid: int | None,
    access: Access,
    drive: Callable[[Sequence[Connection], Iterator[WireRequest], Tally], Awaitable[None]],
) -> Run:
    """Warm up, then run the loop between two looks at the server's statistics."""
    written = [encode(model, hits) for hits in events]
    connections = [Connection(url, timeout=timeout, access=access) for _ in range(n_connections)]
    try:
        served = await connections[0].served(model)
        await _warm_up(connections, islice(cycle(written), warm_up))
        before = await _account(connections[0], served)
        tally = Tally()
        with Watch(pid) as watch:
            start, cpu = time.perf_counter(), time.process_time()
            await drive(connections, islice(cycle(written), n_requests), tally)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        return Run(
            tally=tally,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            before=before,
            after=await _account(connections[0], served),
            use=watch.use,
        )
    finally:
        for connection in connections:
            await connection.close()


async def _account(connection: Connection, served: Served) -> tuple[StepStatistics, ...]:
    """Return the server's account once two looks agree: a step reports only after it has answered.

    Where others use the server, too, they may never agree; then it is the last one.
    """
    account = await connection.statistics(served.steps)
    for _ in range(LOOKS):
        await asyncio.sleep(0.02)
        earlier, account = account, await connection.statistics(served.steps)
        if account == earlier:
            break
    return account


async def _drive_clients(
    connections: Sequence[Connection],
    requests: Iterator[WireRequest],
    tally: Tally,
    *,
    duration: float | None,
) -> None:
    """Send over each connection the next request when its last one is answered."""
    end = None if duration is None else time.perf_counter() + duration

    async def client(connection: Connection) -> None:
        for request in requests:  # one iterator for all clients
            start = time.perf_counter()
            failure = await connection.send(request)
            tally.add(request, time.perf_counter() - start, failure)
            if failure is not None and failure.kind == "unavailable":
                await asyncio.sleep(FIRST_DELAY)  # as the clients do: no storm on a server that restarts
            if end is not None and time.perf_counter() >= end:
                return

    await asyncio.gather(*(client(connection) for connection in connections))


async def _drive_arrivals(
    connections: Sequence[Connection],
    requests: Iterator[WireRequest],
    tally: Tally,
    *,
    arrivals: NDArray[np.float64],
    max_in_flight: int | None,
) -> None:
    """Send requests when they are due, in seconds from now, over one connection."""
    (connection,) = connections
    slots = asyncio.Semaphore(len(arrivals) + 1 if max_in_flight is None else max_in_flight)

    async def one(request: WireRequest, due: float) -> None:
        tally.late.append(time.perf_counter() - due)
        tally.n_held += slots.locked()
        async with slots:
            failure = await connection.send(request)
        tally.add(request, time.perf_counter() - due, failure)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for due in (start + arrivals).tolist():
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(next(requests), due))


async def _warm_up(connections: Sequence[Connection], requests: Iterator[WireRequest]) -> None:
    async def client(connection: Connection) -> None:
        for request in requests:
            await connection.send(request)

    await asyncio.gather(*(client(connection) for connection in connections))


def _arrivals(
    rate: float, *, seed: int, duration: float | None, n_requests: int | None
) -> NDArray[np.float64]:
    if not 0 < rate < float("inf"):
        raise LoadError(f"rate: {rate:g} given, above 0 wanted")
    arrivals = poisson_arrivals(rate, seed=seed, duration=duration, n_requests=n_requests)
    if not arrivals.size:
        raise LoadError(
            f"rate: at {rate:g} a second no event is due within {duration:g} s; give a longer duration, or requests"
        )
    return arrivals


def _check(
    events: Sequence[NDArray[np.float32]],
    *,
    duration: float | None,
    n_requests: int | None,
    counts: dict[str, int],
    warm_up: int | None,
) -> None:
    if not events:
        raise LoadError("events: none given")
    if (duration is None) == (n_requests is None):
        raise LoadError("duration or n_requests: one of the two wanted")
    if duration is not None and not 0 < duration < float("inf"):
        raise LoadError(f"duration: {duration:g} s given, above 0 wanted")
    for name, count in (counts | ({} if n_requests is None else {"n_requests": n_requests})).items():
        if count < 1:
            raise LoadError(f"{name}: {count} given, at least 1 wanted")
    if warm_up is not None and warm_up < 0:
        raise LoadError(f"warm_up: {warm_up} given, at least 0 wanted")


if __name__ == "__main__":
    import typer

    from tritrack.commands_run import load

    with one_sentence(extra=None):
        typer.run(load)
