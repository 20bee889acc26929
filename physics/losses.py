"""Where a finder that works on a graph loses the particles that it should find.

A particle is *within reach* of a graph when more than half of its hits hang together in it: the largest group
of its own hits, joined by edges whose both ends are its own (in whatever order along the particle), holds more
than half of the hits that it left in the event. That is what a track of its own hits needs for a double
majority.

A selected particle without a double-majority track is lost in the first graph that it is out of reach of. One
that is within reach of the last graph is lost by what makes tracks of it, the labelling. One that a track
matches is found, reach or not: tracks also hold together by hits of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tritrack.events.event import NOISE
from tritrack.physics.intervals import CONFIDENCE, share
from tritrack.physics.matching import match
from tritrack.physics.selection import TARGETS, PhysicsError, kinematics, particle_rows, truth_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tritrack.events.event import Event, Truth
    from tritrack.physics.selection import Selection

LABELLING = "labelling"
"""Name of what makes tracks of the last graph."""


@dataclass(frozen=True, kw_only=True)
class LossCounts:
    """Selected particles by where they were lost, in a number of events; add them up with ``+``.

    Attributes
    ----------
    selection
        Name of the selection of particles.
    n_events, targets
        Events and their selected particles.
    lost
        Particles lost in each graph, by its name and in order, and last in the labelling.
    """

    selection: str
    n_events: int
    targets: int
    lost: dict[str, int]

    def __add__(self, other: LossCounts) -> LossCounts:
        if self.selection != other.selection or list(self.lost) != list(other.lost):
            raise PhysicsError(
                f"losses of {self.selection} in {', '.join(self.lost)} and of {other.selection} in "
                f"{', '.join(other.lost)} cannot be added"
            )
        return LossCounts(
            selection=self.selection,
            n_events=self.n_events + other.n_events,
            targets=self.targets + other.targets,
            lost={stage: number + other.lost[stage] for stage, number in self.lost.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Return counts, and shares of the selected particles, as plain JSON values."""
        return {
            "selection": self.selection,
            "n_events": self.n_events,
            "n_targets": self.targets,
            "n_lost": sum(self.lost.values()),
            "confidence": CONFIDENCE,
            "lost": {
                stage: {"n": number, "share": share(number, self.targets).to_json()}
                for stage, number in self.lost.items()
            },
        }


def count_losses(
    *,
    event: Event,
    graphs: Mapping[str, NDArray[np.integer[Any]]],
    pairs: NDArray[np.int64],
    selection: Selection = TARGETS,
) -> LossCounts:
    """Say where the selected particles of one event that no track matches were lost.

    Parameters
    ----------
    event
        The event, with truth.
    graphs
        Integers [2, n_edges] by name, hit indices, in the order in which they are made.
    pairs
        int64 [2, n_pairs], track numbers above hit indices: what the labelling made of the last graph.
    selection
        The particles to find.

    Raises
    ------
    PhysicsError
        Where the event has no truth, or the pairs or the truth cannot be used; names the event.
    """
    truth = truth_of(event)
    try:
        matching = match(pairs=pairs, particle_id=truth.particle_id)
        kin = kinematics(truth)
    except PhysicsError as error:
        raise PhysicsError(f"event {event.event_id}: {error}") from None
    selected = selection.passes(truth, kin)
    missing = selected & ~np.isin(truth.particles.particle_id, matching.leading[matching.majority])
    lost = {}
    for name, edge_index in graphs.items():
        out_of_reach = missing & (2 * largest_groups(truth=truth, edge_index=edge_index) <= kin.n_hits)
        lost[name] = int(np.count_nonzero(out_of_reach))
        missing &= ~out_of_reach
    lost[LABELLING] = int(np.count_nonzero(missing))
    return LossCounts(
        selection=selection.name, n_events=1, targets=int(np.count_nonzero(selected)), lost=lost
    )


def largest_groups(*, truth: Truth, edge_index: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the size of each particle's largest group of own hits.

    Parameters
    ----------
    truth
        The truth of one event.
    edge_index
        Integers [2, n_edges], hit indices.

    Returns
    -------
    ndarray
        int64 [n_particles], in hits: 1 where no edge joins two hits of the particle, 0 where it left none.
    """
    particle_id = truth.particle_id
    ends = particle_id[edge_index]
    inner, outer = edge_index[:, (ends[0] == ends[1]) & (ends[0] != NOISE)]
    n_hits = particle_id.size
    graph = coo_array((np.ones(inner.size, dtype=np.int8), (inner, outer)), shape=(n_hits, n_hits))
    _, group = connected_components(graph, directed=False)
    size = np.bincount(group, minlength=n_hits)[group]
    rows = particle_rows(truth, particle_id)
    own = rows >= 0
    largest = np.zeros(truth.particles.particle_id.size, dtype=np.int64)
    np.maximum.at(largest, rows[own], size[own])
    return largest
