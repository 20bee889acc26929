"""Time and memory against the size of an event: ``python -m tritrack.bench.scaling EVENTS... --engines FOLDER --weights FOLDER --out FILE.json``.

Events grow in two ways (`tritrack.bench.costs.sizes`), and each has its laws. All sizes take their turn in each round.
Until the result is there, what is done is kept in ``FILE.points.json``: a run that was stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
import typer

from tritrack.bench.costs.peak import WARM_UP_HITS, Peak
from tritrack.bench.costs.power_law import PowerLaw, fit_power_law
from tritrack.bench.costs.sizes import Axis, Size, make_sizes, read_wholes, window
from tritrack.bench.result import Header, ResultError, checkpoint_of, make_header, read_result, write_result
from tritrack.bench.weights import check_card
from tritrack.failures import UsageError, one_sentence
from tritrack.stages.card import WorkingPointName, engine_file, read_card
from tritrack.stages.contract import STAGES
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import plan_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

Quantity = Literal["seconds", "cpu_seconds", "bytes"]
Rows = Literal["n_hits", "n_pairs", "n_edges"]

CHAIN = "chain"
"""In the place of a stage: the whole way from hits to labels."""

ROWS_OF: dict[str, Rows] = {"graph": "n_pairs", "filter": "n_pairs", "gnn": "n_edges", "labelling": "n_edges"}
"""What a stage's cost is fitted against, beside the hits: what it gives or takes."""

FIT_FROM = (0, 10_000)
"""Fits take the points with so many hits or more: all, and those where calls cost nothing beside the hits."""

MIN_BYTES = 4 << 20
"""Least memory of a point that is fitted: of less, pages and pools are too large a part."""

MEMORIES = (2, 4, 8, 16)
"""In GB (10^9 bytes), the memories that the largest event is told for."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The chain on one event.

    Attributes
    ----------
    axes, turn, n_events, pileup, n_hits, hits_sha256
        The event, see `tritrack.bench.costs.sizes.Size`.
    memory
        Of a process that ran this event alone, once.
    seconds, cpu_seconds
        By stage, and for "chain", wall time and processor time of all threads in each round; empty where the chain does
        not take the event.
    """

    axes: tuple[Axis, ...]
    turn: float
    n_events: int
    pileup: float | None
    n_hits: int
    hits_sha256: str
    memory: Peak
    seconds: dict[str, tuple[float, ...]]
    cpu_seconds: dict[str, tuple[float, ...]]

    @property
    def n_rounds(self) -> int:
        """Rounds that are done."""
        return len(self.seconds.get(CHAIN, ()))

    def cost(self, stage: str, quantity: Quantity) -> float | None:
        """Return what a stage, or the chain, costs: of times the middle one; None where it was not measured."""
        if quantity == "bytes":
            return self.memory.chain_bytes if stage == CHAIN else self.memory.stage_bytes.get(stage)
        times = getattr(self, quantity).get(stage)
        return float(np.median(times)) if times else None

    def rows(self, kind: Rows) -> int | None:
        """Return the number of hits, pairs or edges; None where it was not measured."""
        return self.n_hits if kind == "n_hits" else getattr(self.memory, kind)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a cost grows.

    Attributes
    ----------
    axis
        The way that events grow.
    stage
        The stage, or "chain".
    quantity, against
        y and x of the law.
    from_hits
        Least hits of its points.
    law
        The law.
    """

    axis: Axis
    stage: str
    quantity: Quantity
    against: Rows
    from_hits: int
    law: PowerLaw


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest event that the chain finds tracks in within a memory, by the law of its memory on the axis of densities.

    Attributes
    ----------
    memory_gb
        Memory of the whole process, libraries and engines included, in 10^9 bytes.
    n_hits
        Hits of the event.
    extrapolated
        Whether that lies outside the sizes that the law was fitted to.
    over_limit
        Whether it is more than the model card's ``max_hits``.
    """

    memory_gb: float
    n_hits: int
    extrapolated: bool
    over_limit: bool


