"""Events of many sizes, all of them simulated ones or parts of such: what `tritrack.bench.scaling` measures.

There are two ways for an event to grow, and they cost differently: more of the detector at one density of hits, or
more hits in the same detector.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tritrack.events.event import EventError
from tritrack.events.parquet import read_events
from tritrack.events.simulation import read_settings
from tritrack.events.source import find_files, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Axis = Literal["phi", "density"]
"""How events grow: "phi" at one density, over more of the detector; "density" over all of it."""

PHI_HITS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
"""Hits of the windows in phi, below those of the whole event."""

SPACING = 1.3
"""Least ratio of an event's hits to those of the one before it on the axis of densities."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The hits of an event, of a part of one, or of several on top of each other.

    Attributes
    ----------
    axes
        The axes that it is a point of; a whole event can be one of both.
    turn
        Share of the full turn in phi.
    n_events
        Events on top of each other.
    pileup
        Mean number of soft collisions, of all of them together; None where an event does not say.
    hits
        float32 [n_hits, 3], mm.
    """

    axes: tuple[Axis, ...]
    turn: float
    n_events: int
    pileup: float | None
    hits: NDArray[np.float32]

    @property
    def n_hits(self) -> int:
        """Number of hits."""
        return int(self.hits.shape[0])

    @property
    def sha256(self) -> str:
        """Hash of the hits: names them in a file of results."""
        return hashlib.sha256(np.ascontiguousarray(self.hits).tobytes()).hexdigest()


def window(hits: NDArray[np.float32], *, n_hits: int) -> tuple[NDArray[np.float32], float]:
    """Return the hits, in their order, that come first in phi from 0 on, and their share of the full turn.

    Parameters
    ----------
    hits
        float32 [n, 3], mm.
    n_hits
        How many, n at most. Smaller windows lie within larger ones.
    """
    if n_hits >= hits.shape[0]:
        return hits, 1.0
    phi = np.arctan2(hits[:, 1], hits[:, 0]).astype(np.float64) % (2 * np.pi)
    chosen = np.argsort(phi, kind="stable")[:n_hits]
    return hits[np.sort(chosen)], float(phi[chosen].max() / (2 * np.pi))


def read_wholes(paths: Iterable[Path]) -> list[Size]:
    """Read whole events, from the least hits to the most (raises EventError)."""
    wholes = []
    for path in find_files(paths):
        if path.suffix == ".parquet":
            settings, events = read_settings(path), read_events(path)
        else:
            settings, events = None, read_all([path])
        pileup = None if settings is None else settings.pileup
        wholes += [_whole(event.hits, pileup) for event in events if event.n_hits]
    if not wholes:
        raise EventError("bench.scaling: the event files hold no hits")
    return sorted(wholes, key=lambda whole: whole.n_hits)


def make_sizes(wholes: Sequence[Size], *, max_hits: int) -> list[Size]:
    """Return the points of both axes, from the least hits to the most.

    Along phi these are windows of the event with the most hits. Along the density they are the events, and beyond
    them events on top of each other, the smallest first: collisions do not know of each other, so that two events of
    pile-up 200 are one of pile-up 400 with another hard collision, and take no simulation.

    Parameters
    ----------
    wholes
        Of :func:`read_wholes`.
    max_hits
        The model's limit. The first of the events above it is the last.
    """
    largest = wholes[-1]
    sizes = [
        Size(axes=("phi",), turn=turn, n_events=1, pileup=largest.pileup, hits=hits)
        for n_hits in PHI_HITS
        if n_hits * SPACING <= largest.n_hits
        for hits, turn in [window(largest.hits, n_hits=n_hits)]
    ]
    axes: tuple[Axis, ...] = ("phi", "density")
    density = [
        *_spaced((whole for whole in wholes if SPACING * whole.n_hits <= largest.n_hits), after=0),
        replace(largest, axes=axes),
        *_spaced(_overlays(wholes), after=largest.n_hits),
    ]
    n_within = sum(size.n_hits <= max_hits for size in density)
    return sorted([*sizes, *density[: n_within + 1]], key=lambda size: size.n_hits)


def _spaced(sizes: Iterable[Size], *, after: int) -> Iterator[Size]:
    for size in sizes:
        if size.n_hits >= SPACING * after:
            yield size
            after = size.n_hits


def _overlays(wholes: Sequence[Size]) -> Iterator[Size]:
    for n in range(2, len(wholes) + 1):
        pileups = [whole.pileup for whole in wholes[:n] if whole.pileup is not None]
        yield Size(
            axes=("density",),
            turn=1.0,
            n_events=n,
            pileup=sum(pileups) if len(pileups) == n else None,
            hits=np.concatenate([whole.hits for whole in wholes[:n]]),
        )


def _whole(hits: NDArray[np.float32], pileup: float | None) -> Size:
    return Size(axes=("density",), turn=1.0, n_events=1, pileup=pileup, hits=hits)
