"""Every finder that `tritrack.bench.compare` compares, each with the machine to itself in its turn.

A served finder has a server of its own, which loads nothing else; the Kalman filter of ACTS, which nobody serves, has
a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from tritrack.bench.finders.ckf import WORKING_POINTS, CkfFinder
from tritrack.bench.load import closed_loop, whole_turns
from tritrack.bench.load_generator.figures import Load
from tritrack.bench.load_generator.watch import Watch
from tritrack.bench.physics import CKF, Outcome, run_ckf
from tritrack.bench.rules import RULES
from tritrack.bench.timeout import TIMEOUT
from tritrack.ensemble_repo.plan import RULE_FINDER
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import SELECTIONS
from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError
from tritrack.service.server import Server
from tritrack.stages.card import ENSEMBLE, FUSED, ensemble_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.bench.finders.ckf import CkfTracks
    from tritrack.events.event import Event
    from tritrack.stages.card import ModelCard

FUSED_MARK = " fused"
"""Ends the name of the chain in one process; before it stands that of the ensemble at the same working point."""


class LoadFailedError(RuntimeError):
    """A server that did not answer every request of a load; the message has the first that it did not."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One finder.

    Attributes
    ----------
    name
        How tables, plots and ratios call it.
    model
        Name of its model on a server; None for the Kalman filter, which runs in process.
    """

    name: str
    model: str | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a finder made of a set of events in one round.

    Attributes
    ----------
    outcomes
        Of each event. The seconds of a served finder are a client's, from the call to the labels; those of the Kalman
        filter are its algorithms' alone.
    events_per_s
        Of a served finder, under the load of some clients; of the Kalman filter, of one core. None where not measured.
    n_requests
        Of that load; None where there was none.
    not_loaded
        Why not.
    peak_bytes
        Most memory of all of its processes at once, shared pages counted once; None where no event was taken.
    """

    outcomes: tuple[Outcome, ...]
    events_per_s: float | None
    n_requests: int | None
    not_loaded: str | None
    peak_bytes: int | None


def contestants(card: ModelCard) -> tuple[Contestant, ...]:
    """Return the finders: the chain at each working point, fused at the default one, by rules, and the Kalman filter."""
    return (
        *(
            Contestant(name=f"GNN {point}", model=ensemble_name(point, ensemble=ENSEMBLE))
            for point in card.points
        ),
        Contestant(name=f"GNN {card.default}{FUSED_MARK}", model=ensemble_name(card.default, ensemble=FUSED)),
        Contestant(name=RULES, model=RULE_FINDER.name),
        Contestant(name=CKF, model=None),
    )


class CkfProcess:
    """The Kalman filter in a process of its own; a context manager.

    Parameters
    ----------
    working_point
        A name of `tritrack.bench.finders.ckf.WORKING_POINTS`.
    """

    def __init__(self, working_point: str) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_set_up, initargs=(working_point,)
        )
        self.pid = self._pool.submit(os.getpid).result()

    def find(self, event: Event) -> CkfTracks:
        """Find the tracks of one event; see :meth:`CkfFinder.find`."""
        return self._pool.submit(_find, event).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


_ckf: CkfFinder
"""Of a `CkfProcess`."""


def _set_up(working_point: str) -> None:
    global _ckf
    _ckf = CkfFinder(WORKING_POINTS[working_point])


def _find(event: Event) -> CkfTracks:
    return _ckf.find(event)


def take_turn_in_process(events: Sequence[Event], *, working_point: str) -> Turn:
    """Let the Kalman filter find the tracks of events, one after the other, in one thread."""
    with CkfProcess(working_point) as finder:
        run_ckf(finder.find, events[0])  # what is set up on first use is in no time
        with Watch(finder.pid) as watch:
            outcomes = tuple(run_ckf(finder.find, event) for event in events)
    seconds = [sum(outcome.seconds.values()) for outcome in outcomes if outcome.refused is None]
    return Turn(
        outcomes=outcomes,
        events_per_s=len(seconds) / sum(seconds) if seconds else None,
        n_requests=None,
        not_loaded=None if seconds else "takes none of the events",
        peak_bytes=_peak(watch),
    )


def take_turn_on_a_server(
    model: str, events: Sequence[Event], *, repository: Path, n_clients: int, load_seconds: float
) -> Turn:
    """Let one client send events, one after the other, and then some clients at once, to a server of that model alone.

    Parameters
    ----------
    model
        Name of the model.
    events
        At least one, with truth.
    repository
        The server's.
    n_clients
        Clients at once.
    load_seconds
        About so long they go on, to the end of a turn of the events: every finder answers the same mix. A load under
        which each client could not send one event is left out.

    Raises
    ------
    LoadFailedError
        Where an event that was taken before is not taken under load.
    """
    found: list[tuple[NDArray[np.int64] | EventRefusedError, float]] = []
    with (
        Server(repository, models=[model], start_timeout=TIMEOUT) as server,
        TrackFinder(server.url, model=model, timeout=TIMEOUT) as client,
    ):
        # What is set up on first use, and the memory that an event needs, is in no time.
        with suppress(EventRefusedError):
            client.find(events[0])
        with Watch(server.pid) as watch:
            for event in events:
                start = time.perf_counter()
                try:
                    found.append((client.find(event), time.perf_counter() - start))
                except EventRefusedError as error:
                    found.append((error, 0.0))
            taken = [i for i, (labels, _) in enumerate(found) if not isinstance(labels, EventRefusedError)]
            load = _put_on_load(
                server.url,
                model,
                hits=[events[i].hits for i in taken],
                seconds=[found[i][1] for i in taken],
                n_clients=n_clients,
                load_seconds=load_seconds,
            )
    outcomes = tuple(_judge(event, *one) for event, one in zip(events, found, strict=True))
    loaded = load if isinstance(load, Load) else None
    return Turn(
        outcomes=outcomes,
        events_per_s=None if loaded is None else loaded.events_per_s,
        n_requests=None if loaded is None else loaded.n_sent,
        not_loaded=load if isinstance(load, str) else None,
        peak_bytes=_peak(watch),
    )


def _put_on_load(
    url: str,
    model: str,
    *,
    hits: Sequence[NDArray[np.float32]],
    seconds: Sequence[float],
    n_clients: int,
    load_seconds: float,
) -> Load | str:
    """Return the load, and else why there was none."""
    if not hits:
        return "takes none of the events"
    n_requests = int(load_seconds / np.mean(seconds))
    if n_requests < n_clients:
        return f"{n_clients} events take more than {load_seconds:g} s"
    load = closed_loop(
        url,
        events=hits,
        n_clients=n_clients,
        model=model,
        n_requests=whole_turns(n_requests, len(hits)),
        warm_up=0,
        timeout=TIMEOUT,
    )
    if load.errors.first:
        raise LoadFailedError(
            f"{model}: {load.n_sent - load.n_answered} of {load.n_sent} requests of {n_clients} clients were not "
            f"answered: {load.errors.first[0].message}"
        )
    return load


def _judge(event: Event, found: NDArray[np.int64] | EventRefusedError, seconds: float) -> Outcome:
    if isinstance(found, EventRefusedError):
        return Outcome(refused=str(found))
    pairs = pairs_from_labels(found)
    return Outcome(
        seconds={"request": seconds},
        counts={s.name: count(event=event, pairs=pairs, selection=s) for s in SELECTIONS.values()},
    )


def _peak(watch: Watch) -> int | None:
    return watch.use.process.peak_bytes if watch.use.process is not None else None