@dataclass(frozen=True, kw_only=True)
class Points:
    """What a run has done so far, by size, and the hash of each engine file that it used."""

    header: Header
    engines_sha256: dict[str, str]
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Points, and the laws through them."""

    header: Header
    points: tuple[Point, ...]
    fits: tuple[Fit, ...]
    largest: tuple[Largest, ...]

    def ratios(self) -> dict[str, float]:
        """Return time and memory a hit in about a tenth of an event, by those in the whole event, at one density.

        1 where costs are linear in the hits; processor times, compared within each round.
        """
        phi = [point for point in self.points if "phi" in point.axes and point.n_rounds]
        if len(phi) < 2:
            return {}
        whole = phi[-1]
        part = min(phi[:-1], key=lambda point: abs(np.log(10 * point.n_hits / whole.n_hits)))
        hits = whole.n_hits / part.n_hits
        n_rounds = min(part.n_rounds, whole.n_rounds)
        seconds = np.array(part.cpu_seconds[CHAIN][:n_rounds]) / np.array(whole.cpu_seconds[CHAIN][:n_rounds])
        ratios = {"time a hit, tenth by whole": float(np.median(seconds)) * hits}
        if part.memory.chain_bytes >= MIN_BYTES:
            memory = part.memory.chain_bytes / whole.memory.chain_bytes
            ratios["memory a hit, tenth by whole"] = memory * hits
        return ratios


def measure_memory(
    size: Size, *, engines: Path, working_point: WorkingPointName | None, threads: int
) -> Peak:
    """Run the chain on an event in a process of its own; one that the system ends is an event that is refused."""
    with tempfile.TemporaryDirectory() as folder:
        hits = Path(folder) / "hits.npy"
        np.save(hits, size.hits)
        command = [sys.executable, "-m", "tritrack.bench.costs.peak", str(hits), "--engines", str(engines)]
        command += ["--threads", str(threads)]
        if working_point is not None:
            command += ["--working-point", working_point]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode < 0:
        return Peak(base_bytes=0, refused=f"ended by signal {-done.returncode}: out of memory?")
    if done.returncode > 0:
        raise ResultError(f"bench.scaling: the run of {size.n_hits} hits failed, see above")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Peak)


def time_once(pipeline: Pipeline, point: Point, hits: NDArray[np.float32]) -> Point:
    """Return the point with one more round."""
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}
    cpu = time.process_time()

    def on_stage(stage: str, _: dict[str, NDArray[Any]], elapsed: float) -> None:
        nonlocal cpu
        seconds[stage] = elapsed
        before, cpu = cpu, time.process_time()
        cpu_seconds[stage] = cpu - before

    pipeline.find(hits, on_stage=on_stage)
    seconds[CHAIN], cpu_seconds[CHAIN] = sum(seconds.values()), sum(cpu_seconds.values())
    return replace(
        point,
        seconds={stage: (*point.seconds.get(stage, ()), some) for stage, some in seconds.items()},
        cpu_seconds={stage: (*point.cpu_seconds.get(stage, ()), some) for stage, some in cpu_seconds.items()},
    )


def hash_engines(folder: Path) -> dict[str, str]:
    """Return the hash of each network's files: one model card can have been exported in several ways."""
    names = [
        name for spec in STAGES if spec.engine for name in (engine_file(spec.name), plan_file(spec.name))
    ]
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names
        if (folder / name).exists()
    }


def kept_points(file: Path, begun: Points) -> dict[str, Point]:
    """Return what an earlier run left, by hash of the hits; nothing where it was made with something else.

    Raises
    ------
    ResultError
        Where the file is none of points.
    """
    if not file.exists():
        return {}
    kept = read_result(file, Points)
    if (kept.header, kept.engines_sha256) != (begun.header, begun.engines_sha256):
        print(f"{file}: made with another model, engine, machine or version; begun anew", flush=True)
        return {}
    return {point.hits_sha256: point for point in kept.points}


