"""The layers of a detector in (r, z), and which of them a hit lies on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import EventError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from tritrack.events.event import Event

MAX_THICKNESS = 15.0
"""Modules of one layer are staggered by no more than this, in mm."""
MAX_PIXEL = 3.0
"""Largest ratio of a pixel's two resolutions; strips measure one direction far worse."""

_CELL_R, _CELL_Z = 2.0, 5.0  # mm, of the look-up; layers lie ten times as far apart


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a detector, the nearest to the origin first: cylinders along the beam, and disks across it.

    Attributes
    ----------
    disk
        bool [n_layers], a disk, and not a cylinder of the barrel.
    r_low, r_high, z_low, z_high
        float64 [n_layers], where the layer's hits lie, mm.
    across, along
        float64 [n_layers], one standard deviation of a hit's position in mm: in the direction of phi; and along
        z in the barrel, along r on a disk.
    scattering
        float64 [n_layers], angle by which the layer scatters a track, over the track's curvature (both go as 1 / pT),
        mm: one standard deviation, of a track that crosses the layer at right angles; 0 where it is not known.
    """

    disk: NDArray[np.bool_]
    r_low: NDArray[np.float64]
    r_high: NDArray[np.float64]
    z_low: NDArray[np.float64]
    z_high: NDArray[np.float64]
    across: NDArray[np.float64]
    along: NDArray[np.float64]
    scattering: NDArray[np.float64]

    @property
    def n(self) -> int:
        """Number of layers."""
        return int(self.disk.size)

    @property
    def pixel(self) -> NDArray[np.bool_]:
        """Whether each layer measures about as well along as across, bool [n_layers]."""
        pixel: NDArray[np.bool_] = self.along <= MAX_PIXEL * self.across
        return pixel

    def of_hits(self, hits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the layer nearest to each hit, int64 [n_hits], of hits float32 [n_hits, 3] in mm."""
        r_cell = np.hypot(hits[:, 0], hits[:, 1]) / _CELL_R
        z_cell = hits[:, 2] / _CELL_Z + self._table.shape[1] / 2
        row = np.minimum(r_cell, self._table.shape[0] - 1).astype(np.int64)
        column = np.clip(z_cell, 0, self._table.shape[1] - 1).astype(np.int64)
        layer: NDArray[np.int64] = self._table[row, column]
        return layer

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        """Nearest layer of each cell in (r, z), int64 [n_r, n_z]; z runs evenly about 0."""
        n_r = int(self.r_high.max() / _CELL_R) + 2
        half_z = int(max(self.z_high.max(), -self.z_low.min()) / _CELL_Z) + 2
        r = (np.arange(n_r)[:, None] + 0.5) * _CELL_R
        z = (np.arange(-half_z, half_z)[None] + 0.5) * _CELL_Z
        table = np.zeros((n_r, 2 * half_z), dtype=np.int64)
        nearest = np.full(table.shape, np.inf)
        for layer in range(self.n):
            off_r = np.maximum(self.r_low[layer] - r, r - self.r_high[layer])
            off_z = np.maximum(self.z_low[layer] - z, z - self.z_high[layer])
            distance = np.maximum(np.maximum(off_r, off_z), 0)
            table[distance < nearest] = layer
            np.minimum(nearest, distance, out=nearest)
        return table


def derive_layers(events: Iterable[Event]) -> Layers:
    """Derive the layers of a detector from hits on them.

    Parameters
    ----------
    events
        Events that name the volume and layer of each hit and have local measurements; together their hits should
        reach to the edges of every layer.

    Returns
    -------
    Layers
        A layer for each pair of volume and layer, whose scattering is not known.

    Raises
    ------
    EventError
        Where there are no hits, an event has no local measurements, or a layer is neither a cylinder along the
        beam nor a disk across it.
    """
    names, places, variances = [], [], []
    for event in events:
        if event.measurements is None:
            raise EventError(f"event {event.event_id}: has no local measurements, layers need resolutions")
        names.append(event.modules[:, :2])
        places.append(np.stack([np.hypot(event.hits[:, 0], event.hits[:, 1]), event.hits[:, 2]], axis=1))
        variances.append(event.measurements.variance)
    if not names or not sum(map(len, names)):
        raise EventError("layers: the events hold no hits")
    layer, of_hit = np.unique(np.concatenate(names), axis=0, return_inverse=True)
    place = np.concatenate(places).astype(np.float64)
    spread = np.sqrt(np.concatenate(variances).astype(np.float64))
    low, high, resolution = (np.empty((len(layer), 2)) for _ in range(3))
    for number in range(len(layer)):
        on_it = of_hit == number
        low[number], high[number] = place[on_it].min(axis=0), place[on_it].max(axis=0)
        resolution[number] = np.median(spread[on_it], axis=0)
        if (high[number] - low[number]).min() > MAX_THICKNESS:
            volume, name = layer[number].tolist()
            raise EventError(f"layers: volume {volume}, layer {name} is neither a cylinder nor a disk")
    nearest_z = np.maximum(np.maximum(low[:, 1], -high[:, 1]), 0)
    order = np.lexsort((low[:, 1], np.hypot(low[:, 0], nearest_z)))
    thin_in_z = (high - low)[:, 1] < (high - low)[:, 0]
    return Layers(
        disk=thin_in_z[order],
        r_low=low[order, 0],
        r_high=high[order, 0],
        z_low=low[order, 1],
        z_high=high[order, 1],
        across=resolution[order, 0],
        along=resolution[order, 1],
        scattering=np.zeros(len(layer)),
    )
