"""``make demo``: the whole chain on the sample events, through a real server."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tritrack.commands_build import print_gates
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.source import read_all
from tritrack.export.onnx import export_engines
from tritrack.failures import one_sentence
from tritrack.physics.display import write_display
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import Counts, count
from tritrack.physics.selection import TARGETS
from tritrack.service.client import TrackFinder
from tritrack.service.installation import wheel_installation
from tritrack.service.server import Server
from tritrack.stages.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.service.protocol import StepStatistics

SAMPLES = Path("events/samples")
WEIGHTS = Path("weights/default")
BUILD = Path("build")

console = Console(highlight=False, soft_wrap=True)


class DemoError(RuntimeError):
    """The demonstration showed something that must not be."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One event's answer.

    Attributes
    ----------
    event
        The event.
    labels
        int64 [n_hits], from the server.
    seconds
        From the request to the answer.
    """

    event: Event
    labels: NDArray[np.int64]
    seconds: float

    @property
    def counts(self) -> Counts:
        """The event's physics."""
        return count(event=self.event, pairs=pairs_from_labels(self.labels))


def main() -> None:
    """Run every step; raises where one fails."""
    begin = time.perf_counter()
    memory = PeakMemory()
    memory.start()
    threads = len(os.sched_getaffinity(0))
    # Its steps run in this Python, with what is installed here. What it lacks is better known before the work.
    installation = wheel_installation()
    installation.check()
    engines, repository, pictures = BUILD / "engines", BUILD / "model_repository", BUILD / "demo"
    _step(1, f"sample events from {SAMPLES}, weights from {WEIGHTS}")
    events = list(read_all([SAMPLES]))
    _say(", ".join(f"event {event.event_id}: {event.n_hits} hits" for event in events))

    _step(2, f"export of the five stages to {engines}, each behind its parity gate")
    export_engines(weights=WEIGHTS, out=engines, threads=threads, events=events, on_stage=print_gates)

    _step(3, f"model repository in {repository}")
    render_repository(engines=engines, out=repository, server="embedded", device="cpu", threads=threads)
    _say(", ".join(sorted(path.name for path in repository.iterdir() if path.is_dir())))

    _step(4, "tritonserver")
    server = Server(repository, executable=installation.binary)
    _say(f"{installation.binary} (from {installation.source})")
    with server:
        _say(f"ready: gRPC {server.url}, HTTP {server.http_url}, metrics {server.metrics_url}")
        _step(5, "each event by gRPC to the model track_finder, one label per hit back")
        with TrackFinder(server.url) as finder:
            found = [_find(finder, event) for event in events]
            statistics = finder.statistics()
        processes = _tree(server.pid)
    _show_events(found)
    _show_stages(statistics)

    _step(6, "the same events in process, with the same engine files")
    _compare(found, Pipeline.load(engines, threads=threads))

    _step(7, f"pictures in {pictures}")
    pictures.mkdir(parents=True, exist_ok=True)
    for one in found:
        path = pictures / f"event{one.event.event_id:09d}.png"
        write_display(event=one.event, pairs=pairs_from_labels(one.labels), path=path)
        _say(str(path))

    alive = [process.pid for process in processes if process.is_running()]
    if alive:
        raise DemoError(f"the server is stopped, but its processes {alive} still run")
    console.print(
        f"\nThe server is stopped and left no process behind. {time.perf_counter() - begin:.0f} s in all, "
        f"{memory.stop() / 1e9:.1f} GB of memory at most."
    )


def _step(number: int, title: str) -> None:
    console.print(f"\n[bold]{number}. {title}[/bold]")


def _say(text: str) -> None:
    console.print(f"   {text}", markup=False)


def _find(finder: TrackFinder, event: Event) -> Found:
    start = time.perf_counter()
    labels = finder.find(event)
    found = Found(event=event, labels=labels, seconds=time.perf_counter() - start)
    _say(
        f"event {event.event_id}: {labels.size} labels, {labels.max(initial=-1) + 1} tracks, {found.seconds:.2f} s"
    )
    return found


def _show_events(found: Sequence[Found]) -> None:
    table = Table(title=f"What was found (targets: {TARGETS.meaning})", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("event", "hits", "tracks", "targets", "efficiency", "fakes", "duplicates", "time (s)"):
        table.add_column(heading, justify="right")
    rows = [(str(one.event.event_id), one.counts, one.seconds) for one in found]
    total = sum((counts for _, counts, _ in rows[1:]), start=rows[0][1])
    for name, counts, seconds in [*rows, ("all", total, sum(one.seconds for one in found))]:
        report = counts.report()
        rates = report.rates
        table.add_row(
            name,
            str(report.n_hits),
            str(report.n_tracks),
            str(report.n_targets),
            *(f"{rate.value:.4f}" for rate in (rates.efficiency, rates.fake_rate, rates.duplicate_rate)),
            f"{seconds:.2f}",
            end_section=name == str(found[-1].event.event_id),
        )
    console.print(table)


def _show_stages(statistics: Sequence[StepStatistics]) -> None:
    table = Table(title="The server's own statistics, mean per event", box=SIMPLE_HEAD)
    for heading in ("stage", "events", "queue (ms)", "compute (ms)"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for step in statistics:
        table.add_row(
            step.name,
            str(step.count),
            *(f"{total / max(step.count, 1) / 1e6:.2f}" for total in (step.queue_ns, step.compute_ns)),
        )
    console.print(table)


def _compare(found: Sequence[Found], pipeline: Pipeline) -> None:
    for one in found:
        labels = pipeline.find(one.event.hits)
        different = int(np.count_nonzero(labels != one.labels))
        if different:
            raise DemoError(f"event {one.event.event_id}: {different} of {labels.size} labels differ")
    _say(f"all {sum(one.labels.size for one in found)} labels are equal to the server's")


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children, shared pages counted once (PSS)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._stop_sampling = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._stop_sampling.wait(0.25):
            total = 0
            for process in _tree(os.getpid()):
                with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                    total += process.memory_full_info().pss
            self.bytes = max(self.bytes, total)

    def stop(self) -> int:
        """Stop, and return the largest sum seen, in bytes."""
        self._stop_sampling.set()
        self.join()
        return self.bytes


if __name__ == "__main__":
    with one_sentence(extra="server"):
        main()
