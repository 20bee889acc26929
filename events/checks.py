"""The check that every event passes on its way out of a reader and into a writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.events.event import NOISE, Event, EventError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_event(event: Event, *, where: str) -> Event:
    """Check that the arrays of an event fit together.

    Parameters
    ----------
    event
        The event.
    where
        Where it comes from, for the message.

    Returns
    -------
    Event
        The same event.

    Raises
    ------
    EventError
        On a wrong dtype or shape, a hit or particle id that occurs twice, or a hit of an unknown particle.
    """
    where = f"{where}: event {event.event_id}"
    n = event.n_hits
    columns: list[tuple[str, NDArray[Any], type[np.generic], tuple[int, ...]]] = [
        ("hits", event.hits, np.float32, (n, 3)),
        ("hit_id", event.hit_id, np.int64, (n,)),
        ("modules", event.modules, np.int32, (n, 3)),
    ]
    if event.measurements is not None:
        columns += [
            ("measurements.local", event.measurements.local, np.float32, (n, 2)),
            ("measurements.variance", event.measurements.variance, np.float32, (n, 2)),
        ]
    truth = event.truth
    if truth is not None:
        m = len(truth.particles.particle_id)
        columns += [
            ("truth.particle_id", truth.particle_id, np.int64, (n,)),
            ("truth.order", truth.order, np.float32, (n,)),
            ("particles.particle_id", truth.particles.particle_id, np.int64, (m,)),
            ("particles.charge", truth.particles.charge, np.float32, (m,)),
            ("particles.vertex", truth.particles.vertex, np.float32, (m, 3)),
            ("particles.momentum", truth.particles.momentum, np.float32, (m, 3)),
            ("particles.primary", truth.particles.primary, np.bool_, (m,)),
        ]
        if truth.weight is not None:
            columns.append(("truth.weight", truth.weight, np.float32, (n,)))
    for name, array, dtype, shape in columns:
        if array.dtype != dtype or array.shape != shape:
            raise EventError(
                f"{where}: {name} is {array.dtype} {list(array.shape)}, "
                f"it should be {np.dtype(dtype)} {list(shape)}"
            )
    _check_unique(event.hit_id, f"{where}: hit_id")
    if truth is not None:
        _check_particles(truth.particle_id, truth.particles.particle_id, where)
    return event


def _check_particles(of_hits: NDArray[np.int64], known: NDArray[np.int64], where: str) -> None:
    _check_unique(known, f"{where}: particle_id of the particles")
    if (known == NOISE).any():
        raise EventError(f"{where}: a particle has particle_id {NOISE}, which stands for noise")
    unknown = np.setdiff1d(of_hits[of_hits != NOISE], known)
    if unknown.size:
        raise EventError(
            f"{where}: {unknown.size} particles of the hits are not among the particles, first {unknown[0]}"
        )


def _check_unique(ids: NDArray[np.int64], what: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise EventError(f"{what} {values[counts > 1][0]} occurs {counts.max()} times, it must be unique")
