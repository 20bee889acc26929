"""Edge efficiency and purity: what a graph keeps of the pairs that tracks are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.events.event import NOISE
from tritrack.physics.axes import AXES
from tritrack.physics.intervals import CONFIDENCE, share
from tritrack.physics.selection import TARGETS, PhysicsError, kinematics, particle_rows, truth_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.events.event import Event, Truth
    from tritrack.physics.intervals import Share
    from tritrack.physics.selection import Selection


@dataclass(frozen=True, kw_only=True)
class EdgeCounts:
    """Pairs and edges counted in a number of events; add them up with ``+``.

    Attributes
    ----------
    selection
        Name of the selection of particles.
    n_events
        Number of events.
    edges, true_edges
        Edges of the graph, and those of them that are true pairs.
    pairs, pairs_kept
        True pairs of all particles, and those of them that are in the graph.
    target_pairs, target_pairs_kept
        The same of selected particles.
    against, against_kept
        The same of selected particles along each axis of `tritrack.physics.axes.AXES`, int64 [n_bins] each.
    """

    selection: str
    n_events: int
    edges: int
    true_edges: int
    pairs: int
    pairs_kept: int
    target_pairs: int
    target_pairs_kept: int
    against: tuple[NDArray[np.int64], ...]
    against_kept: tuple[NDArray[np.int64], ...]

    def __add__(self, other: EdgeCounts) -> EdgeCounts:
        if self.selection != other.selection:
            raise PhysicsError(f"edges of {self.selection} and of {other.selection} cannot be added")
        return EdgeCounts(
            selection=self.selection,
            n_events=self.n_events + other.n_events,
            edges=self.edges + other.edges,
            true_edges=self.true_edges + other.true_edges,
            pairs=self.pairs + other.pairs,
            pairs_kept=self.pairs_kept + other.pairs_kept,
            target_pairs=self.target_pairs + other.target_pairs,
            target_pairs_kept=self.target_pairs_kept + other.target_pairs_kept,
            against=tuple(a + b for a, b in zip(self.against, other.against, strict=True)),
            against_kept=tuple(a + b for a, b in zip(self.against_kept, other.against_kept, strict=True)),
        )

    @property
    def efficiency(self) -> Share:
        """Share of the selected particles' pairs that are in the graph."""
        return share(self.target_pairs_kept, self.target_pairs)

    @property
    def efficiency_all(self) -> Share:
        """Share of all particles' pairs that are in the graph."""
        return share(self.pairs_kept, self.pairs)

    @property
    def purity(self) -> Share:
        """Share of the edges that are true pairs, of any particle."""
        return share(self.true_edges, self.edges)

    def to_json(self) -> dict[str, Any]:
        """Return counts and shares as plain JSON values."""
        return {
            "selection": self.selection,
            "n_events": self.n_events,
            "n_edges": self.edges,
            "confidence": CONFIDENCE,
            "edge_efficiency": self.efficiency.to_json(),
            "edge_efficiency_all": self.efficiency_all.to_json(),
            "edge_purity": self.purity.to_json(),
            "against": {
                axis.name: {
                    "unit": axis.unit,
                    "edges": list(axis.edges),
                    "n_pairs": pairs.tolist(),
                    "edge_efficiency": share(kept, pairs).to_json(),
                }
                for axis, pairs, kept in zip(AXES, self.against, self.against_kept, strict=True)
            },
        }


