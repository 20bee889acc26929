"""Simulated events as the training sees them: hits, and which pairs of hits belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import NOISE, Event, EventError
from tritrack.events.parquet import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

POSITIVE_GAP = 2
"""Pairs of hits at most this many steps apart on their particle are to be found. Pairs that skip one hit
count too: where every link is single, one missing pair cuts a track in two."""

LOW_PT_WEIGHT = 0.1
"""Weight of the pairs of the softest particles; it grows with pT to 1 at 1 GeV."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One event of the training.

    Attributes
    ----------
    hits
        float32 [n_hits, 3], mm.
    particle
        int64 [n_hits], number of the particle in the event; -1 for noise.
    rank
        int64 [n_hits], place of the hit on its particle, counted from 0.
    weight
        float32 [n_hits], weight of the hit's particle.
    event
        The event itself, the whole of it.
    """

    hits: NDArray[np.float32]
    particle: NDArray[np.int64]
    rank: NDArray[np.int64]
    weight: NDArray[np.float32]
    event: Event


def make_sample(event: Event) -> Sample:
    """Prepare an event.

    Raises
    ------
    EventError
        Where the event has no truth.
    """
    truth = event.truth
    if truth is None:
        raise EventError(f"event {event.event_id}: has no truth to train on")
    ids, particle = np.unique(truth.particle_id, return_inverse=True)
    order = np.lexsort((truth.order, particle))
    first = np.searchsorted(particle[order], np.arange(ids.size))
    rank = np.empty(event.n_hits, dtype=np.int64)
    rank[order] = np.arange(event.n_hits) - first[particle[order]]
    particles = truth.particles
    pt = np.zeros(ids.size, dtype=np.float32)
    where = np.searchsorted(ids, particles.particle_id)
    known = np.isin(particles.particle_id, ids)
    pt[where[known]] = np.hypot(particles.momentum[known, 0], particles.momentum[known, 1])
    weight = np.clip(pt, LOW_PT_WEIGHT, 1.0)[particle]
    particle = np.where(truth.particle_id == NOISE, -1, particle)
    return Sample(hits=event.hits, particle=particle, rank=rank, weight=weight, event=event)


def pair_targets(sample: Sample, pairs: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Say which pairs are to be found, and how much each counts.

    Parameters
    ----------
    sample
        The event.
    pairs
        int [2, n_pairs], hits.

    Returns
    -------
    target
        bool [n_pairs], on one particle and at most ``POSITIVE_GAP`` steps apart.
    weight
        float32 [n_pairs]: 1 for pairs of two particles, by pT for targets, and 0 for pairs of one particle
        further apart, which are right but of no use.
    """
    a, b = pairs
    same = (sample.particle[a] == sample.particle[b]) & (sample.particle[a] >= 0)
    target = same & (np.abs(sample.rank[a] - sample.rank[b]) <= POSITIVE_GAP)
    weight = np.where(target, sample.weight[a], np.where(same, np.float32(0), np.float32(1)))
    return target, weight


def path_pairs(sample: Sample, *, gap: int) -> NDArray[np.int64]:
    """Return the pairs of hits that are ``gap`` steps apart on a particle, int64 [2, n_pairs]."""
    order = np.lexsort((sample.rank, sample.particle))
    order = order[sample.particle[order] >= 0]
    a, b = order[:-gap], order[gap:]
    same = (sample.particle[a] == sample.particle[b]) & (sample.rank[b] - sample.rank[a] == gap)
    return np.stack([a[same], b[same]])


def wedge(sample: Sample, *, start: float, width: float) -> tuple[Sample, NDArray[np.int64]]:
    """Return the part of an event within a window of phi, at its full density.

    A step on a part costs less than one on the whole event, and is worth nearly as much.

    Parameters
    ----------
    sample
        The event.
    start, width
        Window in radians, counted on from -pi.

    Returns
    -------
    sample
        The hits in the window, with their ranks on the whole particle.
    position
        int64 [n_hits of the whole], place of each hit in the part; -1 for hits outside.
    """
    phi = np.arctan2(sample.hits[:, 1], sample.hits[:, 0])
    inside = (phi - start) % (2 * np.pi) < width
    part = Sample(
        hits=sample.hits[inside],
        particle=sample.particle[inside],
        rank=sample.rank[inside],
        weight=sample.weight[inside],
        event=sample.event,
    )
    return part, np.where(inside, np.cumsum(inside) - 1, -1)


def pairs_within(pairs: NDArray[np.int32], position: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the pairs with both hits in a part, by their places there; see :func:`wedge`."""
    a, b = position[pairs]
    inside = (a >= 0) & (b >= 0)
    part: NDArray[np.int32] = np.stack([a[inside], b[inside]]).astype(np.int32)
    return part


class EventFiles:
    """Samples by position, read from disk when they are needed.

    Parameters
    ----------
    folder
        Folder of Parquet events.
    name
        Name of the set.
    part
        Which of the folder's events, in order of their names.

    Raises
    ------
    EventError
        Where there are none.
    """

    def __init__(self, folder: Path, *, name: str, part: slice) -> None:
        self.name = name
        self.paths = sorted(folder.glob("*.parquet"))[part]
        if not self.paths:
            raise EventError(f"{folder}: too few Parquet events there, none for {name}")

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        path = self.paths[position]
        events = list(read_events(path))
        if len(events) != 1:
            raise EventError(f"{path}: holds {len(events)} events, the training wants one a file")
        return make_sample(events[0])
