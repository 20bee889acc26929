"""What the service costs: ``python -m tritrack.bench.service EVENTS... --out FILE.json``.

Each argument is a set of events. The same events go through the chain in process
(`tritrack.bench.serving.in_process`) and through a real server, to the ensemble and to the model in one process, by
gRPC, HTTP and shared memory. All take turns within each round, and what counts is the difference, and the ratio, within
a round. Every answer must have the labels of the chain in process; on a GPU, where sums may be added in another order
each time, those that have not are counted.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritrack.bench.event_sets import for_each, read_sets
from tritrack.bench.machine import gpu_of
from tritrack.bench.result import make_header, write_result
from tritrack.bench.serving.in_process import InProcess, digest
from tritrack.bench.serving.processes import family, processor_seconds
from tritrack.bench.serving.regions import NoRegionError
from tritrack.bench.serving.service_cost import (
    Cost,
    Result,
    Sample,
    Throughput,
    cost_of,
    goals_of,
    throughput_of,
)
from tritrack.bench.serving.ways import CUDA, SYSTEM, ByGrpc, ByHttp, ByMemory
from tritrack.bench.timeout import TIMEOUT
from tritrack.bench.turns import orders
from tritrack.ensemble_repo.plan import DeviceKind, plan_chain
from tritrack.ensemble_repo.render import render_repository
from tritrack.failures import one_sentence
from tritrack.service.client import TrackFinder
from tritrack.service.server import Server
from tritrack.stages.card import ENSEMBLE, FUSED, WorkingPointName, ensemble_name, read_card
from tritrack.stages.contract import TRACK_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tritrack.bench.serving.in_process import Answer
    from tritrack.bench.serving.service_cost import Figure
    from tritrack.bench.serving.ways import Labels, Way
    from tritrack.events.event import Event
    from tritrack.service.protocol import StepStatistics
    from tritrack.stages.card import ModelCard


REPORTED_WITHIN = 5.0
"""Seconds that the server's account may lag behind its answer."""


class OtherLabelsError(RuntimeError):
    """A server that does not answer as the chain in process does; the message names the event and the way."""


@dataclass(frozen=True, kw_only=True)
class SetSamples:
    """A set of events, each in each round.

    Attributes
    ----------
    answers
        In process.
    samples
        By each of the routes.
    n_other_labels
        By each of the routes, samples with other labels than in process.
    """

    answers: list[Answer]
    samples: list[list[Sample]]
    n_other_labels: list[int]


class Route:
    """One model by one way.

    Parameters
    ----------
    finder
        The client of the model.
    way
        How events get there.
    server
        Ids of the server's processes.
    """

    def __init__(self, finder: TrackFinder, way: Way, *, server: Sequence[int]) -> None:
        self.model = finder.model
        self.way = way
        self._finder = finder
        self._server = server

    def measure(self, event: Event) -> tuple[Labels, Sample]:
        """Send an event and note down all that it took."""
        before = self._finder.statistics()
        cpu, start = self._cpu_seconds(), time.perf_counter()
        labels = self.way.find(event)
        seconds, cpu = time.perf_counter() - start, self._cpu_seconds() - cpu
        encode, decode = self.way.client_seconds(event, labels)
        sample = Sample(
            seconds=seconds,
            cpu_seconds=cpu,
            encode_seconds=encode,
            decode_seconds=decode,
            steps=self._grown(before),
        )
        return labels, sample

    def _cpu_seconds(self) -> float:
        return time.process_time() + processor_seconds(self._server)

    def _grown(self, before: Sequence[StepStatistics]) -> tuple[StepStatistics, ...]:
        """Return what the server's account grew by; a step reports only after it has answered."""
        deadline = time.monotonic() + REPORTED_WITHIN
        while True:
            after = self._finder.statistics()
            grown = tuple(
                replace(
                    new,
                    count=new.count - old.count,
                    queue_ns=new.queue_ns - old.queue_ns,
                    compute_ns=new.compute_ns - old.compute_ns,
                    moved_ns=new.moved_ns - old.moved_ns,
                )
                for old, new in zip(before, after, strict=True)
            )
            if all(step.count == 1 for step in grown):
                return grown
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.model}: after one request the server's account grew by {grown}")
            time.sleep(1e-3)


def open_ways(
    stack: ExitStack, server: Server, finders: Sequence[TrackFinder], *, max_hits: int
) -> tuple[list[Route], dict[tuple[str, str], str]]:
    """Open every way to every model; return them, and by model and way why one is missing."""
    pids = [process.pid for process in family(server.pid)]
    ready: list[Route] = []
    missing: dict[tuple[str, str], str] = {}
    for finder in finders:
        info = finder.server_info()
        by_http = stack.enter_context(closing(ByHttp(server.http_url, info=info, timeout=TIMEOUT)))
        ways: list[Way] = [ByGrpc(finder, info=info), by_http]
        for name in (SYSTEM, CUDA):
            try:
                way = ByMemory(server.url, info=info, name=name, max_hits=max_hits, timeout=TIMEOUT)
            except NoRegionError as error:
                missing[finder.model, name] = str(error)
            else:
                ways.append(stack.enter_context(closing(way)))
        ready += [Route(finder, way, server=pids) for way in ways]
    return ready, missing


