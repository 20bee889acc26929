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
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from tritrack.bench.arrivals import poisson_arrivals
from tritrack.bench.quantiles import quantile
from tritrack.bench.result import Header, describe_here
from tritrack.bench.watch import GpuUse, ProcessUse, Use, Watch
from tritrack.bench.wire import Connection, ErrorKind, Failure, Served, WireRequest, encode
from tritrack.failures import one_sentence
from tritrack.service.protocol import FIRST_DELAY, StepStatistics
from tritrack.stages.card import ENSEMBLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from numpy.typing import NDArray

TIMEOUT = 60.0
"""Seconds that a request may take, if nothing else is said."""

GENERATOR_CORES = 0.7
"""A generator that takes more of a core than this may have set the pace; it runs Python in one thread."""

LATE = 0.01
"""A request that is sent so many seconds after it was due is late; the clock of the loop counts whole milliseconds."""

LATE_SHARE = 0.01
"""Share of late requests above which the generator fell behind its schedule."""


class LoadError(ValueError):
    """A load that cannot be put on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds from sending (closed loop) or from being due (open loop) to the answer, of answered requests.

    Attributes
    ----------
    n
        Requests.
    mean, max
        None where there are none.
    p50, p95, p99, p999
        Quantiles; None where the requests are too few (`tritrack.bench.quantiles`).
    """

    n: int
    mean: float | None
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    p999: float | None


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Requests without an answer, by kind (`tritrack.bench.wire.Failure`), and the first of each kind."""

    unavailable: int
    timeout: int
    refused: int
    other: int
    first: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The server's own account of one of its models over the run, whoever asked.

    Attributes
    ----------
    name
        Name of the model.
    count
        Requests that it took.
    queue, compute
        Mean seconds that a request waited for it, and that it took; None where there were none.
    """

    name: str
    count: int
    queue: float | None
    compute: float | None


@dataclass(frozen=True, kw_only=True)
class Load:
    """One load, and how it was borne. Warm-up requests are in none of the figures.

    Attributes
    ----------
    loop
        "closed" or "open".
    n_clients
        Of a closed loop.
    rate, seed
        Of an open loop: arrivals a second, and the seed of their gaps.
    max_in_flight, n_held
        Of an open loop: most requests on their way at once, and how many had to wait for that; None: no such cap.
    seconds
        From the start to the last answer. Everything that was sent is waited for and counted.
    n_sent, n_answered, n_hits
        Requests sent; answered with a label for each hit; the hits of the latter.
    events_per_s, hits_per_s
        Answered ones by ``seconds``.
    latency
        Of answered ones.
    errors
        The others.
    late_share, late_max
        Of an open loop: share of the requests sent more than 10 ms after they were due, and the most seconds.
    generator_cores
        Processor time of this process by wall time.
    saturated
        Whether the generator took more than 0.7 of a core, or sent more than 1 % of the requests late: then the
        figures may be its own and not the server's.
    steps
        The server's models.
    process, gpus
        What the server took of its machine.
    absent
        A sentence for everything that is not here.
    """

    loop: Literal["closed", "open"]
    n_clients: int | None
    rate: float | None
    seed: int | None
    max_in_flight: int | None
    n_held: int | None
    seconds: float
    n_sent: int
    n_answered: int
    n_hits: int
    events_per_s: float
    hits_per_s: float
    latency: Latency
    errors: Errors
    late_share: float | None
    late_max: float | None
    generator_cores: float
    saturated: bool
    steps: tuple[StepTime, ...]
    process: ProcessUse | None
    gpus: tuple[GpuUse, ...]
    absent: tuple[str, ...]


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
        """Throughput of each number of clients over that of the first; of each rate, by the rate."""
        first = self.loads[0].events_per_s
        closed = [load for load in self.loads[1:] if load.loop == "closed" and first > 0]
        ratios = {
            f"events_per_s, {load.n_clients} clients over {self.loads[0].n_clients}": load.events_per_s
            / first
            for load in closed
        }
        return ratios | {
            f"events_per_s over rate {load.rate:g}": load.events_per_s / load.rate
            for load in self.loads
            if load.rate is not None
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
    duration, n_requests, seed, max_in_flight, timeout, pid
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


@dataclass(kw_only=True)
class _Tally:
    """What happens while a load runs."""

    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    n_hits: int = 0
    n_held: int = 0

    def add(self, request: WireRequest, seconds: float, failure: Failure | None) -> None:
        if failure is not None:
            self.failures.append(failure)
            return
        self.latencies.append(seconds)
        self.n_hits += request.n_hits

    @property
    def n_sent(self) -> int:
        return len(self.latencies) + len(self.failures)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A load that has ended: what the loop noted, the clocks, and what server and machine say."""

    tally: _Tally
    seconds: float
    cpu_seconds: float
    before: tuple[StepStatistics, ...]
    after: tuple[StepStatistics, ...]
    use: Use


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

    Raises
    ------
    LoadError
        Where there are no events, or a number is none that a load can have. Whatever goes wrong with the server is
        counted, not raised.
    """
    _check(events, duration=duration, n_requests=n_requests, counts={"n_clients": n_clients}, warm_up=warm_up)

    async def drive(
        connections: Sequence[Connection], requests: Iterator[WireRequest], tally: _Tally
    ) -> None:
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
            drive=drive,
        )
    )
    return _load(run, loop="closed", n_clients=n_clients)


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
) -> Load:
    """Send events when they are due, as a Poisson process, whether or not earlier ones are answered.

    Parameters
    ----------
    rate, seed
        Mean arrivals a second, and the seed of their gaps (`tritrack.bench.arrivals.poisson_arrivals`).
    duration, n_requests
        Seconds within which requests are due, or their number: one of the two.
    max_in_flight
        Most requests on their way at once; one that is due then waits, is counted, and its latency with it. None: no
        cap.
    warm_up
        Requests before, one after the other, which do not count; one if not given.
    url, events, model, timeout, pid
        As for `closed_loop`; all requests go over one connection.

    Raises
    ------
    LoadError
        As `closed_loop`.
    """
    counts = {} if max_in_flight is None else {"max_in_flight": max_in_flight}
    _check(events, duration=duration, n_requests=n_requests, counts=counts, warm_up=warm_up)
    if not 0 < rate < float("inf"):
        raise LoadError(f"rate: {rate:g} given, above 0 wanted")
    arrivals = poisson_arrivals(rate, seed=seed, duration=duration, n_requests=n_requests)

    async def drive(
        connections: Sequence[Connection], requests: Iterator[WireRequest], tally: _Tally
    ) -> None:
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
            drive=drive,
        )
    )
    return _load(run, loop="open", rate=rate, seed=seed, max_in_flight=max_in_flight)


