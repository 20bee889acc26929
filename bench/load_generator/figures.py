"""The figures of a load: what is kept of it while it runs, and what is said of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from tritrack.bench.load_generator.arrivals import poisson_arrivals
from tritrack.bench.load_generator.watch import GpuUse, ProcessUse, Use  # noqa: TC001 (msgspec reads the annotations)
from tritrack.bench.load_generator.wire import ErrorKind, Failure, WireRequest
from tritrack.bench.quantiles import quantile
from tritrack.service.protocol import StepStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GENERATOR_CORES = 0.7
"""A generator that takes more of a core than this may have set the pace; it runs Python in one thread."""

LATE = 0.01
"""A request that is sent so many seconds after it was due is late; the clock of the loop counts whole milliseconds."""

LATE_SHARE = 0.01
"""Share of late requests above which the generator fell behind its schedule."""

_NEVER = 1e300
"""Seconds, for those without an answer."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999}
"""Those of `Latency`."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds from sending (closed loop) or from being due (open loop) to the answer.

    Attributes
    ----------
    n
        Answered requests.
    mean, max
        Of these; None where there are none.
    p50, p95, p99, p999
        Quantiles of all requests, one without an answer taken for longer than any other: else a server that drops
        its slowest would look faster. None where the requests are too few (`tritrack.bench.quantiles`), or the
        quantile falls among those without an answer.
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
    """Requests without an answer, by kind (`tritrack.bench.load_generator.wire.Failure`), and the first of each kind."""

    unavailable: int
    timeout: int
    refused: int
    other: int
    first: tuple[Failure, ...]

    def by_kind(self) -> dict[ErrorKind, int]:
        """Return how many there were of each kind that there was."""
        counts: dict[ErrorKind, int] = {kind: getattr(self, kind) for kind in get_args(ErrorKind)}
        return {kind: count for kind, count in counts.items() if count}


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
        How long the answers took.
    errors
        What was not answered.
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

    def queue(self) -> float | None:
        """Return the mean seconds that a request waited for the server's models, all together; None where it does not tell."""
        waits = [step.queue for step in self.steps if step.queue is not None]
        return sum(waits) if waits else None

    def borne(self) -> float | None:
        """Return the events answered a second by those that came in one; None of a closed loop.

        That is by n arrivals over the time of the last one: n of them have the rate to 1 in the root of n alone.
        """
        if self.rate is None or self.seed is None or not self.n_sent:
            return None
        last = float(poisson_arrivals(self.rate, seed=self.seed, n_requests=self.n_sent)[-1])
        return self.events_per_s * last / self.n_sent


@dataclass(kw_only=True)
class Tally:
    """What happens while a load runs."""

    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    n_hits: int = 0
    n_held: int = 0

    def add(self, request: WireRequest, seconds: float, failure: Failure | None) -> None:
        """Note an answer, or its failure, so many seconds after the request."""
        if failure is not None:
            self.failures.append(failure)
            return
        self.latencies.append(seconds)
        self.n_hits += request.n_hits

    @property
    def n_sent(self) -> int:
        """Requests that have ended in one or the other."""
        return len(self.latencies) + len(self.failures)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A load that has ended: what the loop noted, the clocks, and what server and machine say."""

    tally: Tally
    seconds: float
    cpu_seconds: float
    before: tuple[StepStatistics, ...]
    after: tuple[StepStatistics, ...]
    use: Use


def make_load(
    run: Run,
    *,
    loop: Literal["closed", "open"],
    n_clients: int | None = None,
    rate: float | None = None,
    seed: int | None = None,
    max_in_flight: int | None = None,
) -> Load:
    """Make the figures of a load that has ended."""
    tally = run.tally
    late = np.array(tally.late)
    late_share = float((late > LATE).mean()) if late.size else None
    cores = run.cpu_seconds / run.seconds
    steps = _step_times(run.before, run.after)
    latency, unanswered = _latency(np.array(tally.latencies), n_failed=len(tally.failures))
    absent = [*run.use.absent]
    absent += [f"latency {', '.join(unanswered)}: among the requests without an answer"] if unanswered else []
    absent += [] if steps else ["the server's times: it gave no statistics, or started anew"]
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
        latency=latency,
        errors=_errors(tally.failures),
        late_share=late_share,
        late_max=float(late.max()) if late.size else None,
        generator_cores=cores,
        saturated=cores > GENERATOR_CORES or (late_share or 0.0) > LATE_SHARE,
        steps=steps,
        process=run.use.process,
        gpus=run.use.gpus,
        absent=tuple(absent),
    )


def _latency(seconds: NDArray[np.float64], *, n_failed: int) -> tuple[Latency, list[str]]:
    """Return the latency, and the quantiles that fall among the requests without an answer."""
    # Longer than any: a quantile between an answer and none is longer than the last answer, too. (Infinity would give no
    # number where a quantile is the last answer itself.)
    found = {
        name: quantile(np.append(seconds, np.full(n_failed, _NEVER)), q) for name, q in QUANTILES.items()
    }
    last = seconds.max(initial=0.0)
    lost = [name for name, value in found.items() if value is not None and value > last]
    latency = Latency(
        n=len(seconds),
        mean=float(seconds.mean()) if seconds.size else None,
        max=float(seconds.max()) if seconds.size else None,
        **{name: None if name in lost else value for name, value in found.items()},
    )
    return latency, lost


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
    """Return what the server's counters grew by; nothing where one fell, as that of a server that started anew does."""
    at_start = {step.name: step for step in before}
    times = []
    for step in after:
        start = at_start.get(
            step.name, StepStatistics(name=step.name, count=0, queue_ns=0, compute_ns=0, moved_ns=0)
        )
        count = step.count - start.count
        if min(count, step.queue_ns - start.queue_ns, step.compute_ns - start.compute_ns) < 0:
            return ()
        times.append(
            StepTime(
                name=step.name,
                count=count,
                queue=(step.queue_ns - start.queue_ns) / count / 1e9 if count > 0 else None,
                compute=(step.compute_ns - start.compute_ns) / count / 1e9 if count > 0 else None,
            )
        )
    return tuple(times)


def say_clients(n: int | None) -> str:
    """Return "1 client", "8 clients"."""
    return f"{n} client{'' if n == 1 else 's'}"


def summary(load: Load) -> str:
    """Say a load in a line."""
    what = f"{load.rate:g} events due in a second" if load.loop == "open" else say_clients(load.n_clients)
    latency = load.latency
    quantiles = [
        f"{name} {value * 1e3:.0f} ms" for name in QUANTILES if (value := getattr(latency, name)) is not None
    ]
    if latency.mean is not None and not quantiles:
        quantiles = [f"mean {latency.mean * 1e3:.0f} ms of {latency.n}"]
    failed = [f"{n} {kind}" for kind, n in load.errors.by_kind().items()]
    words = [f"{what}: {load.events_per_s:.2f} events/s, {load.hits_per_s:.0f} hits/s", *quantiles]
    words += [f"no answer: {', '.join(failed)} ({load.errors.first[0].message})"] if failed else []
    words += ["the generator may have set the pace"] if load.saturated else []
    return ", ".join(words)
