"""A small event: some particles of a sample event with all of their hits, and a little else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tritrack.events.event import NOISE, Event
from tritrack.events.source import read_all
from tritrack.physics.selection import COMPARISON, kinematics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tritrack.bench.load_generator.figures import Load
    from tritrack.bench.load_generator.wire import Failure

SAMPLES = Path(__file__).parents[2] / "events" / "samples"


def hits_of_event(event: Event, hits: np.ndarray) -> Event:
    """Return the event with these hits alone, in this order."""
    return dataclasses.replace(
        event,
        hits=event.hits[hits],
        hit_id=np.arange(len(hits)),
        modules=event.modules[hits],
        truth=dataclasses.replace(
            event.truth, particle_id=event.truth.particle_id[hits], order=event.truth.order[hits]
        ),
        measurements=dataclasses.replace(
            event.measurements,
            local=event.measurements.local[hits],
            variance=event.measurements.variance[hits],
        ),
    )


@pytest.fixture(scope="session")
def take_hits() -> Callable[[Event, np.ndarray], Event]:
    """The event with some hits alone, in a new order: ``take_hits(event, hits)``."""
    return hits_of_event


@pytest.fixture(scope="session")
def small_event() -> Event:
    """40 particles that a Kalman filter should find, and every fiftieth of the other hits, as noise."""
    event = next(iter(read_all([SAMPLES])))
    wanted = COMPARISON.passes(event.truth, kinematics(event.truth))
    chosen = np.isin(event.truth.particle_id, event.truth.particles.particle_id[wanted][:40])
    others = np.flatnonzero(~chosen)[::50]
    particle_id = event.truth.particle_id.copy()
    particle_id[others] = NOISE
    event = dataclasses.replace(event, truth=dataclasses.replace(event.truth, particle_id=particle_id))
    return hits_of_event(event, np.sort(np.append(np.flatnonzero(chosen), others)))


@pytest.fixture(scope="session")
def open_load() -> Callable[..., Load]:
    """An open loop that took 10 s: ``open_load(rate=..., latencies=[...])``; times in s.

    ``queues`` are those of steps of 10 requests each, ``counted`` what these had counted before, ``failures`` the requests without an answer, ``cpu_seconds`` what
    the generator took.
    """
    pytest.importorskip("tritonclient.grpc")
    from tritrack.bench.load_generator.figures import Run, Tally, make_load
    from tritrack.bench.load_generator.watch import Use
    from tritrack.service.protocol import StepStatistics

    def load(
        *,
        rate: float,
        latencies: Sequence[float],
        queues: Sequence[float] = (),
        failures: Sequence[Failure] = (),
        cpu_seconds: float = 1.0,
        counted: int = 0,
    ) -> Load:
        before, after = (
            tuple(
                StepStatistics(
                    name=f"step{number}", count=count, queue_ns=round(10e9 * queue), compute_ns=0, moved_ns=0
                )
                for number, queue in enumerate(some)
            )
            for count, some in ((counted, [0.0] * len(queues)), (10, queues))
        )
        tally = Tally(latencies=list(latencies), failures=list(failures))
        use = Use(process=None, gpus=(), absent=())
        run = Run(tally=tally, seconds=10.0, cpu_seconds=cpu_seconds, before=before, after=after, use=use)
        return make_load(run, loop="open", rate=rate, seed=1)

    return load
