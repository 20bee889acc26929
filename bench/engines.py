"""The same networks in every engine: ``python -m tritrack.bench.engines EVENTS... --out FILE.json``.

Each argument is a set of events. Every engine takes its turn in each round, so that whatever else the machine does
falls on all of them; what counts is the ratio of times within a round. Beside each time stands what the engine's
answers differ by from those of torch. An engine that is not there on this machine is a row that says why.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tritrack.bench.candidates import NETWORKS, candidates, now
from tritrack.bench.engine_rows import CHAIN, REFERENCE, Result, Time
from tritrack.bench.event_sets import for_each, read_sets
from tritrack.bench.result import make_header, write_result
from tritrack.bench.threads import set_threads
from tritrack.bench.turns import orders
from tritrack.bench.weights import check_card
from tritrack.export.gates import deviation_of, share_of_other_tracks
from tritrack.failures import one_sentence
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import TARGETS
from tritrack.stages.card import WorkingPointName  # noqa: TC001 (typer reads the annotations)
from tritrack.stages.contract import EMBEDDING
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.bench.candidates import Candidate, Timed
    from tritrack.bench.engine_rows import EngineRow
    from tritrack.bench.result import Header
    from tritrack.events.event import Event
    from tritrack.physics.metrics import Counts
    from tritrack.stages.card import ModelCard
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine

PACKAGES = ("tritrack", "numpy", "numba", "onnx", "onnxruntime", "torch")
"""The packages whose versions the result names."""


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


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What the engines did in turn on an event.

    Attributes
    ----------
    spent
        By engine and stage, float64 [rounds + 1, 2]: wall and processor time in s, the first row to warm up.
    labels
        By engine, the last round's tracks.
    """

    spent: dict[tuple[str, str], NDArray[np.float64]]
    labels: dict[str, NDArray[np.int64]]


def measure_event(
    ready: Sequence[Candidate],
    event: Event,
    *,
    events: str,
    card: ModelCard,
    point: WorkingPointName | None,
    rounds: int,
) -> tuple[list[Time], dict[str, Counts]]:
    """Run every engine on an event: once for its answers, once to warm up, and then in rounds.

    Parameters
    ----------
    ready
        Engines that are here; the first is the reference.
    event
        The event, with truth.
    events
        Name of its set.
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
    chains = {
        each.row.engine: Pipeline(card=card, engines=each.networks, working_point=point) for each in ready
    }
    wanted = answers_of(chains[ready[0].row.engine], ready[0].networks, event)
    stages = [spec for spec in NETWORKS if spec.name in wanted.outputs]
    first = {each.row.engine: first_answers(each, stages, wanted) for each in ready}
    turns = take_turns(ready, chains, event, stages=stages, rounds=rounds)
    counts = {name: _judged(event, found) for name, found in turns.labels.items()}
    rows = []
    for name in chains:
        for spec in stages:
            seconds, deviation = first[name][spec.name]
            row = _timed(event, events, turns.spent, (name, spec.name), first=seconds)
            rows.append(replace(row, n_rows=wanted.outputs[spec.name].shape[0], deviation=deviation))
        labels = turns.labels[name]
        row = _timed(event, events, turns.spent, (name, CHAIN), first=float(turns.spent[name, CHAIN][0, 0]))
        equal = float(np.mean(labels == wanted.labels)) if labels.size else 1.0
        other = share_of_other_tracks(labels, wanted.labels)
        rows.append(replace(row, equal_labels=equal, other_tracks=other))
    return rows, counts


def first_answers(
    candidate: Candidate, stages: Sequence[StageSpec], wanted: Answers
) -> dict[str, tuple[float, float]]:
    """Give an engine torch's inputs; return by stage the wall time, in s, and the deviation from torch's outputs."""
    answers = {}
    for spec in stages:
        network = candidate.networks[spec.name]
        network.take()
        found = _outputs(network, wanted.inputs[spec.name])
        relative = EMBEDDING in spec.engine
        answers[spec.name] = (
            float(network.take()[0]),
            deviation_of(wanted.outputs[spec.name], found, relative=relative),
        )
    return answers


def take_turns(
    ready: Sequence[Candidate],
    chains: Mapping[str, Pipeline],
    event: Event,
    *,
    stages: Sequence[StageSpec],
    rounds: int,
) -> Turns:
    """Run every engine's chain once to warm up, and then in rounds."""
    spent: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for order in chain([range(len(ready))], islice(orders(len(ready), seed=event.n_hits), rounds)):
        for each in (ready[number] for number in order):
            name = each.row.engine
            start = now()
            labels[name] = chains[name].find(event.hits)
            spent.setdefault((name, CHAIN), []).append(now() - start)
            for spec in stages:
                spent.setdefault((name, spec.name), []).append(each.networks[spec.name].take())
    return Turns(spent={at: np.array(some) for at, some in spent.items()}, labels=labels)


