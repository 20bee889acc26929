"""Events as the training sees them: hits, and which pairs of hits belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import NOISE, Event, EventError

if TYPE_CHECKING:
    from numpy.typing import NDArray

POSITIVE_GAP = 2
"""Pairs of hits at most this many steps apart on their particle are to be found. Pairs that skip one hit
count too: where every link is single, one missing pair cuts a track in two."""

PT_WEIGHTS = (0.1, 3.0)
"""The pairs of a particle weigh as much as its pT in GeV, within these bounds: softer than the targets' 1 GeV
they matter less, and the rare hard ones must not drown among the others."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One event of the training, or a wedge of one.

    Attributes
    ----------
    hits
        float32 [n_hits, 3], mm.
    particle
        int64 [n_hits], number of the particle in the event; -1 for noise.
    rank
        int64 [n_hits], place of the hit on its whole particle, counted from 0.
    weight
        float32 [n_hits], weight of the hit's particle.
    """

    hits: NDArray[np.float32]
    particle: NDArray[np.int64]
    rank: NDArray[np.int64]
    weight: NDArray[np.float32]


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
    weight = np.clip(pt, *PT_WEIGHTS)[particle]
    particle = np.where(truth.particle_id == NOISE, -1, particle)
    return Sample(hits=event.hits, particle=particle, rank=rank, weight=weight)


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
