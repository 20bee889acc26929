"""The true quantities that rates are shown against, and their bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tritrack.physics.selection import Kinematics


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One quantity and its bins.

    Attributes
    ----------
    name
        Name in JSON.
    label
        Name on a plot.
    unit
        Unit; empty where it has none.
    edges
        Bin edges; a bin holds its lower edge. The first and the last bin also hold what lies outside.
    log
        Whether a plot shows it on a logarithmic scale.
    of
        Picks the quantity out of the kinematics.
    """

    name: str
    label: str
    unit: str
    edges: tuple[float, ...]
    log: bool = False
    of: Callable[[Kinematics], NDArray[np.float64]]

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    def bins(self, kin: Kinematics) -> NDArray[np.int64]:
        """Return the bin of each particle, int64 [n_particles]."""
        place = np.searchsorted(self.edges, self.of(kin), side="right") - 1
        return np.clip(place, 0, self.n_bins - 1).astype(np.int64)


PT = Axis(
    name="pt",
    label=r"$p_\mathrm{T}$",
    unit="GeV",
    edges=(0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 100),
    log=True,
    of=lambda kin: kin.pt,
)
ETA = Axis(
    name="eta",
    label=r"$\eta$",
    unit="",
    edges=tuple(float(edge) for edge in np.linspace(-4, 4, 17)),
    of=lambda kin: kin.eta,
)
RADIUS = Axis(
    name="radius",
    label="production radius",
    unit="mm",
    edges=(0.01, 0.1, 1, 10, 30, 60, 100, 200, 400, 1000),
    log=True,
    of=lambda kin: kin.radius,
)
AXES = (PT, ETA, RADIUS)
"""The axes of every table and plot."""
