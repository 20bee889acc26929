"""Which particle each track is, and whether it counts as found.

Tracks come as (track, hit) pairs, so that tracks may share hits. Double majority, and the score built on it,
are defined in the TrackML papers (arXiv:1904.06778, arXiv:2105.01160).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import NOISE
from tritrack.physics.selection import PhysicsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_COUNTED_HITS = 5
"""Rates are over tracks with at least this many hits."""


class TrackClass(IntEnum):
    """What a track is; every track is exactly one of these.

    MATCHED
        Double majority: more than half of the track's hits are one particle's, and more than half of that
        particle's hits are in the track. Where tracks share hits several may match one particle: the one
        with most of its hits (then the purest, then the lowest number) is MATCHED, the others DUPLICATE.
    DUPLICATE
        More than half of its hits are one particle's, which another track matches.
    FRAGMENT
        More than half of its hits are one particle's, which no track matches.
    FAKE
        No particle has more than half of its hits.
    SHORT
        Fewer than 5 hits, in none of the rates. It may still be the track that matches a particle.
    """

    MATCHED = 0
    DUPLICATE = 1
    FRAGMENT = 2
    FAKE = 3
    SHORT = 4


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Tracks against particles, one entry a track, in order of the track's number.

    Attributes
    ----------
    track
        int64 [n_tracks], the track's number.
    n_hits
        int64 [n_tracks], hits of the track, noise included.
    leading
        int64 [n_tracks], particle with most of the track's hits, of several the lowest id; 0 where all are
        noise, which never leads.
    shared
        int64 [n_tracks], hits of the leading particle in the track.
    particle_hits
        int64 [n_tracks], hits of the leading particle in the event.
    best
        bool [n_tracks], the one double-majority track of its leading particle (at most one a particle,
        of any length).
    track_class
        int8 [n_tracks], a `TrackClass` each.
    """

    track: NDArray[np.int64]
    n_hits: NDArray[np.int64]
    leading: NDArray[np.int64]
    shared: NDArray[np.int64]
    particle_hits: NDArray[np.int64]
    best: NDArray[np.bool_]
    track_class: NDArray[np.int8]

    @property
    def purity(self) -> NDArray[np.float64]:
        """Share of the track's hits that are the leading particle's."""
        purity: NDArray[np.float64] = self.shared / self.n_hits
        return purity

    @property
    def completeness(self) -> NDArray[np.float64]:
        """Share of the leading particle's hits that are in the track; 0 where all of the track is noise."""
        completeness: NDArray[np.float64] = self.shared / np.maximum(self.particle_hits, 1)
        return completeness

    @property
    def majority(self) -> NDArray[np.bool_]:
        """Double majority: more than half both ways."""
        return _double_majority(self.shared, self.n_hits, self.particle_hits)

    @property
    def perfect(self) -> NDArray[np.bool_]:
        """All hits of one particle and no other hit."""
        perfect: NDArray[np.bool_] = (self.shared == self.n_hits) & (self.shared == self.particle_hits)
        return perfect

    @property
    def lhc(self) -> NDArray[np.bool_]:
        """At least 75 % of a track of at least 5 hits is one particle's, whatever share of the particle."""
        return (4 * self.shared >= 3 * self.n_hits) & (self.n_hits >= MIN_COUNTED_HITS)


def pairs_from_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn one label a hit into (track, hit) pairs.

    Parameters
    ----------
    labels
        Integers [n_hits], the track number of each hit, -1 for none.

    Returns
    -------
    ndarray
        int64 [2, n_pairs], track numbers above hit indices.

    Raises
    ------
    PhysicsError
        Where the labels are no vector of integers, or one is below -1.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise PhysicsError(f"labels: {labels.dtype} {list(labels.shape)}, one integer a hit wanted")
    below = np.flatnonzero(labels < -1)
    if below.size:
        raise PhysicsError(
            f"labels: hit {below[0]} has label {labels[below[0]]}; tracks count from 0, -1 is none"
        )
    hit = np.flatnonzero(labels >= 0)
    return np.stack([labels[hit].astype(np.int64), hit])