def ask(url: str, *, model: str) -> Served:
    """Ask a server what it serves."""

    async def run() -> Served:
        async with Connection(url, timeout=TIMEOUT) as connection:
            return await connection.served(model)

    return asyncio.run(run())


def run_plan(
    url: str, plan: Plan, *, events: Sequence[NDArray[np.float32]], tell: Callable[[str], None]
) -> Result:
    """Put the loads on a server, say each in a line, and return all that was measured (raises LoadError)."""
    served = ask(url, model=plan.model)
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
            )
        )
        tell(summary(loads[-1]))
    threads = {step.threads for step in served.steps}
    return Result(
        header=describe_here(
            "load",
            model=served.card_name,
            card_sha256=served.card_sha256,
            working_point=served.working_point,
            threads=threads.pop() if len(threads) == 1 else None,
            packages=("tritrack", "numpy", "grpcio", "tritonclient"),
        ),
        url=url,
        model=plan.model,
        served=served,
        n_events=len(events),
        n_hits=sum(len(hits) for hits in events),
        loads=tuple(loads),
    )


def summary(load: Load) -> str:
    """Say a load in a line."""
    what = f"{load.rate:g} events due in a second" if load.loop == "open" else f"{load.n_clients} clients"
    latency = load.latency
    quantiles = [
        f"{name} {value * 1e3:.0f} ms"
        for name in ("p50", "p95", "p99", "p999")
        if (value := getattr(latency, name)) is not None
    ]
    if latency.mean is not None and not quantiles:
        quantiles = [f"mean {latency.mean * 1e3:.0f} ms of {latency.n}"]
    failed = [f"{n} {kind}" for kind in get_args(ErrorKind) if (n := getattr(load.errors, kind))]
    words = [f"{what}: {load.events_per_s:.2f} events/s, {load.hits_per_s:.0f} hits/s", *quantiles]
    words += [f"no answer: {', '.join(failed)} ({load.errors.first[0].message})"] if failed else []
    words += ["the generator may have set the pace"] if load.saturated else []
    return ", ".join(words)


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
    drive: Callable[[Sequence[Connection], Iterator[WireRequest], _Tally], Awaitable[None]],
) -> _Run:
    """Warm up, then run the loop between two looks at the server's statistics."""
    written = [encode(model, hits) for hits in events]
    connections = [Connection(url, timeout=timeout) for _ in range(n_connections)]
    try:
        served = await connections[0].served(model)
        await _warm_up(connections, islice(cycle(written), warm_up))
        before = await connections[0].statistics(served.steps)
        tally = _Tally()
        with Watch(pid) as watch:
            start, cpu = time.perf_counter(), time.process_time()
            await drive(connections, islice(cycle(written), n_requests), tally)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        return _Run(
            tally=tally,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            before=before,
            after=await connections[0].statistics(served.steps),
            use=watch.use,
        )
    finally:
        for connection in connections:
            await connection.close()


