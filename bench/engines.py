"""The same networks in every engine: ``python -m tritrack.bench.engines EVENTS... --out FILE.json``.

Every engine takes its turn in each round, so that whatever else the machine does falls on all of them; what counts is
the ratio of times within a round. Beside each time stands what the engine's answers differ by from those of torch. An
engine that is not there on this machine is a row that says why.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
import typer

from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.bench.naive import SUM, joined_network
from tritrack.bench.precision import in_onnx
from tritrack.bench.quantiles import quantile
from tritrack.events.source import read_all
from tritrack.export.cases import drawn_cases
from tritrack.export.gates import deviation_of, gate_network, require, share_of_other_tracks
from tritrack.export.precision import typed_network
from tritrack.export.tensorrt import NoTensorRTError, find_tensorrt
from tritrack.failures import UsageError, one_sentence
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import TARGETS
from tritrack.stages.card import WorkingPointName, engine_file, read_card
from tritrack.stages.contract import EMBEDDING, STAGES
from tritrack.stages.engine import OnnxEngine, load_engine
from tritrack.stages.networks import run_network
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import plan_file, read_facts
from tritrack.stages.stage import run_engine, set_compiled_threads
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.events.event import Event
    from tritrack.physics.metrics import Counts
    from tritrack.stages.card import ModelCard, Precision
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine

    Loader = Callable[[StageSpec], Engine]
    """Stage -> its network, ready to run."""

NETWORKS = tuple(spec for spec in STAGES if spec.engine)
CHAIN = "chain"
"""In the place of a stage: the whole way from hits to labels."""

REFERENCE = "torch"
"""The engine that the others are set against."""


@dataclass(frozen=True, kw_only=True)
class Time:
    """One network, or the chain, in one engine on one event.

    Attributes
    ----------
    event_id, n_hits
        The event.
    engine
        The engine.
    stage
        The stage, or "chain" for all five.
    n_rows
        Rows that the network answers in the torch chain: hits, or pairs. For the chain, hits.
    first_seconds
        The first time that the engine saw the event's sizes, which ``seconds`` leaves out.
    seconds
        Wall time in each round; a network's alone, the pieces of the filter's pairs together.
    cpu_seconds
        Processor time of all threads in each round: what else the machine does hardly lengthens it.
    ratio
        In each round, torch's time by this one's: above 1 is a gain.
    p50, p95, ratio_p50, cpu_ratio_p50
        Of seconds, of ratio, and of the same ratio of processor times; None where the rounds are too few
        (`tritrack.bench.quantiles`).
    deviation
        Largest difference from torch on the same inputs: of a score, or of a coordinate relative to the largest
        one. None for the chain.
    equal_labels
        Share of the hits with the label that torch gives; a track more shifts the numbers of those after it. None
        for a network.
    other_tracks
        Share of the tracks that are not the same sets of hits as in torch. None for a network.
    efficiency_change, fake_rate_change
        From torch's on this event; None for a network, and where one of the two is a share of nothing.
    """

    event_id: int
    n_hits: int
    engine: str
    stage: str
    n_rows: int
    first_seconds: float
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    ratio: tuple[float, ...]
    p50: float | None
    p95: float | None
    ratio_p50: float | None
    cpu_ratio_p50: float | None
    deviation: float | None = None
    equal_labels: float | None = None
    other_tracks: float | None = None
    efficiency_change: float | None = None
    fake_rate_change: float | None = None


@dataclass(kw_only=True)
class Candidate:
    """An engine that is measured, or what keeps it from that.

    Attributes
    ----------
    name
        Its name.
    precision
        What its inner layers compute in.
    missing
        Why it is not here; None for one that is.
    load_seconds
        By stage, the time to load or export the network.
    warm_up_seconds
        By stage, the time of the gates' cases, the first calls of all: a compiler compiles in them.
    gate
        By stage, the largest deviation on the gates' cases.
    networks
        By stage, what runs.
    """

    name: str
    precision: Precision = "fp32"
    missing: str | None = None
    load_seconds: dict[str, float] = field(default_factory=dict)
    warm_up_seconds: dict[str, float] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    networks: dict[str, Timed] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it before any event."""
        return {
            "engine": self.name,
            "precision": self.precision,
            "missing": self.missing,
            "load_seconds": self.load_seconds,
            "warm_up_seconds": self.warm_up_seconds,
            "gate_deviation": self.gate,
        }


