"""Parity gates: what an engine must pass before it is handed out. The tolerances are fixed here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.export.cases import drawn_edges, drawn_helices, drawn_hits
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import TARGETS
from tritrack.stages.chains import in_chains
from tritrack.stages.contract import EDGE_INDEX, EMBEDDING
from tritrack.stages.labelling import components, helix, walkthrough
from tritrack.stages.networks import run_network
from tritrack.stages.reference import (
    chained_pairs,
    component_labels,
    helix_labels,
    path_labels,
    radius_pairs,
)
from tritrack.stages.stage import search_on_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.events.event import Event
    from tritrack.export.cases import Case
    from tritrack.physics.metrics import Report
    from tritrack.stages.card import Cuts, Precision
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine
    from tritrack.stages.pipeline import Pipeline

NETWORK_TOLERANCE: dict[Precision, dict[str, float]] = {
    "fp32": {"embedding": 1e-5, "filter": 2e-5, "gnn": 1e-4},
    "fp16": {"embedding": 1e-3, "filter": 1e-2, "gnn": 2e-2},
    "bf16": {"embedding": 1e-2, "filter": 1e-1, "gnn": 1e-1},
}
"""Difference from the network in float32, by the engine's precision and stage: of a score (a probability), and of
a coordinate relative to the largest coordinate of the event. In fp32 no value may differ by more (float32 itself
leaves one GNN score in a thousand 2e-4 from its value in float64: trained weights, pile-up 40). In 16 bits no more
than one in a thousand may: there 4e-4, 7e-4 and 6e-3 were seen with fp16, 4e-3, 3e-2 and 4e-2 with bf16."""

NETWORK_QUANTILE: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.999, "bf16": 0.999}
"""Share of the values that must be within the tolerance."""

TRACK_TOLERANCE = 1e-3
"""Share of the tracks that may not be the same sets of hits, end to end."""

PHYSICS_TOLERANCE = 2e-3
"""Difference of efficiency and fake rate from those of the chain in fp32, on the same events."""

RADIUS_TOLERANCE = 1e-5
"""Pairs this close to the radius, relative to it, may be in the graph or not: float32 rounds there."""

NEIGHBOUR_TOLERANCE = 1e-4
"""The same of a hit's k-th neighbour: FAISS takes distances from sums of squares, in which more is lost."""

_BRUTE_FORCE_HITS = 1000  # of an event; n_hits^2 distances fit easily
_BRUTE_FORCE_PAIRS = 5000  # each is compared with all others


class GateError(RuntimeError):
    """A stage that does not compute what its reference computes; the message names stage and case."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One comparison.

    Attributes
    ----------
    stage, case
        What was compared, and on what.
    deviation
        Networks: difference of the values (see the tolerances). Graph: pairs that differ. Labelling: hits whose
        labels differ. Chain: share of tracks that differ. Physics: difference of a rate. Infinite where shapes
        differ or a value is not finite.
    tolerance
        Largest deviation that passes.
    """

    stage: str
    case: str
    deviation: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.deviation <= self.tolerance


def require(results: Iterable[GateResult]) -> None:
    """Raise GateError on the first result that did not pass."""
    for result in results:
        if not result.passed:
            raise GateError(
                f"{result.stage}: deviates by {result.deviation:.3g} from its reference on {result.case!r}, "
                f"{result.tolerance:.3g} is allowed"
            )


def gate_network(
    engine: Engine,
    *,
    spec: StageSpec,
    network: nn.Module,
    cases: Sequence[Case],
    precision: Precision = "fp32",
) -> list[GateResult]:
    """Compare the engine of a stage, in a precision, with its network in torch in float32."""
    results = []
    for case in cases:
        inputs: list[NDArray[Any]] = [case.hits]
        if EDGE_INDEX in spec.inputs:
            inputs.append(case.edge_index[spec.name])
        deviation = deviation_of(
            run_network(network, *inputs),
            engine(*inputs),
            relative=EMBEDDING in spec.engine,
            quantile=NETWORK_QUANTILE[precision],
        )
        tolerance = NETWORK_TOLERANCE[precision][spec.name]
        results.append(GateResult(stage=spec.name, case=case.name, deviation=deviation, tolerance=tolerance))
    return results