def measure(
    sizes: Sequence[Size],
    *,
    engines: Path,
    header: Header,
    working_point: WorkingPointName | None,
    threads: int,
    rounds: int,
    checkpoint: Path,
) -> tuple[Point, ...]:
    """Measure each size's memory, then all of their times in rounds; write down each one that is done.

    Parameters
    ----------
    sizes
        From the least hits to the most.
    engines, working_point
        The chain.
    header
        What it is made with.
    threads
        Of the chain.
    rounds
        Rounds of times.
    checkpoint
        Where the points are written, and an earlier run's are found.

    Raises
    ------
    ResultError
        Where the checkpoint cannot be read, or a process fails for another reason than its event's size.
    """
    keys = [size.sha256 for size in sizes]
    begun = Points(header=header, engines_sha256=hash_engines(engines), points=())
    points = {key: point for key, point in kept_points(checkpoint, begun).items() if key in keys}

    def keep(point: Point) -> None:
        points[point.hits_sha256] = point
        done = tuple(points[key] for key in keys if key in points)
        write_result(replace(begun, points=done), checkpoint)

    for key, size in zip(keys, sizes, strict=True):
        if key not in points:
            memory = measure_memory(size, engines=engines, working_point=working_point, threads=threads)
            keep(_point(size, key, memory))
            print(_memory_line(points[key]), flush=True)
    pipeline = Pipeline.load(engines, threads=threads, working_point=working_point)
    pipeline.find(window(sizes[-1].hits, n_hits=WARM_UP_HITS)[0])
    for turn in range(rounds):
        for key, size in zip(keys, sizes, strict=True):
            if points[key].memory.refused is None and points[key].n_rounds <= turn:
                keep(time_once(pipeline, points[key], size.hits))
        print(f"round {turn + 1} of {rounds} is done", flush=True)
    return tuple(points[key] for key in keys)


def _point(size: Size, key: str, memory: Peak) -> Point:
    return Point(
        axes=size.axes,
        turn=size.turn,
        n_events=size.n_events,
        pileup=size.pileup,
        n_hits=size.n_hits,
        hits_sha256=key,
        memory=memory,
        seconds={},
        cpu_seconds={},
    )


def fit_points(points: Iterable[Point]) -> list[Fit]:
    """Fit every stage's time and memory, on both axes; of three points at least."""
    taken = [point for point in points if point.memory.refused is None]
    fits = []
    for axis in ("phi", "density"):
        for from_hits in FIT_FROM:
            chosen = [point for point in taken if axis in point.axes and point.n_hits >= from_hits]
            for stage in (*(spec.name for spec in STAGES), CHAIN):
                against: tuple[Rows, ...] = ("n_hits", ROWS_OF[stage]) if stage in ROWS_OF else ("n_hits",)
                for quantity in ("seconds", "cpu_seconds", "bytes"):
                    for rows in against:
                        law = _law(chosen, stage, quantity, rows)
                        if law is not None:
                            fits.append(
                                Fit(
                                    axis=axis,
                                    stage=stage,
                                    quantity=quantity,
                                    against=rows,
                                    from_hits=from_hits,
                                    law=law,
                                )
                            )
    return fits


def _law(points: Iterable[Point], stage: str, quantity: Quantity, against: Rows) -> PowerLaw | None:
    least = MIN_BYTES if quantity == "bytes" else 0.0
    pairs = [(point.rows(against), point.cost(stage, quantity)) for point in points]
    measured = [(x, y) for x, y in pairs if x and y and y >= least]
    if len(measured) < 3:
        return None
    return fit_power_law(*zip(*measured, strict=True))


