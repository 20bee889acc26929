"""How far each stage is from what the machine allows: ``python -m tritrack.bench.floors --engines FOLDER --weights FOLDER --out FILE.json EVENTS...``.

The floor of a stage is the longer of two times: that to read its inputs and weights and to write its outputs once, at
the bandwidth that this machine reaches, and that of its operations, at the rate that it reaches. Both are measured before
each event in each round, with the stages' threads. Where torch has a GPU, the same is done there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import torch
import typer

from tritrack.bench.candidates import NETWORKS
from tritrack.bench.costs.counts import Count, count_stages, tensors_of
from tritrack.bench.costs.rates import Device, Probes, timed
from tritrack.bench.costs.traffic import count_network
from tritrack.bench.result import Header, make_header, write_result
from tritrack.bench.stages import device_functions
from tritrack.bench.threads import set_threads
from tritrack.bench.weights import check_card
from tritrack.events.source import read_all
from tritrack.export.network import export_network
from tritrack.failures import UsageError, one_sentence
from tritrack.stages.card import WorkingPointName  # noqa: TC001 (typer reads the annotations)
from tritrack.stages.contract import EDGE_INDEX, STAGES
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tritrack.bench.costs.counts import Arrays
    from tritrack.bench.costs.traffic import NetworkCost
    from tritrack.events.event import Event

Clock = Literal["wall", "cpu"]
CLOCKS: tuple[Clock, ...] = get_args(Clock)
"""In the order of `tritrack.bench.candidates.now`."""

N_GAPS = 3
"""Gaps that the result ends with."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a device reached, in each round of each event.

    Attributes
    ----------
    device
        "cpu", with the header's threads, or "cuda".
    clock
        Whether its seconds are of wall time or of processor time, of all threads together.
    bandwidth
        Bytes a second of a triad.
    rates
        Operations a second, by product.
    """

    device: Device
    clock: Clock
    bandwidth: tuple[float, ...]
    rates: dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage on one event.

    Attributes
    ----------
    event_id, n_hits, n_pairs, n_edges
        The event, and the pairs that graph and filter give.
    device, stage
        Where it ran. On "cuda" the networks are torch's.
    count
        What it must do.
    seconds
        Wall time in each round.
    floor_seconds
        The floor in each round, with what the machine reached in that round.
    unfused_seconds
        The time of ``count.unfused_bytes`` in each round; empty for a stage without a network.
    bound
        What sets the floor.
    fraction
        The middle of floor by time: 1 is a stage at its floor.
    cpu_fraction
        The same with processor times of the stage and of what the floor comes from, which other work on the machine hardly
        changes; with one thread alone it is the same figure. None on a GPU.
    """

    event_id: int
    n_hits: int
    n_pairs: int
    n_edges: int
    device: Device
    stage: str
    count: Count
    seconds: tuple[float, ...]
    floor_seconds: tuple[float, ...]
    unfused_seconds: tuple[float, ...]
    bound: str
    fraction: float
    cpu_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What a stage takes beyond its floor on the event with the most hits, and how many times its floor it takes."""

    device: Device
    stage: str
    seconds: float
    factor: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """Stages against their floors.

    Attributes
    ----------
    header
        What it was made with.
    gpu
        Name of the GPU; None without one.
    machines
        What the devices reached.
    rows
        A row for each stage, event and device.
    gaps
        The largest gaps of each device, in seconds, the largest first.
    """

    header: Header
    gpu: str | None
    machines: tuple[Machine, ...]
    rows: tuple[Row, ...]
    gaps: tuple[Gap, ...]

    def ratios(self) -> dict[str, float]:
        """Return how much of its floor each stage reaches on the event with the most hits."""
        return {
            f"fraction of the floor, {row.stage} on {row.device}": row.fraction
            for row in on_largest(self.rows)
        }


def device_stages(
    pipeline: Pipeline, networks: Mapping[str, nn.Module], tensors: Sequence[Arrays], *, device: Device
) -> dict[str, Callable[[], Tensor]]:
    """Return the stages on tensors that stay on a device: graph and labelling where they have a form for it, networks in torch."""

    def there(stage: int, *names: str) -> list[Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(tensors[stage][name])).to(device) for name in names]

    def network(spec_name: str, *inputs: Tensor) -> Callable[[], Tensor]:
        module = networks[spec_name].to(device)

        def run() -> Tensor:
            with torch.inference_mode():
                output: Tensor = module(*inputs)
            return output

        return run

    functions = device_functions(pipeline)
    stages: dict[str, Callable[[], Tensor]] = {}
    for place, spec in enumerate(STAGES):
        inputs = there(place, *(tensor.name for tensor in spec.inputs))
        if spec.engine:
            stages[spec.name] = network(spec.name, *inputs)
        elif spec in functions:
            stages[spec.name] = partial(functions[spec], *inputs)
    return stages


def measure_event(
    stages: Mapping[str, Callable[[], object]], *, device: Device, probes: Probes, rounds: int
) -> dict[Clock, tuple[dict[str, tuple[float, ...]], Machine]]:
    """Time stages one by one, once to warm up and then in rounds, with what the device reaches in each; by clock."""
    seconds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in stages}
    bandwidth, rates = [], []
    for turn in range(rounds + 1):
        if turn:
            bandwidth.append(probes.bandwidth())
            rates.append(probes.rates())
        for name, stage in stages.items():
            elapsed = timed(stage, device=device)
            if turn:
                seconds[name].append(elapsed)
    return {
        clock: (
            {name: tuple(float(each[place]) for each in some) for name, some in seconds.items()},
            Machine(
                device=device,
                clock=clock,
                bandwidth=tuple(float(each[place]) for each in bandwidth),
                rates={name: tuple(float(each[name][place]) for each in rates) for name in rates[0]},
            ),
        )
        for place, clock in enumerate(CLOCKS)
    }


def measure(
    pipeline: Pipeline,
    events: Iterable[Event],
    *,
    networks: Mapping[str, nn.Module],
    costs: Mapping[str, NetworkCost],
    threads: int,
    rounds: int,
) -> tuple[list[Row], list[Machine]]:
    """Measure the stages on every event, on the host and, where there is one, on a GPU.

    Parameters
    ----------
    pipeline
        The chain.
    events
        Events with hits.
    networks
        The same in torch, for a GPU.
    costs
        By stage, of its network.
    threads
        Those of the stages on the host, see `tritrack.bench.threads`.
    rounds
        Rounds that count.

    Raises
    ------
    ContractError
        Where an event is over the card's limits.
    """
    devices: tuple[Device, ...] = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    probes = {
        device: Probes(device=device, networks=pipeline.card.networks, threads=threads) for device in devices
    }
    rows: list[Row] = []
    machines: list[Machine] = []
    for event in events:
        tensors = tensors_of(pipeline, event.hits)
        counts = count_stages(pipeline, tensors, costs)
        for device in devices:
            stages: Mapping[str, Callable[[], object]] = (
                {
                    stage.spec.name: partial(stage, tensors[place])
                    for place, stage in enumerate(pipeline.stages)
                }
                if device == "cpu"
                else device_stages(pipeline, networks, tensors, device=device)
            )
            found = measure_event(stages, device=device, probes=probes[device], rounds=rounds)
            machines += [machine for _, machine in found.values()]
            rows += _rows(event, tensors, counts, found)
    return rows, machines


def _rows(
    event: Event,
    tensors: Sequence[Arrays],
    counts: Mapping[str, Count],
    found: Mapping[Clock, tuple[dict[str, tuple[float, ...]], Machine]],
) -> list[Row]:
    (seconds, machine), (cpu_seconds, cpu_machine) = (found[clock] for clock in CLOCKS)
    return [
        Row(
            event_id=event.event_id,
            n_hits=event.n_hits,
            n_pairs=tensors[2][EDGE_INDEX.name].shape[1],
            n_edges=tensors[3][EDGE_INDEX.name].shape[1],
            device=machine.device,
            stage=stage,
            cpu_fraction=against_floor(counts[stage], cpu_seconds[stage], cpu_machine)["fraction"]
            if machine.device == "cpu"
            else None,
            **against_floor(counts[stage], some, machine),
        )
        for stage, some in seconds.items()
    ]


def against_floor(count: Count, seconds: Sequence[float], machine: Machine) -> dict[str, Any]:
    """Return the fields of a `Row` that follow from a count, the times and what the machine reached beside them."""
    by_bytes = count.bytes / np.array(machine.bandwidth)
    by_operations = count.operations / np.max(list(machine.rates.values()), axis=0)
    floor = np.maximum(by_bytes, by_operations)
    unfused = () if count.unfused_bytes is None else count.unfused_bytes / np.array(machine.bandwidth)
    return {
        "count": count,
        "seconds": tuple(seconds),
        "floor_seconds": tuple(floor.tolist()),
        "unfused_seconds": tuple(np.asarray(unfused).tolist()),
        "bound": "operations" if np.median(by_operations) > np.median(by_bytes) else "bytes",
        "fraction": float(np.median(floor / np.array(seconds))),
    }


def on_largest(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the event with the most hits."""
    found = list(rows)
    largest = max(found, key=lambda row: row.n_hits)
    return [row for row in found if (row.event_id, row.n_hits) == (largest.event_id, largest.n_hits)]