def measure_set(
    events: Sequence[Event],
    *,
    offset: int,
    alone: InProcess,
    routes: Sequence[Route],
    labels_may_differ: bool,
    rounds: int,
) -> SetSamples:
    """Send a set's events in every way, once to warm up and then in rounds.

    Parameters
    ----------
    events, offset
        The set, and the place of its first event among those of the chain in process.
    alone
        The chain in process.
    routes
        Every model by every way.
    labels_may_differ
        Whether labels that differ from those in process are counted, or refused.
    rounds
        Rounds that count.

    Raises
    ------
    OtherLabelsError
        Where labels differ that may not.
    """
    answers: list[Answer] = []
    n_other_labels = [0] * len(routes)
    samples: dict[int, list[Sample]] = defaultdict(list)
    in_turn = orders(len(routes) + 1)
    for turn in range(rounds + 1):
        for place, event in enumerate(events):
            found: dict[int, tuple[str, Sample]] = {}
            for number in next(in_turn):
                if number == len(routes):
                    answer = alone.find(offset + place)
                    continue
                labels, sample = routes[number].measure(event)
                found[number] = digest(labels), sample
            for number, (labels_digest, sample) in found.items():
                if labels_digest != answer.labels:
                    if not labels_may_differ:
                        one = routes[number]
                        raise OtherLabelsError(
                            f"event {event.event_id} to {one.model} by {one.way.name}: other labels than in process"
                        )
                    n_other_labels[number] += turn > 0
                if turn > 0:
                    samples[number].append(sample)
            if turn > 0:
                answers.append(answer)
    return SetSamples(
        answers=answers,
        samples=[samples[number] for number in range(len(routes))],
        n_other_labels=n_other_labels,
    )


def costs_of(
    name: str,
    events: Sequence[Event],
    *,
    measured: SetSamples,
    routes: Sequence[Route],
    missing: Mapping[tuple[str, str], str],
    stages: Mapping[str, str],
) -> list[Cost]:
    """Return a row for each way to each model, in the order of the models; those that are missing last."""
    n_hits = sum(event.n_hits for event in events)
    wire = sum(event.hits.nbytes for event in events) + n_hits * TRACK_LABEL.dtype.itemsize
    rows = [
        cost_of(
            some,
            measured.answers,
            events=name,
            n_events=len(events),
            n_hits=n_hits,
            model=one.model,
            way=one.way.name,
            megabytes=wire / len(events) / 1e6,
            stages=stages,
            n_other_labels=n_other,
        )
        for one, some, n_other in zip(routes, measured.samples, measured.n_other_labels, strict=True)
    ]
    return rows + [
        Cost(events=name, n_events=len(events), n_hits=n_hits, model=model, way=way, missing=reason)
        for (model, way), reason in missing.items()
    ]


def stages_of_steps(card: ModelCard, point: WorkingPointName | None) -> dict[str, str]:
    """Return, by step of the ensemble, the stage that does the same in process."""
    return {step.name: step.computes for step in plan_chain(card, "embedded", point or card.default)}


def measure_throughput(
    name: str, events: Sequence[Event], *, finders: Sequence[TrackFinder], in_flight: int, rounds: int
) -> Throughput:
    """Send a set to ensemble and fused model with some requests on their way at once, in rounds.

    The set is sent again until there are twice as many requests as may be on their way, so that the pipe is full for
    most of the time.
    """
    requests = list(islice(cycle(events), max(len(events), 2 * in_flight)))
    seconds: dict[int, list[float]] = defaultdict(list)
    for turn, order in zip(range(rounds + 1), orders(len(finders)), strict=False):
        for number in order:
            start = time.perf_counter()
            for _ in finders[number].find_many(requests, in_flight=in_flight):
                pass
            if turn > 0:
                seconds[number].append(time.perf_counter() - start)
    return throughput_of(seconds[0], seconds[1], events=name, in_flight=in_flight, n_requests=len(requests))


