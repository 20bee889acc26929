"""The same networks in every engine: ``python -m tritrack.bench.engines EVENTS... --out FILE.json``.

Every engine takes its turn in each round, so that whatever else the machine does falls on all of them; what counts is
the ratio of times within a round. Beside each time stands what the engine's answers differ by from those of torch. An
engine that is not there on this machine is a row that says why.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
import typer

from tritrack.bench.candidates import NETWORKS, REFERENCE, candidates, check_card, now
from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.bench.quantiles import quantile
from tritrack.events.source import read_all
from tritrack.export.gates import deviation_of, share_of_other_tracks
from tritrack.failures import UsageError, one_sentence
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import TARGETS
from tritrack.stages.card import WorkingPointName  # noqa: TC001 (typer reads the annotations)
from tritrack.stages.contract import EMBEDDING
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.stage import set_compiled_threads
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.bench.candidates import Candidate, Timed
    from tritrack.events.event import Event
    from tritrack.physics.metrics import Counts
    from tritrack.stages.card import ModelCard
    from tritrack.stages.engine import Engine

CHAIN = "chain"
"""In the place of a stage: the whole way from hits to labels."""


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