def match(*, pairs: NDArray[np.int64], particle_id: NDArray[np.int64]) -> Matching:
    """Match tracks to particles.

    Parameters
    ----------
    pairs
        int64 [2, n_pairs], track numbers (any integers) above hit indices; a hit may be in several tracks,
        but in each only once.
    particle_id
        int64 [n_hits], the particle of each hit of the event; 0 for noise.

    Returns
    -------
    Matching
        Independent of the order of the pairs.

    Raises
    ------
    PhysicsError
        On pairs of a wrong shape, hits that the event lacks, and a hit twice in one track.
    """
    _check_pairs(pairs, n_hits=particle_id.size)
    track, track_index, n_hits = np.unique(pairs[0], return_inverse=True, return_counts=True)
    particle, particle_index, particle_hits = np.unique(particle_id, return_inverse=True, return_counts=True)

    # Hits of each particle in each track: one key a combination. The lowest-numbered of the particles with
    # most hits comes first within its track, noise last.
    overlap, shared = np.unique(
        track_index * max(particle.size, 1) + particle_index[pairs[1]], return_counts=True
    )
    of_track, of_particle = np.divmod(overlap, max(particle.size, 1))
    noise = particle[of_particle] == NOISE
    order = np.lexsort((of_particle, -shared, noise, of_track))
    first = order[np.searchsorted(of_track[order], np.arange(track.size))]

    led = ~noise[first]
    leading = np.where(led, particle[of_particle[first]], NOISE)
    shared = np.where(led, shared[first], 0)
    in_event = np.where(led, particle_hits[of_particle[first]], 0)
    best = _best(leading=leading, shared=shared, n_hits=n_hits, particle_hits=in_event)
    return Matching(
        track=track,
        n_hits=n_hits,
        leading=leading,
        shared=shared,
        particle_hits=in_event,
        best=best,
        track_class=_classes(leading=leading, shared=shared, n_hits=n_hits, best=best),
    )


def _check_pairs(pairs: NDArray[np.int64], *, n_hits: int) -> None:
    if pairs.ndim != 2 or pairs.shape[0] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise PhysicsError(f"pairs: {pairs.dtype} {list(pairs.shape)}, integers [2, n_pairs] wanted")
    outside = np.flatnonzero((pairs[1] < 0) | (pairs[1] >= n_hits))
    if outside.size:
        track, hit = pairs[:, outside[0]]
        raise PhysicsError(f"pairs: track {track} names hit {hit} of an event of {n_hits} hits")
    order = np.lexsort((pairs[1], pairs[0]))
    twice = np.flatnonzero((np.diff(pairs[:, order]) == 0).all(axis=0))
    if twice.size:
        track, hit = pairs[:, order[twice[0]]]
        raise PhysicsError(f"pairs: track {track} holds hit {hit} twice")


def _double_majority(
    shared: NDArray[np.int64], n_hits: NDArray[np.int64], particle_hits: NDArray[np.int64]
) -> NDArray[np.bool_]:
    return (2 * shared > n_hits) & (2 * shared > particle_hits)


def _best(
    *,
    leading: NDArray[np.int64],
    shared: NDArray[np.int64],
    n_hits: NDArray[np.int64],
    particle_hits: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Choose one double-majority track a particle: most shared hits, then fewest others, then lowest number."""
    matching = np.flatnonzero(_double_majority(shared, n_hits, particle_hits))
    order = matching[np.lexsort((matching, n_hits[matching], -shared[matching], leading[matching]))]
    _, first = np.unique(leading[order], return_index=True)
    best = np.zeros(leading.shape, dtype=np.bool_)
    best[order[first]] = True
    return best


def _classes(
    *,
    leading: NDArray[np.int64],
    shared: NDArray[np.int64],
    n_hits: NDArray[np.int64],
    best: NDArray[np.bool_],
) -> NDArray[np.int8]:
    cases = [
        n_hits < MIN_COUNTED_HITS,
        2 * shared <= n_hits,
        best,
        np.isin(leading, leading[best]),
    ]
    classes = [TrackClass.SHORT, TrackClass.FAKE, TrackClass.MATCHED, TrackClass.DUPLICATE]
    return np.select(cases, classes, default=TrackClass.FRAGMENT).astype(np.int8)