async def _warm_up(connections: Sequence[Connection], requests: Iterator[WireRequest]) -> None:
    async def client(connection: Connection) -> None:
        for request in requests:
            await connection.send(request)

    await asyncio.gather(*(client(connection) for connection in connections))


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


def _load(
    run: _Run,
    *,
    loop: Literal["closed", "open"],
    n_clients: int | None = None,
    rate: float | None = None,
    seed: int | None = None,
    max_in_flight: int | None = None,
) -> Load:
    tally = run.tally
    late = np.array(tally.late)
    late_share = float((late > LATE).mean()) if late.size else None
    cores = run.cpu_seconds / run.seconds
    steps = _step_times(run.before, run.after)
    return Load(
        loop=loop,
        n_clients=n_clients,
        rate=rate,
        seed=seed,
        max_in_flight=max_in_flight,
        n_held=None if max_in_flight is None else tally.n_held,
        seconds=run.seconds,
        n_sent=tally.n_sent,
        n_answered=len(tally.latencies),
        n_hits=tally.n_hits,
        events_per_s=len(tally.latencies) / run.seconds,
        hits_per_s=tally.n_hits / run.seconds,
        latency=_latency(np.array(tally.latencies)),
        errors=_errors(tally.failures),
        late_share=late_share,
        late_max=float(late.max()) if late.size else None,
        generator_cores=cores,
        saturated=cores > GENERATOR_CORES or (late_share or 0.0) > LATE_SHARE,
        steps=steps,
        process=run.use.process,
        gpus=run.use.gpus,
        absent=run.use.absent if steps else (*run.use.absent, "the server's times: it keeps no statistics"),
    )


def _latency(seconds: NDArray[np.float64]) -> Latency:
    return Latency(
        n=len(seconds),
        mean=float(seconds.mean()) if seconds.size else None,
        max=float(seconds.max()) if seconds.size else None,
        p50=quantile(seconds, 0.5),
        p95=quantile(seconds, 0.95),
        p99=quantile(seconds, 0.99),
        p999=quantile(seconds, 0.999),
    )


def _errors(failures: Sequence[Failure]) -> Errors:
    first: dict[ErrorKind, Failure] = {}
    for failure in failures:
        first.setdefault(failure.kind, failure)
    kinds = [failure.kind for failure in failures]
    return Errors(
        unavailable=kinds.count("unavailable"),
        timeout=kinds.count("timeout"),
        refused=kinds.count("refused"),
        other=kinds.count("other"),
        first=tuple(first.values()),
    )


def _step_times(before: Sequence[StepStatistics], after: Sequence[StepStatistics]) -> tuple[StepTime, ...]:
    at_start = {step.name: step for step in before}
    times = []
    for step in after:
        start = at_start.get(step.name, StepStatistics(name=step.name, count=0, queue_ns=0, compute_ns=0))
        count = step.count - start.count
        times.append(
            StepTime(
                name=step.name,
                count=count,
                queue=(step.queue_ns - start.queue_ns) / count / 1e9 if count else None,
                compute=(step.compute_ns - start.compute_ns) / count / 1e9 if count else None,
            )
        )
    return tuple(times)


if __name__ == "__main__":
    import typer

    from tritrack.commands_run import load

    with one_sentence(extra=None):
        typer.run(load)
