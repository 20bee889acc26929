"""The rule-based finder: hits in, one track label per hit out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tritrack.rules.cells import make_cells
from tritrack.rules.grid import geometry_of, sort_hits, steps_of
from tritrack.rules.tracks import chains, choose, grow
from tritrack.rules.windows import N_COLUMNS, read_rules
from tritrack.stages.contract import NO_TRACK, TRACK_LABEL, check_hits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.rules.windows import Rules


class RuleFinder:
    """Finds tracks without learning: a cellular automaton in the pixels, whose chains are followed through all layers.

    Parameters
    ----------
    rules
        Detector and windows.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._geometry = geometry_of(rules.layers)
        n_layers, steps, pixel = rules.layers.n, rules.steps, rules.layers.pixel
        # Cells go from the inside outwards, which is how layers are numbered.
        in_pixels = pixel[steps].all(axis=1) & (steps[:, 0] < steps[:, 1])
        self._cell_steps = steps_of(steps[in_pixels], n_layers=n_layers)
        self._outwards = steps_of(steps, n_layers=n_layers)
        self._inwards = steps_of(steps[:, ::-1], n_layers=n_layers)

    @classmethod
    def load(cls, folder: Path) -> RuleFinder:
        """Load the rules of a folder (raises RulesError)."""
        return cls(read_rules(folder))

    def find(
        self, hits: NDArray[np.float32], *, on_part: Callable[[str, float], None] | None = None
    ) -> NDArray[np.int64]:
        """Find the tracks of one event.

        Parameters
        ----------
        hits
            float32 [n_hits, 3], x, y, z in mm.
        on_part
            Called after each part of the work with its name and its wall time in seconds.

        Returns
        -------
        ndarray
            int64 [n_hits], the track number of each hit, counted from 0 by each track's first hit, or -1.

        Raises
        ------
        ContractError
            Where the hits break the contract or are more than the rules' limit.
        """
        check_hits(hits, n_columns=N_COLUMNS, max_hits=self.rules.max_hits)
        windows, geometry = self.rules.windows, self._geometry
        clock = _Clock(on_part)
        grid, order = sort_hits(hits, layers=self.rules.layers, geometry=geometry)
        clock.lap("sort")
        cells = make_cells(grid, geometry, windows, self._cell_steps)
        clock.lap("cells")
        candidates = grow(grid, geometry, windows, cells, chains(cells), self._outwards, self._inwards)
        clock.lap("follow")
        ranked = np.argsort(-candidates.rank, kind="stable")
        labels = np.empty(len(hits), dtype=TRACK_LABEL.dtype)
        labels[order] = choose(grid, windows, candidates, ranked)
        labels = _by_first_hit(labels)
        clock.lap("choose")
        return labels


class _Clock:
    def __init__(self, on_part: Callable[[str, float], None] | None) -> None:
        self._on_part = on_part
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        if self._on_part is not None:
            self._on_part(name, now - self._last)
        self._last = now


def _by_first_hit(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels whose tracks are numbered from 0 by their first hit."""
    on_track = np.flatnonzero(labels != NO_TRACK)
    _, first, track = np.unique(labels[on_track], return_index=True, return_inverse=True)
    number = np.empty(first.size, dtype=np.int64)
    number[np.argsort(first)] = np.arange(first.size)
    numbered = np.full(labels.size, NO_TRACK, dtype=np.int64)
    numbered[on_track] = number[track]
    return numbered