def _timed(
    event: Event,
    events: str,
    spent: Mapping[tuple[str, str], NDArray[np.float64]],
    at: tuple[str, str],
    *,
    first: float,
) -> Time:
    seconds, cpu_seconds = spent[at][1:].T
    engine, stage = at
    return Time(
        events=events,
        event_id=event.event_id,
        n_hits=event.n_hits,
        engine=engine,
        stage=stage,
        n_rows=event.n_hits,
        first_seconds=first,
        seconds=tuple(seconds.tolist()),
        cpu_seconds=tuple(cpu_seconds.tolist()),
    )


def rate_changes(counts: Counts, wanted: Counts) -> dict[str, float | None]:
    """Return how efficiency and fake rate differ from those wanted; None where one is a share of nothing."""
    found, reference = counts.report().rates, wanted.report().rates
    changes = {
        name: float(getattr(found, name).value) - float(getattr(reference, name).value)
        for name in ("efficiency", "fake_rate")
    }
    return {name: None if np.isnan(change) else change for name, change in changes.items()}


def measure(
    found: Iterable[Candidate],
    sets: Mapping[str, Sequence[Event]],
    *,
    header: Header,
    card: ModelCard,
    point: WorkingPointName | None,
    rounds: Sequence[int],
) -> Result:
    """Measure the engines that are here on every event of every set, in so many rounds."""
    rows: dict[str, EngineRow] = {}
    ready = []
    for candidate in found:
        print(f"{candidate.row.engine}: {candidate.row.missing or 'passed its gates'}", flush=True)
        rows[candidate.row.engine] = candidate.row
        if candidate.row.missing is None:
            ready.append(candidate)
    times: list[Time] = []
    for (events, some), n_rounds in zip(sets.items(), for_each(rounds, len(sets)), strict=True):
        totals: dict[str, Counts] = {}
        for event in some:
            of_event, counts = measure_event(
                ready, event, events=events, card=card, point=point, rounds=n_rounds
            )
            times += of_event
            totals = {
                name: totals[name] + counted if name in totals else counted
                for name, counted in counts.items()
            }
            print(_line(of_event), flush=True)
        for name, counted in totals.items():
            rows[name] = _with_changes(rows[name], events, rate_changes(counted, totals[REFERENCE]))
    return Result(header=header, engines=tuple(rows.values()), times=tuple(times))


def _with_changes(row: EngineRow, events: str, changes: Mapping[str, float | None]) -> EngineRow:
    return replace(
        row,
        efficiency_change=row.efficiency_change | {events: changes["efficiency"]},
        fake_rate_change=row.fake_rate_change | {events: changes["fake_rate"]},
    )


def _line(rows: Sequence[Time]) -> str:
    chains = [row for row in rows if row.stage == CHAIN]
    times = ", ".join(f"{row.engine} {np.median(row.cpu_seconds) * 1e3:.1f} ms" for row in chains)
    return f"{chains[0].events}, event {chains[0].event_id}, {chains[0].n_hits} hits, processor time: {times}"


def main(
    events: Annotated[list[Path], typer.Argument(help="Sets of events with truth, a folder each.")],
    *,
    engines: Annotated[Path, typer.Option(help="Folder of ONNX engines of the weights, fp32.")],
    weights: Annotated[Path, typer.Option(help="Folder of weights.")],
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    plans: Annotated[
        list[Path],
        typer.Option(
            help="Folder of TensorRT engines of the weights; may be given again for another precision."
        ),
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="The cuts; the model's default if not given.")
    ] = None,
    first: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Events that are taken of a set, the first ones; given again for the next set, the last holds on.",
        ),
    ] = [4],  # noqa: B006 (typer reads it, nothing writes to it)
    rounds: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Rounds that count on each event; given again for the next set. Events times rounds: a median wants "
            "20, a p95 200.",
        ),
    ] = [20],  # noqa: B006
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine and stage.")] = 2,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile, too.")
    ] = True,
) -> None:
    """Time the networks and the chain in every engine there is, and write JSON."""
    set_threads(threads)
    card, networks = load_weights(weights)
    check_card(engines, card=card)
    sets = read_sets(events, first=first)
    header = make_header(
        "engines", card=card, working_point=working_point, threads=threads, packages=PACKAGES
    )
    with tempfile.TemporaryDirectory() as folder:
        # What an earlier run left would hide what compiling costs.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        found = candidates(
            card=card, networks=networks, engines=engines, plans=plans, compiled=compiled, threads=threads
        )
        result = measure(found, sets, header=header, card=card, point=working_point, rounds=rounds)
    write_result(result, out)


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
