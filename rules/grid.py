"""The hits of an event, sorted so that a window on a layer is a few short runs of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.events.layers import Layers

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

N_ROWS = 32
"""Rows of a layer: in z in the barrel, in r on a disk."""
N_PHI = 512
"""Sectors of a row."""
STAGGER = 6.0
"""Modules of one layer lie this far from its middle at most, in mm."""


class Geometry(NamedTuple):
    """`Layers` as compiled code takes them, and where their rows begin.

    Attributes
    ----------
    disk
        bool [n_layers].
    r, z
        float64 [n_layers], middle of the layer in mm.
    low, high
        float64 [n_layers], its extent: z in the barrel, r on a disk, mm.
    across, along
        float64 [n_layers], resolutions in mm.
    scattering
        float64 [n_layers], as of `Layers`.
    """

    disk: NDArray[np.bool_]
    r: Floats
    z: Floats
    low: Floats
    high: Floats
    across: Floats
    along: Floats
    scattering: Floats


class Steps(NamedTuple):
    """Where tracks go from each layer a: ``layers[start[a]:start[a + 1]]``, int64."""

    layers: Integers
    start: Integers


class Grid(NamedTuple):
    """Sorted hits: by layer, row and azimuth.

    Attributes
    ----------
    x, y, z, r, phi
        float64 [n_hits], mm and radians.
    u, v
        float64 [n_hits], x / r^2 and y / r^2 in 1/mm: there, circles through the beam line are straight.
    layer
        int64 [n_hits].
    start
        int64 [n_layers * N_ROWS * N_PHI + 1], first hit of each sector.
    """

    x: Floats
    y: Floats
    z: Floats
    r: Floats
    phi: Floats
    u: Floats
    v: Floats
    layer: Integers
    start: Integers


def geometry_of(layers: Layers) -> Geometry:
    """Return the layers as compiled code takes them."""
    return Geometry(
        disk=layers.disk,
        r=(layers.r_low + layers.r_high) / 2,
        z=(layers.z_low + layers.z_high) / 2,
        low=np.where(layers.disk, layers.r_low, layers.z_low),
        high=np.where(layers.disk, layers.r_high, layers.z_high),
        across=layers.across,
        along=layers.along,
        scattering=layers.scattering,
    )


def steps_of(pairs: Integers, *, n_layers: int) -> Steps:
    """Return pairs of layers, int64 [n_pairs, 2], as steps from the first to the second of each."""
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    start: Integers = np.searchsorted(ordered[:, 0], np.arange(n_layers + 1)).astype(np.int64)
    return Steps(layers=ordered[:, 1].copy(), start=start)


def sort_hits(hits: NDArray[np.float32], *, layers: Layers, geometry: Geometry) -> tuple[Grid, Integers]:
    """Sort the hits of an event.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], mm.
    layers, geometry
        The detector.

    Returns
    -------
    Grid, ndarray
        The sorted hits; and int64 [n_hits], the index of each in ``hits``. The order is that of the positions, however
        the hits come.
    """
    layer = layers.of_hits(hits)
    x, y, z = hits.astype(np.float64).T
    r, phi = np.hypot(x, y), np.arctan2(y, x)
    span = geometry.high - geometry.low
    along = (np.where(geometry.disk[layer], r, z) - geometry.low[layer]) / span[layer]
    row = layer * N_ROWS + np.clip((along * N_ROWS).astype(np.int64), 0, N_ROWS - 1)
    sector = row * N_PHI + sector_of(phi)
    # Cells of one module lie at one azimuth.
    order = np.lexsort((r, z, phi, sector))
    start = np.zeros(layers.n * N_ROWS * N_PHI + 1, dtype=np.int64)
    np.cumsum(np.bincount(sector, minlength=start.size - 1), out=start[1:])
    x, y, z, r, phi = x[order], y[order], z[order], r[order], phi[order]
    squared = np.maximum(r * r, 1e-6)
    grid = Grid(
        x=x, y=y, z=z, r=r, phi=phi, u=x / squared, v=y / squared, layer=layer[order], start=start
    )  # fmt: skip
    return grid, order


def sector_of(phi: Floats) -> Integers:
    """Sector of each azimuth in radians, from -pi to pi."""
    sector: Integers = np.clip((phi / (2 * np.pi) + 0.5) * N_PHI, 0, N_PHI - 1).astype(np.int64)
    return sector


@numba.njit(cache=True, nogil=True)
def rows_between(geometry: Geometry, layer: int, low: float, high: float) -> tuple[int, int]:
    """First and last row of a layer between two positions along it in mm; the last is below the first for none."""
    if high < geometry.low[layer] or low > geometry.high[layer] or not low <= high:
        return 1, 0
    scale = N_ROWS / (geometry.high[layer] - geometry.low[layer])
    first = int(max((low - geometry.low[layer]) * scale, 0.0))
    last = int(min((high - geometry.low[layer]) * scale, N_ROWS - 1.0))
    return min(first, N_ROWS - 1), last


@numba.njit(cache=True, nogil=True)
def sectors_between(phi: float, half_width: float) -> tuple[int, int]:
    """First sector of a window and their number; a window may run over the end of a row, which goes on at its start."""
    if half_width >= np.pi:
        return 0, N_PHI
    first = int(np.floor(((phi - half_width) / (2 * np.pi) + 0.5) * N_PHI))
    last = int(np.floor(((phi + half_width) / (2 * np.pi) + 0.5) * N_PHI))
    return first % N_PHI, min(last - first + 1, N_PHI)


@numba.njit(cache=True, nogil=True)
def runs(grid: Grid, layer: int, row: int, first: int, count: int) -> tuple[int, int, int, int]:
    """Hits of a window of a row: from the first to below the second, and from the third to below the fourth."""
    base = (layer * N_ROWS + row) * N_PHI
    if first + count <= N_PHI:
        return grid.start[base + first], grid.start[base + first + count], 0, 0
    rest = first + count - N_PHI
    return grid.start[base + first], grid.start[base + N_PHI], grid.start[base], grid.start[base + rest]
