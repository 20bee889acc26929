"""One collision event as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOISE = 0
"""The ``particle_id`` of a hit that no particle made."""


class EventError(ValueError):
    """An event or an event file that cannot be used; the message names what and where."""


@dataclass(frozen=True, kw_only=True)
class Particles:
    """Generated particles, one row each (whether or not they left hits).

    Attributes
    ----------
    particle_id
        int64 [n_particles], unique, never 0.
    charge
        float32 [n_particles], in units of e.
    vertex
        float32 [n_particles, 3], production vertex x, y, z in mm.
    momentum
        float32 [n_particles, 3], px, py, pz at production in GeV.
    primary
        bool [n_particles], made by the collision itself and not by an interaction with material or a
        decay in flight inside the detector.
    """

    particle_id: NDArray[np.int64]
    charge: NDArray[np.float32]
    vertex: NDArray[np.float32]
    momentum: NDArray[np.float32]
    primary: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of a simulated event.

    Attributes
    ----------
    particle_id
        int64 [n_hits], the particle that made each hit; 0 for noise.
    order
        float32 [n_hits], sorts the hits of one particle along its path: simulated time in ns, or, where
        a file has no times (TrackML), distance from the production vertex in mm. 0 for noise.
    particles
        The generated particles.
    weight
        float32 [n_hits], TrackML scoring weight of each hit; None where the source has none.
    """

    particle_id: NDArray[np.int64]
    order: NDArray[np.float32]
    particles: Particles
    weight: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Local measurements on the module's surface, for finders that work there (Kalman filters).

    Attributes
    ----------
    local
        float32 [n_hits, 2], the two local coordinates in mm.
    variance
        float32 [n_hits, 2], their variances in mm^2.
    """

    local: NDArray[np.float32]
    variance: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Event:
    """The hits of one event, with truth where it is known.

    Attributes
    ----------
    event_id
        Number of the event.
    hits
        float32 [n_hits, 3], x, y, z in mm, global frame.
    hit_id
        int64 [n_hits], the source's own name of each hit, unique; arange(n_hits) where it has none.
    modules
        int32 [n_hits, 3], volume, layer and module id of the detector element; 0 where the source has none.
    truth
        None for hits alone.
    measurements
        None where the source has none.
    """

    event_id: int
    hits: NDArray[np.float32]
    hit_id: NDArray[np.int64]
    modules: NDArray[np.int32]
    truth: Truth | None = None
    measurements: Measurements | None = None

    @property
    def n_hits(self) -> int:
        """Number of hits."""
        return int(self.hits.shape[0])
