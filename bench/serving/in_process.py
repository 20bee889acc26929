"""The chain in a process of its own, which finds an event's tracks when it is told to.

What serving costs is its time beside the chain's, and both must run under the same conditions. The environment of a
server is not that of the program that starts it: it sets how memory is allocated (`service/installation.py`), which
the C library reads once, when a process begins. So the chain runs in a fresh process with the server's environment. It
is told one event at a time, over a pipe, takes its turn beside the ways through the server, and times itself, so that
the pipe costs it nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Self

import msgspec
import typer

from tritrack.bench.event_sets import read_sets
from tritrack.ensemble_repo.plan import DeviceKind  # noqa: TC001 (typer reads the annotations)
from tritrack.failures import one_sentence
from tritrack.stages.card import WorkingPointName  # noqa: TC001
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.placement import find_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


class InProcessError(RuntimeError):
    """The process of the chain ended; the message says with what status."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the chain says of an event.

    Attributes
    ----------
    labels
        Digest of the labels (`digest`).
    seconds, cpu_seconds
        Wall time, and processor time of all threads.
    stages
        Wall time of each stage, s.
    """

    labels: str
    seconds: float
    cpu_seconds: float
    stages: dict[str, float]


class InProcess:
    """The chain in its process; use as a context manager.

    Parameters
    ----------
    events
        Sets of events; they are read there, and never cross the pipe.
    first
        Events that are taken of each set, see `tritrack.bench.event_sets.for_each`.
    engines, threads, working_point
        What it is loaded from.
    device
        Where it computes: on the first GPU, or on the host.
    environment
        Its environment: a server's.
    """

    def __init__(
        self,
        events: Sequence[Path],
        *,
        first: Sequence[int],
        engines: Path,
        device: DeviceKind,
        threads: int,
        working_point: WorkingPointName | None,
        environment: Mapping[str, str],
    ) -> None:
        command = [
            sys.executable,
            "-m",
            __name__,
            *map(str, events),
            f"--engines={engines}",
            f"--device={device}",
        ]
        command += [f"--threads={threads}", *(f"--first={n_events}" for n_events in first)]
        if working_point is not None:
            command.append(f"--working-point={working_point}")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment)
        )

    def find(self, event: int) -> Answer:
        """Find the tracks of an event, by its place in all sets together (raises InProcessError)."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        try:
            pipe_in.write(b"%d\n" % event)
            pipe_in.flush()
        except BrokenPipeError:
            line = b""
        else:
            line = pipe_out.readline()
        if not line:
            raise InProcessError(f"the chain's process ended with status {self._process.wait()}")
        return msgspec.json.decode(line, type=Answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Without the pipe it has nothing more to do, and ends.
        self._process.communicate()


def digest(labels: NDArray[np.int64]) -> str:
    """Return a string that is another one for other labels."""
    return hashlib.sha256(labels.tobytes()).hexdigest()


def answer(chain: Pipeline, hits: NDArray[np.float32]) -> Answer:
    """Run the chain once and time it (raises ContractError)."""
    stages: dict[str, float] = {}
    cpu, start = time.process_time(), time.perf_counter()
    labels = chain.find(hits, on_stage=lambda stage, _, seconds: stages.update({stage: seconds}))
    return Answer(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu,
        labels=digest(labels),
        stages=stages,
    )


def main(
    events: Annotated[list[Path], typer.Argument(help="Sets of events, a folder each.")],
    *,
    engines: Annotated[Path, typer.Option(help="Folder of engines.")],
    device: Annotated[DeviceKind, typer.Option(help="Where it computes.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads.")],
    first: Annotated[list[int], typer.Option(min=1, help="Events that are taken of each set.")],
    working_point: Annotated[WorkingPointName | None, typer.Option(help="Working point.")] = None,
) -> None:
    """Read an event's place a line, write what the chain says of it, and end with the input."""
    hits = [event.hits for some in read_sets(events, first=first).values() for event in some]
    where = find_device(device.upper(), 0)
    chain = Pipeline.load(engines, threads=threads, working_point=working_point, device=where)
    for line in sys.stdin:
        sys.stdout.buffer.write(msgspec.json.encode(answer(chain, hits[int(line)])) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