def deviation_of(
    wanted: NDArray[np.float32], found: NDArray[np.float32], *, relative: bool, quantile: float = 1.0
) -> float:
    """Return the difference of a network's values that a share of them does not exceed.

    Parameters
    ----------
    wanted, found
        float32, of one shape: the reference's values and the engine's.
    relative
        Whether the difference is relative to the largest value wanted.
    quantile
        The share; 1 for the largest difference.

    Returns
    -------
    float
        Infinite where shapes differ or a value is not finite, 0 where there are no values.
    """
    if wanted.shape != found.shape or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    if wanted.size == 0:
        return 0.0
    difference = np.abs(found.astype(np.float64) - wanted)
    deviation = float(np.quantile(difference, quantile, method="higher"))
    return deviation / max(float(np.abs(wanted).max()), 1e-30) if relative else deviation


def gate_graph(*, embed: Engine, cuts: Cuts, cases: Sequence[Case]) -> list[GateResult]:
    """Compare the search with a comparison of every hit with every other, and the chains with plain ones."""
    results = []
    radius, windows = cuts.radius, cuts.windows
    alone = replace(windows, min_chain=1)
    search = partial(search_on_host(cuts), radius=radius, windows=alone)
    by = f"radius {radius:.3g}" + (f", {cuts.k} nearest" if cuts.graph == "knn" else "")
    for case in cases:
        # From all over the event: hits come sorted by module.
        n_hits = min(case.hits.shape[0], _BRUTE_FORCE_HITS)
        hits = np.random.default_rng(0).choice(case.hits, n_hits, replace=False)
        embedding = embed(hits)
        found = search(hits, embedding, max_pairs=n_hits**2)
        wanted, distance = radius_pairs(hits, embedding, radius=radius, windows=alone)
        reach, tolerance = np.full(n_hits, radius), RADIUS_TOLERANCE
        if cuts.graph == "knn":
            reach, tolerance = np.minimum(_nearest(distance, k=cuts.k), radius), NEIGHBOUR_TOLERANCE
            wanted = wanted[:, distance[tuple(wanted)] <= reach[wanted].max(axis=0)]
        inner, outer = (pairs.astype(np.int64) for pairs in np.concatenate([found, wanted], axis=1))
        _, first, counts = np.unique(inner * n_hits + outer, return_index=True, return_counts=True)
        inner, outer = inner[first[counts != 2]], outer[first[counts != 2]]
        edge = np.maximum(reach[inner], reach[outer])
        far_from_edge = np.abs(distance[inner, outer] - edge) > tolerance * edge
        results.append(
            GateResult(
                stage="graph",
                case=f"{case.name}, {by}",
                deviation=float(far_from_edge.sum()),
                tolerance=0.0,
            )
        )
        # Chains need neighbours: a wedge of the event.
        hits = case.hits[np.argsort(np.arctan2(case.hits[:, 1], case.hits[:, 0]), kind="stable")[:n_hits]]
        pairs = search(hits, embed(hits), max_pairs=n_hits**2)
        pairs = pairs[:, :_BRUTE_FORCE_PAIRS]
        differ = in_chains(hits, pairs, windows=windows) != chained_pairs(hits, pairs, windows=windows)
        results.append(
            GateResult(
                stage="graph",
                case=f"{case.name}, chains of {windows.min_chain} within {windows.max_d0:.3g} mm",
                deviation=float(np.count_nonzero(differ)),
                tolerance=0.0,
            )
        )
    return results


def _nearest(distance: NDArray[np.float64], *, k: int) -> NDArray[np.float64]:
    """Return how far the k-th nearest other hit of each is, float64 [n_hits]; infinity where there are fewer."""
    n_hits = len(distance)
    if k >= n_hits:
        return np.full(n_hits, np.inf)
    nearest: NDArray[np.float64] = np.partition(distance + np.diag(np.full(n_hits, np.inf)), k - 1)[:, k - 1]
    return nearest