def true_pairs(truth: Truth, *, skip: int = 0) -> NDArray[np.int64]:
    """Pairs of hits that follow each other on one particle, in order of ``truth.order``.

    Parameters
    ----------
    truth
        The truth of one event.
    skip
        Up to so many hits may lie between the two: 0 gives consecutive pairs, 1 also those that leave out
        one hit.

    Returns
    -------
    ndarray
        int64 [2, n_pairs], each pair once, the lower hit index first (not the inner hit), sorted by
        (lower, higher).
    """
    # Hits at the same time keep their order in the event.
    path = np.lexsort((np.arange(truth.particle_id.size), truth.order, truth.particle_id))
    path = path[truth.particle_id[path] != NOISE]
    ends = [(path[: -1 - gap], path[1 + gap :]) for gap in range(skip + 1)]
    pairs = np.concatenate(
        [np.stack(pair)[:, truth.particle_id[pair[0]] == truth.particle_id[pair[1]]] for pair in ends], axis=1
    )
    pairs = np.sort(pairs, axis=0)
    return pairs[:, np.lexsort((pairs[1], pairs[0]))].astype(np.int64)


def is_true_edge(*, edge_index: NDArray[np.integer[Any]], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which edges are among the pairs, either way round.

    Parameters
    ----------
    edge_index
        Integers [2, n_edges].
    pairs
        int64 [2, n_pairs], as `true_pairs` gives them.

    Returns
    -------
    ndarray
        bool [n_edges].
    """
    return _place(edge_index=edge_index, pairs=pairs) >= 0


def count_edges(
    *, event: Event, edge_index: NDArray[np.integer[Any]], selection: Selection = TARGETS, skip: int = 0
) -> EdgeCounts:
    """Judge the graph of one event.

    Parameters
    ----------
    event
        The event, with truth.
    edge_index
        Integers [2, n_edges], hit indices, each pair once, either way round.
    selection
        The particles that the efficiency is about.
    skip
        What counts as a true pair, see `true_pairs`.

    Raises
    ------
    PhysicsError
        Where the event has no truth, or an edge names a hit that the event lacks; names the event.
    """
    truth = truth_of(event)
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise PhysicsError(
            f"event {event.event_id}: edges of shape {list(edge_index.shape)}, [2, n_edges] wanted"
        )
    outside = np.flatnonzero(((edge_index < 0) | (edge_index >= event.n_hits)).any(axis=0))
    if outside.size:
        raise PhysicsError(
            f"event {event.event_id}: edge {outside[0]} joins hits {edge_index[:, outside[0]].tolist()} "
            f"of an event of {event.n_hits} hits"
        )
    try:
        kin = kinematics(truth)
    except PhysicsError as error:
        raise PhysicsError(f"event {event.event_id}: {error}") from None
    pairs = true_pairs(truth, skip=skip)
    place = _place(edge_index=edge_index, pairs=pairs)
    kept = np.zeros(pairs.shape[1], dtype=np.bool_)
    kept[place[place >= 0]] = True
    rows = particle_rows(truth, truth.particle_id[pairs[0]])
    wanted = selection.passes(truth, kin)[rows]
    return EdgeCounts(
        selection=selection.name,
        n_events=1,
        edges=edge_index.shape[1],
        true_edges=int(np.count_nonzero(place >= 0)),
        pairs=kept.size,
        pairs_kept=int(np.count_nonzero(kept)),
        target_pairs=int(np.count_nonzero(wanted)),
        target_pairs_kept=int(np.count_nonzero(wanted & kept)),
        against=tuple(_binned(axis.bins(kin)[rows[wanted]], axis.n_bins) for axis in AXES),
        against_kept=tuple(_binned(axis.bins(kin)[rows[wanted & kept]], axis.n_bins) for axis in AXES),
    )


def _binned(bins: NDArray[np.int64], n_bins: int) -> NDArray[np.int64]:
    return np.bincount(bins, minlength=n_bins).astype(np.int64)


def _place(*, edge_index: NDArray[np.integer[Any]], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the column of ``pairs`` that each edge is, -1 for none."""
    low, high = np.sort(edge_index.astype(np.int64), axis=0)
    if not pairs.size:
        return np.full(low.shape, -1, dtype=np.int64)
    width = 1 + max(int(pairs.max()), int(high.max(initial=0)))
    wanted, keys = low * width + high, pairs[0] * width + pairs[1]
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[place] == wanted, place, -1)