@contextmanager
def ready(
    events: Sequence[Path],
    *,
    first: Sequence[int],
    engines: Path,
    device: DeviceKind,
    threads: int,
    working_point: WorkingPointName | None,
    models: Sequence[str],
) -> Iterator[tuple[Server, InProcess]]:
    """Start a server, and the chain in process with the server's environment, of the same engines."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        repository = work / "model_repository"
        render_repository(
            engines=engines, out=repository, server="embedded", device=device, threads=threads, fused=True
        )
        with (
            Server(repository, models=models, start_timeout=TIMEOUT) as server,
            InProcess(
                events,
                first=first,
                engines=engines,
                device=device,
                threads=threads,
                working_point=working_point,
                environment=server.installation.environment(work),
            ) as alone,
        ):
            yield server, alone


def measure(
    sets: Mapping[str, Sequence[Event]],
    *,
    server: Server,
    models: Sequence[str],
    alone: InProcess,
    stages: Mapping[str, str],
    labels_may_differ: bool,
    in_flight: Sequence[int],
    rounds: Sequence[int],
) -> tuple[list[Cost], list[Throughput]]:
    """Measure each set after the other.

    Parameters
    ----------
    sets
        The events, in the order of those of the chain in process.
    server, models
        A server that runs; its ensemble and its fused model.
    alone
        The chain in process.
    stages
        See `tritrack.bench.serving.service_cost.steps_of`.
    labels_may_differ
        See `measure_set`.
    in_flight
        Requests on their way at once, where throughput is measured.
    rounds
        Rounds that count, of each set.
    """
    costs: list[Cost] = []
    throughputs: list[Throughput] = []
    with ExitStack() as stack:
        finders = [
            stack.enter_context(TrackFinder(server.url, model=model, timeout=TIMEOUT)) for model in models
        ]
        most = max(event.n_hits for events in sets.values() for event in events)
        routes, missing = open_ways(stack, server, finders, max_hits=most)
        offset = 0
        for (name, events), n_rounds in zip(sets.items(), for_each(rounds, len(sets)), strict=True):
            measured = measure_set(
                events,
                offset=offset,
                alone=alone,
                routes=routes,
                labels_may_differ=labels_may_differ,
                rounds=n_rounds,
            )
            offset += len(events)
            costs += costs_of(name, events, measured=measured, routes=routes, missing=missing, stages=stages)
            throughputs += [
                measure_throughput(name, events, finders=finders, in_flight=count, rounds=n_rounds)
                for count in in_flight
            ]
    return costs, throughputs


def main(
    events: Annotated[list[Path], typer.Argument(help="Sets of events, a folder each.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Working point; the card's default if not given.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of each step, and of the chain in process.")
    ] = 1,
    first: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Events that are taken of a set, the first ones; given again for the next set, the last holds on.",
        ),
    ] = [2],  # noqa: B006 (typer reads it, nothing writes to it)
    rounds: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Rounds that count; given again for the next set. A median wants 20 events times rounds.",
        ),
    ] = [20],  # noqa: B006
    in_flight: Annotated[
        list[int], typer.Option(min=1, help="Requests on their way at once; may be given again.")
    ] = [1, 4],  # noqa: B006
    device: Annotated[
        DeviceKind, typer.Option(help="What the repository is rendered for, and where the chain computes.")
    ] = "cpu",
) -> None:
    """Time sets of events in process and through a server, and write JSON."""
    gpu = gpu_of(device, engines=engines)
    card = read_card(engines)
    sets = read_sets(events, first=first)
    models = [ensemble_name(working_point, ensemble=model) for model in (ENSEMBLE, FUSED)]
    with ready(
        events,
        first=first,
        engines=engines,
        device=device,
        threads=threads,
        working_point=working_point,
        models=models,
    ) as (server, alone):
        costs, throughputs = measure(
            sets,
            server=server,
            models=models,
            alone=alone,
            stages=stages_of_steps(card, working_point),
            labels_may_differ=gpu is not None,
            in_flight=in_flight,
            rounds=rounds,
        )
    result = Result(
        header=make_header(
            "service",
            card=card,
            working_point=working_point,
            threads=threads,
            packages=(
                "tritrack",
                "numpy",
                "numba",
                "onnxruntime",
                "nvidia-pytriton",
                "tritonclient",
                "grpcio",
            ),
        ),
        gpu=None if gpu is None else gpu.name,
        costs=tuple(costs),
        throughputs=tuple(throughputs),
        goals=goals_of(costs, throughputs, on_gpu=gpu is not None),
    )
    write_result(result, out)
    _show(result)


def _show(result: Result) -> None:
    for cost in result.costs:
        start = f"{cost.events}, {cost.n_hits // cost.n_events} hits an event, {cost.model} by {cost.way}"
        if cost.missing is not None:
            print(f"{start}: not measured, {cost.missing}")
            continue
        print(
            f"{start}: adds {_told(cost.added_ms)} ms, of processor time {_told(cost.cpu_added_ms)} ms; outside of the "
            f"steps {_told(cost.outside_ms)} ms; in process by this {_told(cost.ratio)}"
            f"{f'; {cost.n_other_labels} with other labels' if cost.n_other_labels else ''}"
        )
    for row in result.throughputs:
        print(f"{row.events}, {row.in_flight} in flight: ensemble by fused {_told(row.ratio)}")
    for goal in result.goals:
        verdict = {True: "met", False: "not met", None: "cannot be told"}[goal.met]
        print(f"{goal.events}: {goal.name}: {verdict} ({_told(goal.figure)})")


def _told(figure: Figure | None) -> str:
    if figure is None or figure.p50 is None or figure.low is None or figure.high is None:
        return "(too few samples)"
    return f"{figure.p50:.3g} ({figure.low:.3g} to {figure.high:.3g})"


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
