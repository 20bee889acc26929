"""The Generic Detector's modules as plain arrays. Needs the extra ``simulate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import acts
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT = acts.UnitConstants

_PIXEL, _SHORT_STRIP, _LONG_STRIP = (0.05, 0.05), (0.08, 1.2), (0.12, 10.8)
PITCH = {
    **dict.fromkeys((7, 8, 9), _PIXEL),
    **dict.fromkeys((12, 13, 14), _SHORT_STRIP),
    **dict.fromkeys((16, 17, 18), _LONG_STRIP),
}
"""Nominal cell size along both local axes, in mm, by volume."""


@dataclass(frozen=True, kw_only=True)
class Modules:
    """The detector elements, one row each, sorted by ``geometry_id``.

    Attributes
    ----------
    geometry_id
        uint64 [n_modules].
    ids
        int32 [n_modules, 3], volume, layer and module.
    centre, axis_0, axis_1
        float64 [n_modules, 3], centre in mm and unit vectors of the local axes, global frame.
    half_length
        float64 [n_modules, 3], half lengths in mm: axis 0 at the lower and the upper end of axis 1 (they
        differ on trapezoids), axis 1.
    pitch
        float64 [n_modules, 2], cell size in mm; the cells' edges lie at its multiples.
    thickness
        float64 [n_modules], mm.
    """

    geometry_id: NDArray[np.uint64]
    ids: NDArray[np.int32]
    centre: NDArray[np.float64]
    axis_0: NDArray[np.float64]
    axis_1: NDArray[np.float64]
    half_length: NDArray[np.float64]
    pitch: NDArray[np.float64]
    thickness: NDArray[np.float64]

    def to_global(self, rows: NDArray[np.int64], local: NDArray[np.float64]) -> NDArray[np.float64]:
        """Global positions [n, 3] in mm of local ones [n, 2] on the modules ``rows`` [n]."""
        return self.centre[rows] + local[:, :1] * self.axis_0[rows] + local[:, 1:] * self.axis_1[rows]


def read_modules(geometry: Any) -> Modules:
    """Read the detector elements off an ACTS tracking geometry (the Generic Detector's)."""
    surfaces: list[Any] = []
    geometry.visitSurfaces(surfaces.append)
    surfaces.sort(key=lambda surface: surface.geometryId.value)
    context = acts.GeometryContext.dangerouslyDefaultConstruct()
    along = acts.Vector3(0, 0, 1)

    def points(x: float, y: float) -> NDArray[np.float64]:
        local = acts.Vector2(x, y)
        return np.array([list(surface.localToGlobal(context, local, along)) for surface in surfaces])

    centre = points(0, 0)
    ids = [(s.geometryId.volume, s.geometryId.layer, s.geometryId.sensitive) for s in surfaces]
    volumes = np.array([volume for volume, _, _ in ids])
    half_length = np.array([_half_lengths(surface.bounds) for surface in surfaces]) / UNIT.mm
    pitch = np.empty((len(surfaces), 2))
    for volume, nominal in PITCH.items():
        # As near to the nominal size as fits a whole number of cells into each half of the largest module.
        half = largest(half_length[volumes == volume])
        pitch[volumes == volume] = half / np.round(half / nominal)
    return Modules(
        geometry_id=np.array([surface.geometryId.value for surface in surfaces], dtype=np.uint64),
        ids=np.array(ids, dtype=np.int32),
        centre=centre / UNIT.mm,
        axis_0=points(1, 0) - centre,
        axis_1=points(0, 1) - centre,
        half_length=half_length,
        pitch=pitch,
        thickness=np.array([surface.thickness for surface in surfaces]) / UNIT.mm,
    )


def _half_lengths(bounds: Any) -> tuple[float, float, float]:
    values = bounds.values()
    if bounds.type == acts.SurfaceBoundsType.Rectangle:  # lower left and upper right corner
        return values[2], values[2], values[3]
    return values[0], values[1], values[2]  # trapezoid: half lengths at both ends, then the other axis


def largest(half_length: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half lengths [2] of the smallest rectangle that holds every module of ``half_length`` [n, 3]."""
    return np.array([half_length[:, :2].max(), half_length[:, 2].max()])
