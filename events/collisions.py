"""Proton collisions by Pythia 8: one top-pair hard scatter and soft collisions on top of it.

Pythia 8.3: Bierlich et al., arXiv:2203.11601. Needs the extra ``simulate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pythia8mc

if TYPE_CHECKING:
    from numpy.typing import NDArray

BEAM_ENERGY = 14_000.0
"""Centre-of-mass energy in GeV, as in the TrackML challenge (arXiv:1904.06778)."""
BEAMSPOT_XY = 0.0125
"""Transverse spread of the collisions (one standard deviation) in mm."""
BEAMSPOT_T = 54.0
"""Spread of the collisions in time (one standard deviation) in mm/c, i.e. 0.18 ns."""
MAX_ABS_ETA = 4.5
"""Particles further forward are left out: they miss the detector."""
MIN_PT = 0.1
"""Particles below this transverse momentum, in GeV, are left out, as in the TrackML challenge's events."""
LONG_LIVED = 10.0
"""Mean decay length c tau in mm above which decay products are no primaries (ALICE-PUBLIC-2017-005)."""
WORLD_R, WORLD_Z = 1000.0, 3000.0
"""Particles made further out, in mm, cannot leave hits."""

_HARD = ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on")
_SOFT = ("SoftQCD:inelastic = on",)
_PHOTON = 22


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Final-state charged particles and photons, one row each.

    Attributes
    ----------
    collision
        int64 [n], 0 for the hard scatter, then 1, 2, ... for the soft collisions.
    pdg
        int64 [n], PDG number.
    charge
        float64 [n], in units of e.
    mass
        float64 [n], GeV.
    vertex
        float64 [n, 4], production vertex x, y, z in mm and time in mm/c.
    momentum
        float64 [n, 3], px, py, pz in GeV.
    from_decay
        bool [n], made by the decay in flight of a long-lived particle (c tau > 10 mm, say K0S or Lambda).
    """

    collision: NDArray[np.int64]
    pdg: NDArray[np.int64]
    charge: NDArray[np.float64]
    mass: NDArray[np.float64]
    vertex: NDArray[np.float64]
    momentum: NDArray[np.float64]
    from_decay: NDArray[np.bool_]


class CollisionGenerator:
    """Makes the particles of whole events.

    Parameters
    ----------
    pileup
        Mean number of soft collisions in an event.
    beamspot_z
        Spread of the collisions along the beam (one standard deviation) in mm.
    """

    def __init__(self, *, pileup: float, beamspot_z: float) -> None:
        self._pileup = pileup
        self._beamspot_z = beamspot_z
        self._hard = _pythia(_HARD)
        self._soft = _pythia(_SOFT) if pileup > 0 else None

    def event(self, rng: np.random.Generator) -> Generated:
        """Make one event; the same state of ``rng`` gives the same event, whatever was made before."""
        n_soft = int(rng.poisson(self._pileup))
        # Pythia takes seeds from 1 to 900,000,000.
        hard_seed, soft_seed = (int(seed) for seed in rng.integers(1, 900_000_000, size=2))
        spread = np.array([BEAMSPOT_XY, BEAMSPOT_XY, self._beamspot_z, BEAMSPOT_T])
        vertices = rng.normal(size=(n_soft + 1, 4)) * spread
        self._hard.rndm.init(hard_seed)
        rows = _collide(self._hard, 0, vertices[0])
        if self._soft is not None:
            self._soft.rndm.init(soft_seed)
            for collision in range(1, n_soft + 1):
                rows += _collide(self._soft, collision, vertices[collision])
        return _as_arrays(rows)


def _pythia(processes: tuple[str, ...]) -> Any:
    pythia = pythia8mc.Pythia("", False)
    # The seed of the set-up is a constant: what it computes (maxima, tables) must not differ between jobs.
    # For the same reason no maximum may grow while events are made.
    for line in (
        "Print:quiet = on",
        "Random:setSeed = on",
        "Random:seed = 1",
        "PhaseSpace:increaseMaximum = off",
        f"Beams:eCM = {BEAM_ENERGY}",
        *processes,
    ):
        if not pythia.readString(line):
            raise RuntimeError(f"Pythia refuses the setting '{line}'")
    if not pythia.init():
        raise RuntimeError("Pythia does not start; are its data files (PYTHIA8DATA) in place?")
    return pythia


def _collide(pythia: Any, collision: int, vertex: NDArray[np.float64]) -> list[tuple[float, ...]]:
    """One collision at a vertex: a row (collision, pdg, charge, mass, x, y, z, t, px, py, pz, from_decay) each."""
    while not pythia.next():  # Pythia gives up on a few events in a million
        pass
    x, y, z, t = vertex.tolist()
    event = pythia.event
    rows: list[tuple[float, ...]] = []
    for index in range(event.size()):
        p = event[index]
        if not p.isFinal() or not (p.isCharged() or p.id() == _PHOTON):
            continue
        if p.pT() < MIN_PT or abs(p.eta()) > MAX_ABS_ETA:
            continue
        px, py, pz = p.xProd(), p.yProd(), p.zProd()
        if px * px + py * py > WORLD_R**2 or abs(pz + z) > WORLD_Z:
            continue
        from_decay = (px != 0 or py != 0 or pz != 0) and _has_long_lived_ancestor(event, p)
        rows.append(
            (
                *(collision, p.id(), p.charge(), p.m()),
                *(px + x, py + y, pz + z, p.tProd() + t),
                *(p.px(), p.py(), p.pz(), from_decay),
            )
        )
    return rows


def _has_long_lived_ancestor(event: Any, particle: Any) -> bool:
    """Walk up the decays only: their products have one mother and a status code of 91 to 99."""
    while 91 <= particle.statusAbs() <= 99:
        particle = event[particle.mother1()]
        if particle.tau0() > LONG_LIVED:
            return True
    return False


def _as_arrays(rows: list[tuple[float, ...]]) -> Generated:
    table = np.array(rows, dtype=np.float64).reshape(-1, 12)
    return Generated(
        collision=table[:, 0].astype(np.int64),
        pdg=table[:, 1].astype(np.int64),
        charge=table[:, 2],
        mass=table[:, 3],
        vertex=table[:, 4:8],
        momentum=table[:, 8:11],
        from_decay=table[:, 11].astype(np.bool_),
    )