def gate_labelling(*, cut: float) -> list[GateResult]:
    """Compare the labellings with plain ones, on hits and edges drawn by seed."""
    results = []
    sizes = [(0, 0), (1, 0), (2, 1), (30, 0), (30, 40), (120, 100), (120, 200)]
    graphs = [
        (drawn_hits(n_hits=n, seed=n), drawn_edges(n_hits=n, n_edges=n_edges, seed=n_edges))
        for n, n_edges in sizes
    ]
    for hits, pairs in [*graphs, drawn_helices(n_tracks=12, seed=1)]:
        n_hits, edges = hits.shape[0], _inner_first(hits, pairs)
        # Every other score passes the cut, whatever it is.
        rng = np.random.default_rng(edges.shape[1])
        score = np.where(
            rng.random(edges.shape[1]) < 0.5,
            rng.uniform(cut, 1.0, edges.shape[1]),
            rng.uniform(0.0, cut, edges.shape[1]),
        ).astype(np.float32)
        found = {
            "components": components(hits, edges, score, cut=cut),
            "walkthrough": walkthrough(hits, edges, score, cut=cut),
            "helix": helix(hits, edges, score, cut=cut),
        }
        wanted = {
            "components": component_labels(n_hits, edges, score, cut=cut),
            "walkthrough": path_labels(hits, edges, score, cut=cut),
            "helix": helix_labels(hits, edges, score, cut=cut),
        }
        results += [
            GateResult(
                stage="labelling",
                case=f"{method}, cut {cut:.3g}, {n_hits} hits, {edges.shape[1]} edges",
                deviation=float((found[method] != wanted[method]).sum()),
                tolerance=0.0,
            )
            for method in found
        ]
    return results


def gate_chain(chain: Pipeline, *, reference: Pipeline, events: Iterable[Event]) -> list[GateResult]:
    """Compare the tracks of events, end to end, with those of the reference chain."""
    return [
        GateResult(
            stage="chain",
            case=f"event {event.event_id}, {event.n_hits} hits",
            deviation=share_of_other_tracks(chain.find(event.hits), reference.find(event.hits)),
            tolerance=TRACK_TOLERANCE,
        )
        for event in events
    ]


def gate_physics(chain: Pipeline, *, reference: Pipeline, events: Sequence[Event]) -> list[GateResult]:
    """Compare efficiency and fake rate, over all events, with those of the reference chain.

    Raises
    ------
    PhysicsError
        Where an event has no truth.
    """
    return compare_rates(judge(chain, events), judge(reference, events))


def judge(chain: Pipeline, events: Sequence[Event]) -> Report:
    """Find the tracks of events, one at least, and judge them (raises PhysicsError on one without truth)."""
    counts = [
        count(event=event, pairs=pairs_from_labels(chain.find(event.hits)), selection=TARGETS)
        for event in events
    ]
    return sum(counts[1:], counts[0]).report()


def compare_rates(found: Report, wanted: Report) -> list[GateResult]:
    """Compare efficiency and fake rate; a share of nothing differs from any."""
    differences = {
        name: abs(float(getattr(found.rates, name).value) - float(getattr(wanted.rates, name).value))
        for name in ("efficiency", "fake_rate")
    }
    return [
        GateResult(
            stage="physics",
            case=f"{name.replace('_', ' ')}, {wanted.n_events} events",
            deviation=float("inf") if np.isnan(difference) else difference,
            tolerance=PHYSICS_TOLERANCE,
        )
        for name, difference in differences.items()
    ]


def share_of_other_tracks(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Return the share of the tracks that are not the same sets of hits, of two labellings int64 [n_hits]."""
    sizes = [np.bincount(labels[labels >= 0]) for labels in (found, wanted)]
    n_tracks = max(size.size for size in sizes)
    both = (found >= 0) & (wanted >= 0)
    (a, b), shared = np.unique(np.stack([found[both], wanted[both]]), axis=1, return_counts=True)
    same = np.count_nonzero((shared == sizes[0][a]) & (shared == sizes[1][b]))
    return 1 - same / n_tracks if n_tracks else 0.0


def _inner_first(hits: NDArray[np.float32], edges: NDArray[np.int32]) -> NDArray[np.int32]:
    distance = np.square(hits.astype(np.float64)).sum(axis=1)
    edges = np.where(distance[edges[0]] <= distance[edges[1]], edges, edges[::-1])
    pairs: NDArray[np.int32] = np.unique(edges[:, edges[0] != edges[1]], axis=1)
    return pairs
