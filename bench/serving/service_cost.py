"""What times of an event in process and through a server say of the service: differences, parts, and goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tritrack.bench.quantiles import median_interval, quantile
from tritrack.bench.result import Header  # noqa: TC001 (msgspec reads the annotations)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.bench.serving.in_process import Answer
    from tritrack.service.protocol import StepStatistics

MOST_ADDED_MS = 20.0
"""What the service may add to an event of pile-up 40 on a CPU, by gRPC."""

MOST_ADDED_ON_GPU = {"grpc": 0.05, "system shared memory": 0.02, "CUDA shared memory": 0.02}
"""Share of an event's time in process that each way may add on a GPU, at pile-up 200."""

LEAST_KEPT = 0.95
"""Of the fused model's throughput, what the ensemble must keep."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The middle of what was measured.

    Attributes
    ----------
    n
        Samples.
    p50
        The median; None of fewer than 20.
    low, high
        An interval that holds it 19 times of 20; None of too few samples.
    """

    n: int
    p50: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One event, once, in one way.

    Attributes
    ----------
    seconds
        Wall time from the hits to the labels.
    cpu_seconds
        Processor time of client and server, all threads.
    encode_seconds, decode_seconds
        What the client does of itself with hits and labels, measured apart.
    steps
        What the server's account grew by.
    """

    seconds: float
    cpu_seconds: float
    encode_seconds: float
    decode_seconds: float
    steps: tuple[StepStatistics, ...]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step of the server, mean of the requests, in ms.

    Attributes
    ----------
    step
        Its name.
    queue_ms, moved_ms, compute_ms
        The request waited; its tensors moved in and out; the step's process had it.
    in_process_ms
        The same stage in process; of the fused model the chain.
    """

    step: str
    queue_ms: float
    moved_ms: float
    compute_ms: float
    in_process_ms: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A set of events through one model in one way, beside the chain in process.

    A sample is one event in one round, and is set against the same event in process in the same round.

    Attributes
    ----------
    events, n_events, n_hits
        Name of the set, its events, and their hits together.
    model, way
        The ensemble or the fused model; gRPC, HTTP, or memory that is shared.
    missing
        Why this way is not there on this machine; all that follows is empty then.
    n_other_labels
        Samples with other labels than in process: on a GPU alone, where sums may be added in another order each time.
    megabytes
        Hits and labels of an event, together, in 10^6 bytes; mean.
    seconds, in_process_seconds
        Wall time of each sample, and in process.
    added_ms
        Wall time more than in process.
    cpu_added_ms
        The same of processor time, which hardly grows when a machine does other work, too.
    outside_ms
        Wall time that is not the steps' computing: all that follows but ``compute_ms``.
    ratio
        In process by this way: 1 costs nothing.
    added_ms_per_megabyte
        ``added_ms`` by ``megabytes``.
    encode_ms, decode_ms
        The client's own part, measured apart: event to request, answer to labels. Mean.
    queue_ms, moved_ms, compute_ms
        In the server: waited, moved in and out of the steps, computed; all steps together. Mean.
    transfer_ms
        What is left: the way there and back, and Triton's own part. Mean.
    in_process_ms
        What ``compute_ms`` is to be set beside. Mean.
    steps
        Of each step.
    """

    events: str
    n_events: int
    n_hits: int
    model: str
    way: str
    missing: str | None = None
    n_other_labels: int = 0
    megabytes: float = 0.0
    seconds: tuple[float, ...] = ()
    in_process_seconds: tuple[float, ...] = ()
    added_ms: Figure | None = None
    cpu_added_ms: Figure | None = None
    outside_ms: Figure | None = None
    ratio: Figure | None = None
    added_ms_per_megabyte: float | None = None
    encode_ms: float = 0.0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    moved_ms: float = 0.0
    compute_ms: float = 0.0
    transfer_ms: float = 0.0
    in_process_ms: float = 0.0
    steps: tuple[StepCost, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Ensemble against fused model, with some requests on their way at once.

    Attributes
    ----------
    events
        Name of the set.
    in_flight, n_requests
        Requests on their way at once, and all requests of a round.
    ensemble_seconds, fused_seconds
        Time for all of them in each round.
    ratio
        The ensemble's throughput by the fused model's.
    """

    events: str
    in_flight: int
    n_requests: int
    ensemble_seconds: tuple[float, ...]
    fused_seconds: tuple[float, ...]
    ratio: Figure


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the service should keep to.

    Attributes
    ----------
    name, events
        The goal, and the set of events.
    figure
        What was measured.
    limit, below
        The figure must be below the limit, or must not be below it.
    met
        None where the samples do not say: they are too few, or the limit lies in the median's interval.
    """

    name: str
    events: str
    figure: Figure
    limit: float
    below: bool
    met: bool | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the service costs.

    Attributes
    ----------
    header
        What it was made with.
    gpu
        Name of the GPU that server and chain ran on; None where they ran on the processor.
    costs, throughputs, goals
        Of each set, model and way.
    """

    header: Header
    gpu: str | None = None
    costs: tuple[Cost, ...]
    throughputs: tuple[Throughput, ...]
    goals: tuple[Goal, ...]

    def ratios(self) -> dict[str, float]:
        """Return time in process by time by gRPC, and throughput of the ensemble by the fused model's."""
        named = {
            f"{cost.events}, {cost.model}: in process by {cost.way}": cost.ratio
            for cost in self.costs
            if cost.way == "grpc"
        } | {
            f"{row.events}, {row.in_flight} in flight: ensemble by fused": row.ratio
            for row in self.throughputs
        }
        return {
            name: ratio.p50 for name, ratio in named.items() if ratio is not None and ratio.p50 is not None
        }


