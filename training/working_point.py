"""Choose the cuts of the chain on validation events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import EventError
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.stages.labelling import LABELLINGS
from tritrack.stages.networks import run_network
from tritrack.training.graphs import pair_scores
from tritrack.training.sample import pair_targets, path_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.stages.card import LabellingMethod
    from tritrack.training.sample import Sample

    Scored = tuple[Sample, NDArray[np.int32], NDArray[np.float32]]

GRAPH_RECALL = 0.99
"""Share of consecutive pairs that the radius must reach."""

FILTER_RECALL = 0.98
"""Share of the graph's consecutive pairs that the filter's cut must keep: pairs that skip a hit bridge the rest."""

GNN_CUTS = tuple(np.round(np.arange(0.1, 0.96, 0.05), 2).tolist())
"""The cuts on EDGE_SCORE that are tried."""

MIN_WEIGHT = 0.5
"""Pairs counted in a recall: those of particles of at least this weight (pT of 0.5 GeV)."""


def choose_radius(embedding: nn.Module, samples: Iterable[Sample]) -> float:
    """Return the radius within which ``GRAPH_RECALL`` of the consecutive pairs lie.

    Raises
    ------
    EventError
        Where the events have no such pair.
    """
    distances = []
    for sample in samples:
        points = run_network(embedding, sample.hits)
        a, b = path_pairs(sample, gap=1)
        counted = sample.weight[a] >= MIN_WEIGHT
        distances.append(np.linalg.norm(points[a[counted]] - points[b[counted]], axis=1))
    return _quantile(distances, GRAPH_RECALL)


def choose_filter_cut(network: nn.Module, graphs: Iterable[tuple[Sample, NDArray[np.int32]]]) -> float:
    """Return the highest cut that keeps ``FILTER_RECALL`` of the graphs' consecutive pairs.

    Raises
    ------
    EventError
        Where the graphs have none.
    """
    scores = []
    for sample, pairs in graphs:
        target, _ = pair_targets(sample, pairs)
        target &= np.abs(np.diff(sample.rank[pairs], axis=0)[0]) == 1
        target &= sample.weight[pairs[0]] >= MIN_WEIGHT
        scores.append(pair_scores(network, sample.hits, np.ascontiguousarray(pairs[:, target])))
    return _quantile(scores, 1 - FILTER_RECALL)


def score_graphs(network: nn.Module, graphs: Iterable[tuple[Sample, NDArray[np.int32]]]) -> list[Scored]:
    """Run the GNN on filtered graphs: sample, pairs and their scores."""
    return [(sample, pairs, run_network(network, sample.hits, pairs)) for sample, pairs in graphs]


def choose_gnn_cut(scored: Sequence[Scored]) -> tuple[LabellingMethod, float]:
    """Return the labelling and the cut with the largest efficiency less fake and duplicate rate."""

    def merit(choice: tuple[LabellingMethod, float]) -> float:
        rates = measure(scored, labelling=choice[0], cut=choice[1])
        lost = rates.get("fake_rate", 0.0) + rates.get("duplicate_rate", 0.0)
        return rates.get("efficiency", 0.0) - lost

    return max(((name, cut) for name in LABELLINGS for cut in GNN_CUTS), key=merit)


def measure(scored: Sequence[Scored], *, labelling: LabellingMethod, cut: float) -> dict[str, float]:
    """Return the physics of a labelling and a cut, by name; a rate of nothing is left out."""
    counts = [
        count(
            event=sample.event,
            pairs=pairs_from_labels(LABELLINGS[labelling](sample.hits, pairs, scores, cut=cut)),
        )
        for sample, pairs, scores in scored
    ]
    rates = sum(counts[1:], start=counts[0]).report().rates
    return {name: rate["value"] for name, rate in rates.to_json().items() if rate["value"] is not None}


def _quantile(values: list[NDArray[np.float32]], share: float) -> float:
    together = np.concatenate(values)
    if not together.size:
        raise EventError(
            "validation events: no pair of hits of a particle above 0.5 GeV is left to choose a cut on"
        )
    return float(np.quantile(together, share))
