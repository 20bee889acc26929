"""Efficiency, fakes, fragments and duplicates, summed over events.

*Efficiency*: selected particles with a double-majority track (of any length) / selected particles; *perfect* and
*LHC* efficiency likewise. *Rates*: of all tracks with at least 5 hits, whatever the selection, the share of
each class (`tritrack.physics.matching.TrackClass`); *unmatched* is all but matched. Against pT, eta and
production radius a particle is binned by its own true value, a track by its leading particle's (a track of
noise alone has none and is in the totals only).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.physics.axes import AXES
from tritrack.physics.intervals import CONFIDENCE, Share, share
from tritrack.physics.matching import TrackClass, match
from tritrack.physics.selection import TARGETS, PhysicsError, kinematics, particle_rows, truth_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tritrack.events.event import Event, Truth
    from tritrack.physics.axes import Axis
    from tritrack.physics.matching import Matching
    from tritrack.physics.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Numbers of particles and tracks: int64, all of one shape, [] in total or [n_bins] along an axis.

    Attributes
    ----------
    targets
        Selected particles.
    found, perfect, lhc
        Of them, with a double-majority, a perfect and an LHC track.
    matched, duplicates, fragments, fakes
        Tracks with at least 5 hits by class.
    """

    targets: NDArray[np.int64]
    found: NDArray[np.int64]
    perfect: NDArray[np.int64]
    lhc: NDArray[np.int64]
    matched: NDArray[np.int64]
    duplicates: NDArray[np.int64]
    fragments: NDArray[np.int64]
    fakes: NDArray[np.int64]

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def tracks(self) -> NDArray[np.int64]:
        """Tracks with at least 5 hits."""
        return self.matched + self.duplicates + self.fragments + self.fakes

    def rates(self) -> Rates:
        """Divide."""
        tracks = self.tracks
        return Rates(
            efficiency=share(self.found, self.targets),
            perfect_efficiency=share(self.perfect, self.targets),
            lhc_efficiency=share(self.lhc, self.targets),
            fake_rate=share(self.fakes, tracks),
            fragment_rate=share(self.fragments, tracks),
            duplicate_rate=share(self.duplicates, tracks),
            unmatched_rate=share(tracks - self.matched, tracks),
        )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The shares of a `Tally`, each with its interval; the names are the keys of the JSON."""

    efficiency: Share
    perfect_efficiency: Share
    lhc_efficiency: Share
    fake_rate: Share
    fragment_rate: Share
    duplicate_rate: Share
    unmatched_rate: Share

    def to_json(self) -> dict[str, Any]:
        """Return every share by name."""
        return {f.name: getattr(self, f.name).to_json() for f in fields(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Rates:
        """Read back what `to_json` gave, out of a mapping that may hold more."""
        return cls(**{f.name: Share.from_json(found[f.name]) for f in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was counted in a number of events; add them up with ``+``.

    Attributes
    ----------
    selection
        Name of the selection of particles.
    n_events, n_hits
        Events and their hits.
    n_short
        Tracks with fewer than 5 hits, in none of the rates.
    total
        All particles and tracks.
    against
        The same along each axis of `tritrack.physics.axes.AXES`, in that order.
    score, n_scored
        Sum of the events' TrackML scores, and the events that have one.
    """

    selection: str
    n_events: int
    n_hits: int
    n_short: int
    total: Tally
    against: tuple[Tally, ...]
    score: float
    n_scored: int

    def __add__(self, other: Counts) -> Counts:
        if self.selection != other.selection:
            raise PhysicsError(f"counts of {self.selection} and of {other.selection} cannot be added")
        return Counts(
            selection=self.selection,
            n_events=self.n_events + other.n_events,
            n_hits=self.n_hits + other.n_hits,
            n_short=self.n_short + other.n_short,
            total=self.total + other.total,
            against=tuple(a + b for a, b in zip(self.against, other.against, strict=True)),
            score=self.score + other.score,
            n_scored=self.n_scored + other.n_scored,
        )

    def report(self) -> Report:
        """Turn the counts into shares."""
        return Report(
            selection=self.selection,
            n_events=self.n_events,
            n_hits=self.n_hits,
            n_targets=int(self.total.targets),
            n_tracks=int(self.total.tracks),
            n_short_tracks=self.n_short,
            rates=self.total.rates(),
            trackml_score=self.score / self.n_scored if self.n_scored else None,
            profiles=tuple(
                Profile(axis=axis, targets=tally.targets, tracks=tally.tracks, rates=tally.rates())
                for axis, tally in zip(AXES, self.against, strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Shares along one axis.

    Attributes
    ----------
    axis
        The axis.
    targets, tracks
        int64 [n_bins], the denominators.
    rates
        Shares of shape [n_bins].
    """

    axis: Axis
    targets: NDArray[np.int64]
    tracks: NDArray[np.int64]
    rates: Rates

    def to_json(self) -> dict[str, Any]:
        """Return edges, denominators and shares."""
        return {
            "unit": self.axis.unit,
            "edges": list(self.axis.edges),
            "n_targets": self.targets.tolist(),
            "n_tracks": self.tracks.tolist(),
            **self.rates.to_json(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], *, axis: Axis) -> Profile:
        """Read back what `to_json` gave; the bins are the file's, the rest is the axis'."""
        return cls(
            axis=replace(axis, edges=tuple(found["edges"])),
            targets=np.array(found["n_targets"], dtype=np.int64),
            tracks=np.array(found["n_tracks"], dtype=np.int64),
            rates=Rates.from_json(found),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The physics of a finder on a number of events.

    Attributes
    ----------
    selection
        Name of the selection of particles.
    n_events, n_hits, n_targets
        Events, their hits and their selected particles.
    n_tracks, n_short_tracks
        Tracks with at least 5 hits, which the rates are over, and the others.
    rates
        The shares.
    trackml_score
        Mean over events of the weights of the hits that double-majority tracks share with their particles,
        over all weights (arXiv:1904.06778); None without weights.
    profiles
        The shares against each axis.
    """

    selection: str
    n_events: int
    n_hits: int
    n_targets: int
    n_tracks: int
    n_short_tracks: int
    rates: Rates
    trackml_score: float | None
    profiles: tuple[Profile, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; a share of nothing has the value None and the interval 0 to 1."""
        return {
            "selection": self.selection,
            "n_events": self.n_events,
            "n_hits": self.n_hits,
            "n_targets": self.n_targets,
            "n_tracks": self.n_tracks,
            "n_short_tracks": self.n_short_tracks,
            "confidence": CONFIDENCE,
            **self.rates.to_json(),
            "trackml_score": self.trackml_score,
            "against": {profile.axis.name: profile.to_json() for profile in self.profiles},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Report:
        """Read back what `to_json` gave."""
        return cls(
            selection=found["selection"],
            n_events=found["n_events"],
            n_hits=found["n_hits"],
            n_targets=found["n_targets"],
            n_tracks=found["n_tracks"],
            n_short_tracks=found["n_short_tracks"],
            rates=Rates.from_json(found),
            trackml_score=found["trackml_score"],
            profiles=tuple(Profile.from_json(found["against"][axis.name], axis=axis) for axis in AXES),
        )


def count(*, event: Event, pairs: NDArray[np.int64], selection: Selection = TARGETS) -> Counts:
    """Judge the tracks of one event.

    Parameters
    ----------
    event
        The event, with truth.
    pairs
        int64 [2, n_pairs], track numbers above hit indices (`tritrack.physics.matching.pairs_from_labels`).
    selection
        The particles that the efficiencies are about.

    Raises
    ------
    PhysicsError
        Where the event has no truth, or the pairs or the truth cannot be used; names the event.
    """
    truth = truth_of(event)
    try:
        matching = match(pairs=pairs, particle_id=truth.particle_id)
        kin = kinematics(truth)
        leading = particle_rows(truth, matching.leading)
    except PhysicsError as error:
        raise PhysicsError(f"event {event.event_id}: {error}") from None
    selected = selection.passes(truth, kin)
    score, n_scored = _score(truth=truth, pairs=pairs, matching=matching)
    # One entry more than particles: where a track of noise alone (row -1) goes.
    one_bin = np.zeros(selected.size + 1, dtype=np.int64)
    return Counts(
        selection=selection.name,
        n_events=1,
        n_hits=event.n_hits,
        n_short=int(np.count_nonzero(matching.track_class == TrackClass.SHORT)),
        total=_tally(selected=selected, matching=matching, leading=leading, bins=one_bin, shape=()),
        against=tuple(
            _tally(
                selected=selected,
                matching=matching,
                leading=leading,
                bins=np.append(axis.bins(kin), axis.n_bins),
                shape=(axis.n_bins,),
            )
            for axis in AXES
        ),
        score=score,
        n_scored=n_scored,
    )


def _tally(
    *,
    selected: NDArray[np.bool_],
    matching: Matching,
    leading: NDArray[np.int64],
    bins: NDArray[np.int64],
    shape: tuple[int, ...],
) -> Tally:
    """Count by bin: ``bins`` [n_particles + 1], its last entry for tracks of noise alone; ``shape`` of the result."""
    n_bins = math.prod(shape)

    def per_bin(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(bins[rows], minlength=n_bins)[:n_bins].astype(np.int64).reshape(shape)

    def having(tracks: NDArray[np.bool_]) -> NDArray[np.int64]:
        led = np.zeros(selected.size + 1, dtype=np.bool_)
        led[leading[tracks]] = True
        return per_bin(np.flatnonzero(selected & led[:-1]))

    def of_class(track_class: TrackClass) -> NDArray[np.int64]:
        return per_bin(leading[matching.track_class == track_class])

    return Tally(
        targets=per_bin(np.flatnonzero(selected)),
        found=having(matching.majority),
        perfect=having(matching.perfect),
        lhc=having(matching.lhc),
        matched=of_class(TrackClass.MATCHED),
        duplicates=of_class(TrackClass.DUPLICATE),
        fragments=of_class(TrackClass.FRAGMENT),
        fakes=of_class(TrackClass.FAKE),
    )


def _score(*, truth: Truth, pairs: NDArray[np.int64], matching: Matching) -> tuple[float, int]:
    """Return the TrackML score and 1, or 0 and 0 where there is nothing to score."""
    if truth.weight is None:
        return 0.0, 0
    weight = truth.weight.astype(np.float64)
    if weight.sum() <= 0:
        return 0.0, 0
    # Only the best track of a particle scores: with shared hits the others would count its hits again.
    track = np.searchsorted(matching.track, pairs[0])
    right = matching.best[track] & (matching.leading[track] == truth.particle_id[pairs[1]])
    return float(weight[pairs[1][right]].sum() / weight.sum()), 1
