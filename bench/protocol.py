"""Fixed protocols: ``python -m tritrack.bench.protocol short|full --out bench/results``.

Simulates the events that all measurements share, exports the engines, and runs one measurement after the other, each in
a process of its own, so that none finds a warm machine or memory that another left. Results go to
``OUT/short/NAME.json`` and ``OUT/full/NAME.json``. What is there already, of the same model card, versions and processor,
is not measured again: an interrupted protocol goes on where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritrack.bench.event_sets import EVENT_SETS, Length, simulate_set
from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.bench.result import ResultError, checkpoint_of, read_header
from tritrack.failures import UsageError, one_sentence
from tritrack.stages.card import read_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tritrack.bench.result import Header
    from tritrack.stages.card import ModelCard

LOG_TAIL = 5
"""Lines of the log that are shown of what failed."""


class ProtocolError(RuntimeError):
    """A step of a protocol that failed; the message names it and its log."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A module of `tritrack.bench` that measures, and its arguments in each protocol.

    Attributes
    ----------
    name
        Of the module and of its result.
    short, full
        Its arguments, but for ``--out``. In each, ``{events}`` is the folder of the event sets, ``{engines}`` that of the
        engines and ``{weights}`` that of the weights.
    guarded
        Whether `tritrack.bench.guard` runs it.
    """

    name: str
    short: tuple[str, ...]
    full: tuple[str, ...]
    guarded: bool = False

    def command(self, length: Length, *, out: Path, places: Mapping[str, Path]) -> list[str]:
        """Return the command that measures."""
        arguments = [
            argument.format(**places) for argument in (self.short if length == "short" else self.full)
        ]
        return [sys.executable, "-m", f"tritrack.bench.{self.name}", *arguments, "--out", str(out)]


_SERVED = ("--engines", "{engines}", "--threads", "1")
_OF_WEIGHTS = (*_SERVED, "--weights", "{weights}")
_COMPARED = ("--engines", "{engines}", "--threads", "2")
_SIZES = ("{events}/pileup0", "{events}/pileup40", "{events}/pileup200")

MEASUREMENTS = (
    Measurement(
        name="engines",
        short=("{events}/pileup0", "{events}/pileup40", *_OF_WEIGHTS, "--first", "1", "--rounds", "20"),
        # Samples of a p95 where events are small, of a median where they are not.
        full=(
            *("{events}/pileup0", "{events}/pileup40", "{events}/pileup100", "{events}/pileup200"),
            *(*_OF_WEIGHTS, "--first", "3", "--rounds", "67", "--rounds", "7"),
        ),
        guarded=True,
    ),
    Measurement(
        name="service",
        short=("{events}/small", "{events}/pileup40", *_SERVED, "--first", "1", "--in-flight", "2"),
        # Denser ones belong on a GPU (make bench-gpu): beside the time that they take here the service is nothing.
        full=("{events}/small", "{events}/pileup40", *_SERVED, "--first", "10", "--first", "5"),
    ),
    Measurement(
        name="memory",
        short=("--events", "{events}/small", *_SERVED, "--requests", "400"),
        full=("--events", "{events}/small", *_SERVED, "--requests", "2000"),
    ),
    Measurement(
        name="tail_latency",
        short=("{events}/small", *_SERVED, "--requests", "200"),
        # The answers of a p99 at each share, and those of a p99.9 at the highest, where they come soonest.
        full=("{events}/small", *_SERVED, *(("--requests", "1000") * 3), "--requests", "10000"),
    ),
    Measurement(
        name="sweep",
        short=("--events", "{events}/small", *_SERVED, "--short"),
        full=("--events", "{events}/small", "--events", "{events}/pileup40", *_SERVED),
    ),
    Measurement(
        name="scaling",
        short=(*_SIZES, *_OF_WEIGHTS, "--rounds", "3", "--most-hits", "180000"),
        full=("{events}/pileup100", *_SIZES, *_OF_WEIGHTS, "--rounds", "10"),
    ),
    Measurement(
        name="floors",
        short=("{events}/pileup40", *_OF_WEIGHTS, "--first", "1", "--rounds", "5"),
        full=("{events}/pileup200", *_OF_WEIGHTS, "--first", "2", "--rounds", "20"),
    ),
    Measurement(
        name="compare",
        short=("{events}/pileup40", "{events}/pileup200", *_COMPARED, "--first", "2", "--first", "1"),
        full=("{events}/pileup40", "{events}/pileup200", *_COMPARED, "--rounds", "3"),
    ),
)
"""What the protocols run, in this order."""


def is_current(header: Header, *, card: ModelCard) -> bool:
    """Tell whether a result is of this model card, these versions and this processor."""
    machine = describe_machine()
    try:
        versions = describe_versions(name for name in header.versions if name != "python")
    except PackageNotFoundError:
        return False
    return (
        header.card_sha256 == card.hash
        and header.versions == versions
        and (header.cpu, header.cores) == (machine["cpu"], machine["cores"])
    )


def chosen(measurements: Sequence[Measurement], only: Sequence[str]) -> list[Measurement]:
    """Return the measurements of these names, all where none is given (raises UsageError)."""
    names = [each.name for each in measurements]
    for name in only:
        if name not in names:
            raise UsageError(f"--only: {name} given, wanted is one of {', '.join(names)}")
    return [each for each in measurements if each.name in only or not only]


def run_protocol(
    length: Length,
    measurements: Sequence[Measurement],
    *,
    out: Path,
    work: Path,
    weights: Path,
    again: bool = False,
) -> None:
    """Run the measurements one after the other.

    Parameters
    ----------
    length
        Which protocol.
    measurements
        What to run.
    out
        Folder for a folder of results.
    work
        Folder for events, engines and logs.
    weights
        Folder of weights.
    again
        Whether to measure what is there already, too, and whole where a run was stopped.

    Raises
    ------
    ProtocolError
        Where one fails: at the end, when the others are done. Where the engines cannot be exported: at once.
    """
    card = read_card(weights)
    # A folder for each: a measurement takes all events of a set, and the full protocol has more.
    places = {"events": work / "events" / length, "engines": work / "engines", "weights": weights}
    results = {each.name: out / length / f"{each.name}.json" for each in measurements}
    wanted = [each for each in measurements if again or not _there_already(results[each.name], card=card)]
    if not wanted:
        return
    _prepare(length, places, logs=work / "logs")
    failed = []
    for each in wanted:
        if again:
            checkpoint_of(results[each.name]).unlink(missing_ok=True)
        log = work / "logs" / f"{length}-{each.name}.log"
        if not _run(each.name, each.command(length, out=results[each.name], places=places), log=log):
            failed.append(f"{each.name} (see {log})")
    if failed:
        raise ProtocolError(f"failed: {', '.join(failed)}")


def _there_already(path: Path, *, card: ModelCard) -> bool:
    try:
        current = is_current(read_header(path), card=card)
    except ResultError:
        return False
    if current:
        print(f"{path}: there already; --again measures anyway", flush=True)
    return current


def _prepare(length: Length, places: Mapping[str, Path], *, logs: Path) -> None:
    """Simulate the events that are not there yet, and export the engines."""
    for events in EVENT_SETS:
        start = time.perf_counter()
        n_new = simulate_set(
            events,
            places["events"] / events.name,
            n_events=events.n_events(length),
            jobs=len(os.sched_getaffinity(0)),
        )
        if n_new:
            print(f"{events.name}: {n_new} events, {time.perf_counter() - start:.0f} s", flush=True)
    # Always anew: engines of older code would be measured as today's.
    export = [sys.executable, "-m", "tritrack", "export", "--weights", str(places["weights"])]
    log = logs / "export.log"
    if not _run("export", [*export, "--out", str(places["engines"])], log=log):
        raise ProtocolError(f"the engines could not be exported, see {log}")


def _run(name: str, command: Sequence[str], *, log: Path) -> bool:
    """Run a command, its output in a log; say how long it took, and return whether it succeeded."""
    print(f"{name}: ", end="", flush=True)
    start = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        print(*command, file=file, flush=True)
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        print(f"{seconds:.0f} s", flush=True)
        return True
    tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
    print(f"failed after {seconds:.0f} s, exit code {done.returncode}", *tail, sep="\n  ", flush=True)
    return False


def main(
    length: Annotated[Length, typer.Argument(help="Which protocol: minutes, or hours.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder; results go to its folder short or full.")],
    only: Annotated[list[str], typer.Option(help="Run this measurement alone; may be given again.")] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    weights: Annotated[Path, typer.Option(help="Folder of weights.")] = Path("weights/default"),
    work: Annotated[Path, typer.Option(help="Folder for events, engines and logs.")] = Path("build/bench"),
    again: Annotated[bool, typer.Option("--again", help="Measure what is there already, too.")] = False,
) -> None:
    """Simulate events, export engines, run every measurement, and write its result."""
    start = time.perf_counter()
    try:
        run_protocol(length, chosen(MEASUREMENTS, only), out=out, work=work, weights=weights, again=again)
    finally:
        print(f"all: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    with one_sentence(extra="dev"):
        typer.run(main)
