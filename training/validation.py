"""What each network keeps of the pairs that tracks are made of, on wedges that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from tritrack.events.event import EventError
from tritrack.stages.networks import run_network
from tritrack.training.graphs import graph_pairs, pair_scores
from tritrack.training.loop import Validation
from tritrack.training.losses import embedding_loss, filter_loss, gnn_loss
from tritrack.training.sample import pair_targets, path_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.stages.card import Windows
    from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork
    from tritrack.training.sample import Sample

    Pairs = NDArray[np.int32]
    Graph = tuple[Sample, Pairs]

COUNTED_WEIGHT = 1.0
"""Recalls are over the consecutive pairs of particles of at least this weight: pT >= 1 GeV."""

GRAPH_RECALL = 0.995
"""Share of the counted pairs that the radius reaches while the networks behind the graph are trained."""

FILTER_RECALL = 0.985
"""Share of the graph's counted pairs that the filter's cut keeps while the GNN is trained."""

GNN_CUT = 0.5
"""Cut on EDGE_SCORE that a GNN's curve is about."""


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Pairs of a graph; add them up with ``+``.

    Attributes
    ----------
    counted, kept
        Consecutive pairs of particles of pT >= 1 GeV, and those of them that are in the graph.
    edges, right
        Pairs of the graph, and those of them that are to be found.
    """

    counted: int
    kept: int
    edges: int
    right: int

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(
            counted=self.counted + other.counted,
            kept=self.kept + other.kept,
            edges=self.edges + other.edges,
            right=self.right + other.right,
        )

    @property
    def efficiency(self) -> float:
        """Share of the counted pairs that are kept; NaN where there are none."""
        return self.kept / self.counted if self.counted else float("nan")

    @property
    def purity(self) -> float:
        """Share of the graph's pairs that are to be found; NaN in an empty graph."""
        return self.right / self.edges if self.edges else float("nan")


def is_counted(sample: Sample, pairs: Pairs) -> NDArray[np.bool_]:
    """Tell which pairs are consecutive on a particle of pT >= 1 GeV."""
    target, _ = pair_targets(sample, pairs)
    a, b = pairs
    consecutive = np.abs(sample.rank[a] - sample.rank[b]) == 1
    counted: NDArray[np.bool_] = target & consecutive & (sample.weight[a] >= COUNTED_WEIGHT)
    return counted


def count_pairs(sample: Sample, pairs: Pairs) -> PairCounts:
    """Count a graph's pairs."""
    paths = path_pairs(sample, gap=1)
    return PairCounts(
        counted=int(np.count_nonzero(sample.weight[paths[0]] >= COUNTED_WEIGHT)),
        kept=int(np.count_nonzero(is_counted(sample, pairs))),
        edges=pairs.shape[1],
        right=int(np.count_nonzero(pair_targets(sample, pairs)[0])),
    )


def choose_radius(embedding: nn.Module, samples: Iterable[Sample], *, recall: float) -> float:
    """Return the radius within which that share of the counted pairs lies.

    Raises
    ------
    EventError
        Where the samples have no such pair.
    """
    distances = []
    for sample in samples:
        points = run_network(embedding, sample.hits)
        a, b = path_pairs(sample, gap=1)
        counted = sample.weight[a] >= COUNTED_WEIGHT
        distances.append(np.linalg.norm(points[a[counted]] - points[b[counted]], axis=1))
    return _quantile(distances, recall)


def choose_filter_cut(network: nn.Module, graphs: Iterable[Graph], *, recall: float) -> float:
    """Return the highest cut that keeps that share of the graphs' counted pairs.

    Raises
    ------
    EventError
        Where the graphs have none.
    """
    scores = [
        pair_scores(network, sample.hits, np.ascontiguousarray(pairs[:, is_counted(sample, pairs)]))
        for sample, pairs in graphs
    ]
    return _quantile(scores, 1 - recall)


def validate_embedding(network: nn.Module, samples: Sequence[Sample], *, windows: Windows) -> Validation:
    """Judge the graph at ``GRAPH_RECALL``."""
    embedding = cast("EmbeddingNetwork", network)
    radius = choose_radius(embedding, samples, recall=GRAPH_RECALL)
    losses, counts = [], []
    for sample in samples:
        losses.append(
            float(embedding_loss(embedding, sample, np.random.default_rng(0), windows=windows).detach())
        )
        pairs = graph_pairs(embedding, sample.hits, radius=radius, windows=windows)
        counts.append(count_pairs(sample, pairs))
    return _validation(losses, counts)


def validate_filter(network: nn.Module, graphs: Sequence[Graph]) -> Validation:
    """Judge what the filter leaves at ``FILTER_RECALL``."""
    filter_ = cast("FilterNetwork", network)
    cut = choose_filter_cut(filter_, graphs, recall=FILTER_RECALL)
    losses, counts = [], []
    for sample, pairs in graphs:
        losses.append(float(filter_loss(filter_, sample, pairs, np.random.default_rng(0)).detach()))
        counts.append(count_pairs(sample, pairs[:, pair_scores(filter_, sample.hits, pairs) >= cut]))
    return _validation(losses, counts)


def validate_gnn(network: nn.Module, graphs: Sequence[Graph]) -> Validation:
    """Judge the edges above ``GNN_CUT``."""
    gnn = cast("GnnNetwork", network)
    losses, counts = [], []
    for sample, pairs in graphs:
        losses.append(float(gnn_loss(gnn, sample, pairs).detach()))
        counts.append(count_pairs(sample, pairs[:, run_network(gnn, sample.hits, pairs) >= GNN_CUT]))
    return _validation(losses, counts)


def _validation(losses: Sequence[float], counts: Sequence[PairCounts]) -> Validation:
    total = sum(counts[1:], start=counts[0])
    return Validation(loss=float(np.mean(losses)), edge_efficiency=total.efficiency, edge_purity=total.purity)


def _quantile(values: list[NDArray[np.float32]], share: float) -> float:
    together = np.concatenate(values)
    if not together.size:
        raise EventError(
            "validation events: no pair of hits of a particle above 1 GeV is left to choose a cut on"
        )
    return float(np.quantile(together, share))