def figure_of(samples: Sequence[float] | NDArray[np.float64]) -> Figure:
    """Return the middle of samples."""
    array = np.asarray(samples, dtype=np.float64)
    low, high = median_interval(array) or (None, None)
    return Figure(n=array.size, p50=quantile(array, 0.5), low=low, high=high)


def goal_of(name: str, *, events: str, figure: Figure, limit: float, below: bool) -> Goal:
    """Judge a figure: only where its interval lies on one side of the limit."""
    met: bool | None = None
    if figure.p50 is not None and figure.low is not None and figure.high is not None:
        if figure.high < limit:
            met = below
        elif figure.low >= limit:
            met = not below
    return Goal(name=name, events=events, figure=figure, limit=limit, below=below, met=met)


def goals_of(costs: Sequence[Cost], throughputs: Sequence[Throughput], *, on_gpu: bool) -> tuple[Goal, ...]:
    """Judge what was measured: what the service adds, and what of the throughput the ensemble keeps."""
    added = _added_on_gpu(costs) if on_gpu else _added_on_cpu(costs)
    kept = [
        goal_of(
            f"the ensemble keeps {LEAST_KEPT:g} of the fused model's throughput with {row.in_flight} in flight",
            events=row.events,
            figure=row.ratio,
            limit=LEAST_KEPT,
            below=False,
        )
        for row in throughputs
    ]
    return (*added, *kept)


def _added_on_cpu(costs: Sequence[Cost]) -> list[Goal]:
    return [
        goal_of(
            f"{cost.model} by gRPC adds less than {MOST_ADDED_MS:g} ms to an event",
            events=cost.events,
            figure=cost.added_ms,
            limit=MOST_ADDED_MS,
            below=True,
        )
        for cost in costs
        if cost.way == "grpc" and cost.added_ms is not None
    ]


def _added_on_gpu(costs: Sequence[Cost]) -> list[Goal]:
    return [
        goal_of(
            f"{cost.model} by {cost.way} adds less than {MOST_ADDED_ON_GPU[cost.way]:.0%} to an event",
            events=cost.events,
            figure=figure_of(np.array(cost.seconds) / cost.in_process_seconds - 1),
            limit=MOST_ADDED_ON_GPU[cost.way],
            below=True,
        )
        for cost in costs
        if cost.way in MOST_ADDED_ON_GPU and cost.missing is None
    ]


