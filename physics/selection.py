"""Which particles a finder is asked to find, and the true kinematics of particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import NOISE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tritrack.events.event import Event, Truth


class PhysicsError(ValueError):
    """Tracks or truth that cannot be judged; the message names what and where."""


@dataclass(frozen=True, kw_only=True)
class Kinematics:
    """True quantities of particles, one entry for each row of ``truth.particles``.

    Attributes
    ----------
    pt
        float64 [n_particles], transverse momentum at production in GeV.
    eta
        float64 [n_particles], pseudorapidity of the momentum; infinite along the beam, NaN for a
        particle at rest.
    phi
        float64 [n_particles], azimuth of the momentum in radians, -pi to pi.
    radius
        float64 [n_particles], distance of the production vertex from the beam axis in mm.
    n_hits
        int64 [n_particles], hits that the particle left in the event.
    """

    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    radius: NDArray[np.float64]
    n_hits: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A named choice of particles.

    Attributes
    ----------
    name
        Name in tables, options and JSON.
    meaning
        One line that says which particles.
    passes
        Takes the truth and its kinematics, gives bool [n_particles].
    """

    name: str
    meaning: str
    passes: Callable[[Truth, Kinematics], NDArray[np.bool_]]


def truth_of(event: Event) -> Truth:
    """Return the truth of an event.

    Raises
    ------
    PhysicsError
        Where the event has none.
    """
    if event.truth is None:
        raise PhysicsError(f"event {event.event_id}: has no truth, so tracks cannot be judged on it")
    return event.truth


def particle_rows(truth: Truth, particle_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find particles in the table of particles.

    Parameters
    ----------
    truth
        The truth of one event.
    particle_id
        int64 [n], ids of particles or noise.

    Returns
    -------
    ndarray
        int64 [n], rows of ``truth.particles``; -1 for noise.

    Raises
    ------
    PhysicsError
        Names an id that the table lacks.
    """
    ids = truth.particles.particle_id
    by_id = np.argsort(ids, kind="stable")
    ordered = ids[by_id]
    place = np.searchsorted(ordered, particle_id)
    known = place < ids.size
    known[known] = ordered[place[known]] == particle_id[known]
    lost = ~known & (particle_id != NOISE)
    if lost.any():
        raise PhysicsError(
            f"{np.count_nonzero(lost)} hits or tracks name particles that the table of particles lacks, "
            f"the first of them {particle_id[lost][0]}"
        )
    rows = np.full(particle_id.shape, -1, dtype=np.int64)
    rows[known] = by_id[place[known]]
    return rows


def kinematics(truth: Truth) -> Kinematics:
    """Work out the true kinematics of every particle of an event.

    Raises
    ------
    PhysicsError
        Where a hit names a particle that is not in the table.
    """
    px, py, pz = truth.particles.momentum.astype(np.float64).T
    vx, vy, _ = truth.particles.vertex.astype(np.float64).T
    pt = np.hypot(px, py)
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.arcsinh(pz / pt)
    rows = particle_rows(truth, truth.particle_id)
    n_hits = np.bincount(rows[rows >= 0], minlength=pt.size).astype(np.int64)
    return Kinematics(pt=pt, eta=eta, phi=np.arctan2(py, px), radius=np.hypot(vx, vy), n_hits=n_hits)


def _targets(truth: Truth, kin: Kinematics) -> NDArray[np.bool_]:
    charged = truth.particles.charge != 0
    passes: NDArray[np.bool_] = charged & (kin.pt >= 1) & (np.abs(kin.eta) <= 4) & (kin.n_hits >= 5)
    return passes


def _comparison(truth: Truth, kin: Kinematics) -> NDArray[np.bool_]:
    charged = truth.particles.charge != 0
    central = np.abs(kin.eta) < 2.5
    passes: NDArray[np.bool_] = charged & truth.particles.primary & (kin.pt > 1) & central & (kin.n_hits >= 9)
    return passes


TARGETS = Selection(
    name="targets", meaning="charged, pT >= 1 GeV, |eta| <= 4, at least 5 hits", passes=_targets
)
COMPARISON = Selection(
    name="comparison",
    meaning="charged primaries, pT > 1 GeV, |eta| < 2.5, at least 9 hits",
    passes=_comparison,
)
SELECTIONS = {selection.name: selection for selection in (TARGETS, COMPARISON)}
"""The selections, by name."""