class Timed:
    """A network whose calls are timed, and noted down where asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._spent = np.zeros(2)
        self.calls: list[tuple[NDArray[Any], ...]] | None = None

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network once."""
        start = now()
        output = self._engine(*inputs)
        self._spent += now() - start
        if self.calls is not None:
            self.calls.append(inputs)
        return output

    def take(self) -> NDArray[np.float64]:
        """Return the time since this was asked last, as :func:`now` counts it."""
        spent, self._spent = self._spent, np.zeros(2)
        return spent


def now() -> NDArray[np.float64]:
    """Return wall time and this process' processor time in seconds, float64 [2]; only differences mean anything."""
    return np.array([time.perf_counter(), time.process_time()])


def load_candidate(
    candidate: Candidate, load: Loader, *, networks: Mapping[str, nn.Module], card: ModelCard
) -> Candidate:
    """Load every network of an engine, and hold it to the gates that engines pass (raises GateError)."""
    cases = drawn_cases()
    for spec in NETWORKS:
        start = time.perf_counter()
        engine = load(spec)
        loaded = time.perf_counter()
        results = gate_network(
            partial(run_engine, engine, spec, card),
            spec=spec,
            network=networks[spec.name],
            cases=cases,
            precision=candidate.precision,
        )
        require(results)
        candidate.load_seconds[spec.name] = loaded - start
        candidate.warm_up_seconds[spec.name] = time.perf_counter() - loaded
        candidate.gate[spec.name] = max(result.deviation for result in results)
        candidate.networks[spec.name] = Timed(engine)
    return candidate


def candidates(
    *,
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    engines: Path,
    plans: Path | None,
    compiled: bool,
    threads: int,
) -> Iterator[Candidate]:
    """Yield every engine, ready to run or with what it lacks; the first is the reference."""

    def naive(spec: StageSpec) -> Engine:
        return in_onnx(joined_network(networks[spec.name]), spec, card, rendering=SUM, threads=threads)

    def ours(spec: StageSpec) -> Engine:
        return OnnxEngine(engines / engine_file(spec.name), spec=spec, threads=threads)

    def half(spec: StageSpec) -> Engine:
        typed = typed_network(networks[spec.name], "fp16")
        return in_onnx(typed, spec, card, precision="fp16", threads=threads)

    ready = partial(load_candidate, networks=networks, card=card)
    yield ready(Candidate(name=REFERENCE), lambda spec: partial(run_network, networks[spec.name]))
    yield compiled_candidate(lambda spec: compile_network(networks[spec.name]), ready=ready, wanted=compiled)
    yield ready(Candidate(name="onnx, plain export"), naive)
    yield ready(Candidate(name="onnx"), ours)
    yield ready(Candidate(name="onnx, fp16", precision="fp16"), half)
    yield _tensorrt(plans, ready=ready, card=card, threads=threads)


def compile_network(network: nn.Module) -> Engine:
    """Return a network that torch compiles at its first call, for events of all sizes."""
    return partial(run_network, torch.compile(network, dynamic=True))  # type: ignore[arg-type]


def compiled_candidate(
    load: Loader, *, ready: Callable[[Candidate, Loader], Candidate], wanted: bool
) -> Candidate:
    """Return the compiled networks, or why the compiler does not give them."""
    name = "torch.compile"
    if not wanted:
        return Candidate(name=name, missing="left out: --no-compile")
    try:
        return ready(Candidate(name=name), load)
    except Exception as error:  # noqa: BLE001 (a compiler's failures share no other class)
        reason = next(iter(str(error).splitlines()), "")
        return Candidate(name=name, missing=f"{type(error).__name__}: {reason}")


def _tensorrt(
    plans: Path | None, *, ready: Callable[[Candidate, Loader], Candidate], card: ModelCard, threads: int
) -> Candidate:
    name = "tensorrt"
    try:
        find_tensorrt()
    except NoTensorRTError as error:
        return Candidate(name=name, missing=str(error))
    if plans is None:
        return Candidate(name=name, missing="no folder of engines for TensorRT was given: --plans")
    check_card(plans, card=card)
    precision = read_facts(plans / plan_file("gnn")).precision
    return ready(
        Candidate(name=name, precision=precision), lambda spec: load_engine(spec, plans, threads=threads)
    )