def steps_of(
    samples: Sequence[Sample], answers: Sequence[Answer], *, stages: Mapping[str, str]
) -> tuple[StepCost, ...]:
    """Return the means of each step.

    Parameters
    ----------
    samples, answers
        Through the server and in process, sample by sample.
    stages
        By step, the stage in process that does the same. A step that is not there is the whole chain.
    """
    rows = []
    for steps in zip(*(sample.steps for sample in samples), strict=True):
        name = steps[0].name
        stage = stages.get(name)
        seconds = [answer.seconds if stage is None else answer.stages[stage] for answer in answers]
        rows.append(
            StepCost(
                step=name,
                queue_ms=float(np.mean([step.queue_ns for step in steps])) / 1e6,
                moved_ms=float(np.mean([step.moved_ns for step in steps])) / 1e6,
                compute_ms=float(np.mean([step.compute_ns - step.moved_ns for step in steps])) / 1e6,
                in_process_ms=1e3 * float(np.mean(seconds)),
            )
        )
    return tuple(rows)


def cost_of(
    samples: Sequence[Sample],
    answers: Sequence[Answer],
    *,
    events: str,
    n_events: int,
    n_hits: int,
    model: str,
    way: str,
    megabytes: float,
    stages: Mapping[str, str],
    n_other_labels: int,
) -> Cost:
    """Set samples beside the answers of the chain in process to the same events in the same rounds.

    The parameters are those of `Cost`, and ``stages`` that of `steps_of`.
    """
    seconds = np.array([sample.seconds for sample in samples])
    alone = np.array([answer.seconds for answer in answers])
    cpu = np.array([sample.cpu_seconds for sample in samples]) - [answer.cpu_seconds for answer in answers]
    computed = [sum(step.compute_ns - step.moved_ns for step in sample.steps) / 1e9 for sample in samples]
    steps = steps_of(samples, answers, stages=stages)
    encode = 1e3 * float(np.mean([sample.encode_seconds for sample in samples]))
    decode = 1e3 * float(np.mean([sample.decode_seconds for sample in samples]))
    queue, moved, compute = (
        sum(getattr(step, name) for step in steps) for name in ("queue_ms", "moved_ms", "compute_ms")
    )
    added = figure_of((seconds - alone) * 1e3)
    return Cost(
        events=events,
        n_events=n_events,
        n_hits=n_hits,
        model=model,
        way=way,
        n_other_labels=n_other_labels,
        megabytes=megabytes,
        seconds=tuple(seconds.tolist()),
        in_process_seconds=tuple(alone.tolist()),
        added_ms=added,
        cpu_added_ms=figure_of(cpu * 1e3),
        outside_ms=figure_of((seconds - computed) * 1e3),
        ratio=figure_of(alone / seconds),
        added_ms_per_megabyte=None if added.p50 is None or megabytes == 0 else added.p50 / megabytes,
        transfer_ms=1e3 * float(seconds.mean()) - encode - decode - queue - moved - compute,
        in_process_ms=1e3 * float(alone.mean()),
        steps=steps,
        encode_ms=encode,
        decode_ms=decode,
        queue_ms=queue,
        moved_ms=moved,
        compute_ms=compute,
    )


def throughput_of(
    ensemble: Sequence[float], fused: Sequence[float], *, events: str, in_flight: int, n_requests: int
) -> Throughput:
    """Set the ensemble's times for the same requests, in s, beside the fused model's of the same rounds."""
    return Throughput(
        events=events,
        in_flight=in_flight,
        n_requests=n_requests,
        ensemble_seconds=tuple(ensemble),
        fused_seconds=tuple(fused),
        ratio=figure_of(np.asarray(fused) / np.asarray(ensemble)),
    )