def largest_gaps(rows: Iterable[Row]) -> list[Gap]:
    """Return the largest gaps of each device on the event with the most hits."""
    gaps: dict[Device, list[Gap]] = {}
    for row in on_largest(rows):
        seconds, floor = np.median(row.seconds), np.median(row.floor_seconds)
        gap = Gap(
            device=row.device, stage=row.stage, seconds=float(seconds - floor), factor=1.0 / row.fraction
        )
        gaps.setdefault(row.device, []).append(gap)
    return [
        gap
        for some in gaps.values()
        for gap in sorted(some, key=lambda gap: gap.seconds, reverse=True)[:N_GAPS]
    ]


def _line(row: Row) -> str:
    seconds = np.median(row.seconds)
    unfused = f", unfused {np.median(row.unfused_seconds):.3f} s" if row.unfused_seconds else ""
    return (
        f"event {row.event_id}, {row.n_hits} hits, {row.stage} on {row.device}: {seconds:.3f} s, floor "
        f"{np.median(row.floor_seconds):.4f} s ({row.bound}{unfused}), {100 * row.fraction:.1f} % of it reached"
        f"{'' if row.cpu_fraction is None else f', {100 * row.cpu_fraction:.1f} % by processor time'}"
    )


def main(
    events: Annotated[list[Path], typer.Argument(help="Events to time the stages on.")],
    *,
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    weights: Annotated[Path, typer.Option(help="Folder of the weights that they are of.")] = Path(
        "weights/default"
    ),
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="The cuts; the card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine and stage.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count, on each event.")] = 5,
    first: Annotated[int, typer.Option(min=1, help="Events that are taken, the first of those given.")] = 1,
) -> None:
    """Time each stage beside what the machine allows, and write JSON."""
    card, networks = load_weights(weights)
    check_card(engines, card=card)
    set_threads(threads)
    pipeline = Pipeline.load(engines, threads=threads, working_point=working_point)
    # Counted on the plain export: engines may run in pieces, which changes nothing of what is to be done.
    costs = {
        spec.name: count_network(
            export_network(networks[spec.name], spec=spec, card=card, rendering="scatter"), spec=spec
        )
        for spec in NETWORKS
    }
    with_hits = (event for event in read_all(events) if event.n_hits)
    rows, machines = measure(
        pipeline, islice(with_hits, first), networks=networks, costs=costs, threads=threads, rounds=rounds
    )
    if not rows:
        raise UsageError("bench.floors: the event files hold no hits")
    result = Result(
        header=make_header(
            "floors",
            card=card,
            working_point=working_point,
            threads=threads,
            packages=("tritrack", "numpy", "numba", "onnxruntime", "torch"),
        ),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        machines=tuple(machines),
        rows=tuple(rows),
        gaps=tuple(largest_gaps(rows)),
    )
    write_result(result, out)
    _report(result)


def _report(result: Result) -> None:
    for machine in result.machines:
        where = f"{machine.device}, {machine.clock} time"
        print(f"{where}: triad {np.median(machine.bandwidth) / 1e9:.1f} GB/s")
        for name, rate in machine.rates.items():
            print(f"{where}: {name} at {np.median(rate) / 1e9:.1f} GFLOP/s")
    for row in result.rows:
        print(_line(row))
    for gap in result.gaps:
        print(f"gap, {gap.stage} on {gap.device}: {gap.seconds:.3f} s, {gap.factor:.1f} times its floor")


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