def largest_events(points: Sequence[Point], fits: Iterable[Fit], *, max_hits: int) -> list[Largest]:
    """Return the largest event for each of ``MEMORIES``, where the chain's memory has a law that rises."""
    law = _far_fits(fits).get(("density", CHAIN, "bytes", "n_hits"))
    if law is None or law.exponent <= 0:
        return []
    # A process that compiled its loops holds more than those that found them compiled.
    base = float(np.median([point.memory.base_bytes for point in points if point.memory.base_bytes]))
    rows = []
    for memory_gb in MEMORIES:
        if memory_gb * 1e9 > base:
            n_hits = int(law.where(memory_gb * 1e9 - base))
            rows.append(
                Largest(
                    memory_gb=memory_gb,
                    n_hits=n_hits,
                    extrapolated=not law.smallest <= n_hits <= law.largest,
                    over_limit=n_hits > max_hits,
                )
            )
    return rows


def _far_fits(fits: Iterable[Fit]) -> dict[tuple[Axis, str, Quantity, Rows], PowerLaw]:
    """Return the laws of the events with most hits, where there are enough, and else those of all."""
    by_start = sorted(fits, key=lambda fit: fit.from_hits)
    return {(fit.axis, fit.stage, fit.quantity, fit.against): fit.law for fit in by_start}


def _memory_line(point: Point) -> str:
    pileup = "" if point.pileup is None else f", pile-up {point.pileup:.0f}"
    event = f"{point.n_hits} hits ({100 * point.turn:.1f} % in phi{pileup}, of {point.n_events} events)"
    if point.memory.refused is not None:
        return f"{event}: refused: {point.memory.refused}"
    return (
        f"{event}: {point.memory.n_pairs} pairs, {point.memory.n_edges} edges, "
        f"{point.memory.chain_bytes / 1e6:.0f} MB above {point.memory.base_bytes / 1e6:.0f}"
    )


def _report(result: Result) -> None:
    for (axis, stage, quantity, against), law in _far_fits(result.fits).items():
        print(
            f"{axis}, {stage}: {quantity} by {against} ^ {law.exponent:.2f} +- {law.error:.2f} "
            f"({law.n_points} points, {law.smallest:.0f} to {law.largest:.0f})"
        )
    for row in result.largest:
        marks = [
            mark
            for mark, holds in (
                ("extrapolated", row.extrapolated),
                ("over the model's limit", row.over_limit),
            )
            if holds
        ]
        print(f"{row.memory_gb:.0f} GB: {row.n_hits} hits{''.join(f', {mark}' for mark in marks)}")
    for name, ratio in result.ratios().items():
        print(f"{name}: {ratio:.3f}")


def main(
    events: Annotated[list[Path], typer.Argument(help="Whole events, of several pile-ups.")],
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
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of times.")] = 5,
    most_hits: Annotated[
        int | None, typer.Option(min=1, help="Leave out what has more hits; for a short run.")
    ] = None,
) -> None:
    """Measure the chain's time and memory on events of many sizes, and write JSON."""
    card = read_card(weights)
    check_card(engines, card=card)
    header = make_header(
        "scaling",
        card=card,
        working_point=working_point,
        threads=threads,
        packages=("tritrack", "numpy", "numba", "scipy", "onnxruntime"),
    )
    wholes = read_wholes(events)
    sizes = make_sizes(wholes, max_hits=card.limits.max_hits)
    sizes = [size for size in sizes if most_hits is None or size.n_hits <= most_hits]
    if not sizes:
        raise UsageError(f"bench.scaling: no event has as few as {most_hits} hits")
    points = measure(
        sizes,
        engines=engines,
        header=header,
        threads=threads,
        working_point=working_point,
        rounds=rounds,
        checkpoint=checkpoint_of(out),
    )
    fits = fit_points(points)
    largest = largest_events(points, fits, max_hits=card.limits.max_hits)
    result = Result(header=header, points=points, fits=tuple(fits), largest=tuple(largest))
    write_result(result, out)
    checkpoint_of(out).unlink()  # or the next run would find all of it done
    _report(result)


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