def check_card(folder: Path, *, card: ModelCard) -> None:
    """Refuse engines of other weights (raises UsageError)."""
    found = read_card(folder)
    if found.hash != card.hash:
        raise UsageError(
            f"bench.engines: {folder}: these engines are of {found.name}, not of the weights given ({card.name})"
        )


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What torch says of an event.

    Attributes
    ----------
    labels, counts
        The tracks, and what they count for.
    inputs
        By stage, what each call of its network was given.
    outputs
        By stage, what these calls gave, together.
    """

    labels: NDArray[np.int64]
    counts: Counts
    inputs: dict[str, list[tuple[NDArray[Any], ...]]]
    outputs: dict[str, NDArray[np.float32]]


def answers_of(chain: Pipeline, networks: Mapping[str, Timed], event: Event) -> Answers:
    """Run the chain on an event and note down what its networks are given (raises ContractError, PhysicsError)."""
    for network in networks.values():
        network.calls = []
    labels = chain.find(event.hits)
    inputs = {}
    for name, network in networks.items():
        inputs[name] = network.calls or []
        network.calls = None
    return Answers(
        labels=labels,
        counts=_judged(event, labels),
        inputs=inputs,
        outputs={name: _outputs(networks[name], calls) for name, calls in inputs.items() if calls},
    )


def _outputs(network: Engine, calls: Sequence[tuple[NDArray[Any], ...]]) -> NDArray[np.float32]:
    return np.concatenate([network(*inputs) for inputs in calls])


def _judged(event: Event, labels: NDArray[np.int64]) -> Counts:
    return count(event=event, pairs=pairs_from_labels(labels), selection=TARGETS)


def measure_event(
    ready: Sequence[Candidate], event: Event, *, card: ModelCard, point: WorkingPointName | None, rounds: int
) -> tuple[list[Time], dict[str, Counts]]:
    """Run every engine on an event: once for its answers, once to warm up, and then in rounds.

    Parameters
    ----------
    ready
        Engines that are here; the first is the reference.
    event
        The event, with truth.
    card, point
        Cuts and limits.
    rounds
        Rounds that count.

    Returns
    -------
    list of Time
        A row for each engine's networks and chain.
    dict
        By engine, what its tracks count for.

    Raises
    ------
    ContractError, PhysicsError
        Where the event is over the card's limits, or has no truth.
    """
    chains = {each.name: Pipeline(card=card, engines=each.networks, working_point=point) for each in ready}
    wanted = answers_of(chains[ready[0].name], ready[0].networks, event)
    stages = [spec for spec in NETWORKS if spec.name in wanted.outputs]
    first: dict[tuple[str, str], float] = {}
    deviation: dict[tuple[str, str], float] = {}
    for each in ready:
        for spec in stages:
            network = each.networks[spec.name]
            network.take()
            found = _outputs(network, wanted.inputs[spec.name])
            first[each.name, spec.name] = float(network.take()[0])
            deviation[each.name, spec.name] = deviation_of(
                wanted.outputs[spec.name], found, relative=EMBEDDING in spec.engine
            )
    spent: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    labels: dict[str, NDArray[np.int64]] = {}
    for turn in range(rounds + 1):
        # Each round begins with another engine: none always runs in the wake of the same one.
        begin = turn % len(ready)
        for each in (*ready[begin:], *ready[:begin]):
            start = now()
            labels[each.name] = chains[each.name].find(event.hits)
            elapsed = {CHAIN: now() - start}
            elapsed |= {spec.name: each.networks[spec.name].take() for spec in stages}
            if turn == 0:
                first[each.name, CHAIN] = float(elapsed[CHAIN][0])
                continue
            for stage, some in elapsed.items():
                spent[each.name, stage].append(some)
    counts = {name: _judged(event, found) for name, found in labels.items()}
    rows = []
    for each in ready:
        for stage in (*(spec.name for spec in stages), CHAIN):
            at = (each.name, stage)
            row = _timed(event, wanted, at, first=first[at], spent=spent)
            if stage == CHAIN:
                row = _with_changes(row, labels[each.name], counts[each.name], wanted)
            rows.append(replace(row, deviation=deviation.get(at)))
    return rows, counts


def _timed(
    event: Event,
    wanted: Answers,
    at: tuple[str, str],
    *,
    first: float,
    spent: Mapping[tuple[str, str], Sequence[NDArray[np.float64]]],
) -> Time:
    engine, stage = at
    seconds, cpu = np.array(spent[at]).T
    ratio, cpu_ratio = (np.array(spent[REFERENCE, stage]) / np.array(spent[at])).T
    return Time(
        event_id=event.event_id,
        n_hits=event.n_hits,
        engine=engine,
        stage=stage,
        n_rows=event.n_hits if stage == CHAIN else wanted.outputs[stage].shape[0],
        first_seconds=first,
        seconds=tuple(seconds.tolist()),
        cpu_seconds=tuple(cpu.tolist()),
        ratio=tuple(ratio.tolist()),
        p50=quantile(seconds, 0.5),
        p95=quantile(seconds, 0.95),
        ratio_p50=quantile(ratio, 0.5),
        cpu_ratio_p50=quantile(cpu_ratio, 0.5),
    )


def _with_changes(row: Time, labels: NDArray[np.int64], counts: Counts, wanted: Answers) -> Time:
    changes = rate_changes(counts, wanted.counts)
    return replace(
        row,
        equal_labels=float(np.mean(labels == wanted.labels)) if labels.size else 1.0,
        other_tracks=share_of_other_tracks(labels, wanted.labels),
        efficiency_change=changes["efficiency_change"],
        fake_rate_change=changes["fake_rate_change"],
    )


def rate_changes(counts: Counts, wanted: Counts) -> dict[str, float | None]:
    """Return how efficiency and fake rate differ from those wanted; None where one is a share of nothing."""
    found, reference = counts.report().rates, wanted.report().rates
    changes = {
        name: float(getattr(found, name).value) - float(getattr(reference, name).value)
        for name in ("efficiency", "fake_rate")
    }
    return {f"{name}_change": None if np.isnan(change) else change for name, change in changes.items()}


def measure(
    found: Iterable[Candidate],
    events: Sequence[Event],
    *,
    card: ModelCard,
    point: WorkingPointName | None,
    rounds: int,
) -> dict[str, Any]:
    """Measure the engines that are here on every event; return a row for each engine and each time."""
    engines, times, ready = [], [], []
    for candidate in found:
        print(f"{candidate.name}: {candidate.missing or 'passed its gates'}", flush=True)
        engines.append(candidate.to_json())
        if candidate.missing is None:
            ready.append(candidate)
    totals: dict[str, list[Counts]] = defaultdict(list)
    for event in events:
        rows, counts = measure_event(ready, event, card=card, point=point, rounds=rounds)
        times += rows
        for name, counted in counts.items():
            totals[name].append(counted)
        for row in rows:
            print(_line(row), flush=True)
    summed = {name: sum(counted[1:], counted[0]) for name, counted in totals.items()}
    for engine in engines:
        if engine["missing"] is None:
            engine |= rate_changes(summed[engine["engine"]], summed[REFERENCE])
    return {"engines": engines, "times": times}


def _line(row: Time) -> str:
    best = f"{min(row.seconds) * 1e3:.1f} to {max(row.seconds) * 1e3:.1f} ms"
    ratio = f"{np.mean(row.ratio):.2f} times as fast as torch ({min(row.ratio):.2f} to {max(row.ratio):.2f})"
    return f"event {row.event_id}, {row.stage}, {row.n_rows} rows, {row.engine}: {best}, {ratio}"


def main(
    events: Annotated[list[Path], typer.Argument(help="Events with truth.")],
    *,
    engines: Annotated[Path, typer.Option(help="Folder of ONNX engines of the weights, fp32.")],
    weights: Annotated[Path, typer.Option(help="Folder of weights.")],
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    plans: Annotated[
        Path | None, typer.Option(help="Folder of TensorRT engines of the weights, where TensorRT is.")
    ] = None,
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="The cuts; the model's default if not given.")
    ] = None,
    first: Annotated[int, typer.Option(min=1, help="Events that are taken, the first of those given.")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds that count, on each event; a median wants 20, a p95 200.")
    ] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine and stage.")] = 2,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile, too.")
    ] = True,
) -> None:
    """Time the networks and the chain in every engine there is, and write JSON."""
    torch.set_num_threads(threads)
    set_compiled_threads(threads)
    card, networks = load_weights(weights)
    check_card(engines, card=card)
    taken = list(islice(read_all(events), first))
    if not taken:
        raise UsageError("bench.engines: the event files hold no events")
    result: dict[str, Any] = {
        **describe_machine(),
        "threads": threads,
        "versions": describe_versions(("tritrack", "numpy", "numba", "onnx", "onnxruntime", "torch")),
        "card_sha256": card.hash,
        "model": card.name,
        "working_point": working_point or card.default,
        "n_events": len(taken),
        "rounds": rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        # What an earlier run left would hide what compiling costs.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        found = candidates(
            card=card, networks=networks, engines=engines, plans=plans, compiled=compiled, threads=threads
        )
        result |= measure(found, taken, card=card, point=working_point, rounds=rounds)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
