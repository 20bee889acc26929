"""Choose the cuts of the chain's three working points on validation events."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import EventError
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import SELECTIONS
from tritrack.stages.card import WORKING_POINTS, Cuts, WorkingPoint
from tritrack.stages.labelling import LABELLINGS
from tritrack.stages.networks import run_network
from tritrack.training.graphs import filtered_pairs, graph_pairs
from tritrack.training.memory import keep_memory
from tritrack.training.sample import make_sample
from tritrack.training.validation import PairCounts, choose_filter_cut, choose_radius, count_pairs
from tritrack.training.wedges import event_files, read_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.events.event import Event
    from tritrack.physics.metrics import Counts
    from tritrack.stages.card import LabellingMethod, Windows, WorkingPointName

    Sets = Mapping[str, Sequence[Path]]
    OnNote = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a working point asks of its graph.

    Attributes
    ----------
    graph
        Share of the consecutive pairs of particles of pT >= 1 GeV that lie within the radius.
    min_chain
        Pairs of the chain that a pair must be part of.
    filter
        Share of those in the graph that the filter's cut keeps.
    """

    graph: float
    min_chain: int
    filter: float


DEMANDS: dict[WorkingPointName, Demands] = {
    "fast": Demands(graph=0.985, min_chain=4, filter=0.985),
    "balanced": Demands(graph=0.985, min_chain=3, filter=0.99),
    "best": Demands(graph=0.9925, min_chain=3, filter=0.995),
}
"""The working points: what an event costs grows with its pairs and edges, and these with the recalls."""

GNN_CUTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""The cuts on EDGE_SCORE that are tried."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An event with the edges that a labelling gets.

    Attributes
    ----------
    event
        The event.
    n_pairs
        Pairs that the graph stage gave.
    graph, filter
        What of the true pairs was left after these stages.
    edge_index, edge_score
        int32 [2, n_edges] after the filter, and float32 [n_edges].
    """

    event: Event
    n_pairs: int
    graph: PairCounts
    filter: PairCounts
    edge_index: NDArray[np.int32]
    edge_score: NDArray[np.float32]


def validation_sets(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of folders of validation events, by the folders' names.

    Raises
    ------
    EventError
        Where a folder holds fewer than two events, or two have one name.
    """
    sets = {}
    for folder in folders:
        files = event_files(folder)
        if len(files) < 2:
            raise EventError(f"{folder}: one event there; one chooses the cuts and another measures them")
        if folder.name in sets:
            raise EventError(f"{folder}: a second folder of the name {folder.name}; their metrics go by it")
        sets[folder.name] = files
    return sets


def choose_working_points(
    networks: Mapping[str, nn.Module],
    *,
    windows: Windows,
    sets: Sets,
    on_note: OnNote,
    names: Sequence[WorkingPointName] = WORKING_POINTS,
) -> dict[WorkingPointName, WorkingPoint]:
    """Choose radius, filter cut, GNN cut and labelling of working points.

    Parameters
    ----------
    networks
        The three networks.
    windows
        Geometry of the pairs, but for the length of chains, which is the working point's own.
    sets
        Validation events, see :func:`validation_sets`: of each set, every other event chooses the cuts, and the
        metrics are of those between.
    on_note
        Called with a line on each result.
    names
        Which working points.

    Returns
    -------
    dict
        The working points with their metrics, by set.
    """
    keep_memory()
    points = {}
    for name in names:
        points[name] = point = _choose_working_point(networks, DEMANDS[name], windows=windows, sets=sets)
        cuts = point.cuts
        on_note(
            f"{name}: radius {cuts.radius:.3f}, filter cut {cuts.filter_cut:.4f}, GNN cut {cuts.gnn_cut:.2f}, "
            f"{cuts.labelling}; "
            + "; ".join(
                f"{of}: efficiency {values.get('efficiency', float('nan')):.4f}, {values['n_edges']:.0f} edges"
                for of, values in point.metrics.items()
            )
        )
    return points


def _choose_working_point(
    networks: Mapping[str, nn.Module], demands: Demands, *, windows: Windows, sets: Sets
) -> WorkingPoint:
    """Choose the cuts of one working point, in the order of the stages."""
    chained = replace(windows, min_chain=demands.min_chain)
    choosing = [path for paths in sets.values() for path in paths[::2]]
    radius, filter_cut = _graph_cuts(networks, choosing, windows=chained, demands=demands)
    scored = partial(score, networks, radius=radius, windows=chained, filter_cut=filter_cut)
    by_set = {of: [scored(read_event(path)) for path in paths[::2]] for of, paths in sets.items()}
    labelling, gnn_cut = choose_gnn_cut(list(by_set.values()))
    cuts = Cuts(
        graph="radius",
        radius=radius,
        windows=chained,
        k=0,
        filter_cut=filter_cut,
        gnn_cut=gnn_cut,
        labelling=labelling,
    )
    metrics = {
        of: measure([scored(read_event(path)) for path in paths[1::2]], labelling=labelling, cut=gnn_cut)
        for of, paths in sets.items()
    }
    return WorkingPoint(cuts=cuts, metrics=metrics)


def score(
    networks: Mapping[str, nn.Module],
    event: Event,
    *,
    radius: float,
    windows: Windows,
    filter_cut: float,
) -> Scored:
    """Run the chain on an event up to the edge scores (raises EventError where it has no truth)."""
    sample = make_sample(event)
    graph = graph_pairs(networks["embedding"], event.hits, radius=radius, windows=windows)
    edges = filtered_pairs(networks["filter"], event.hits, graph, cut=filter_cut)
    return Scored(
        event=event,
        n_pairs=graph.shape[1],
        graph=count_pairs(sample, graph),
        filter=count_pairs(sample, edges),
        edge_index=edges,
        edge_score=run_network(networks["gnn"], event.hits, edges),
    )


def choose_gnn_cut(sets: Sequence[Sequence[Scored]]) -> tuple[LabellingMethod, float]:
    """Return the labelling and the cut with the largest merit, summed over the sets.

    The merit is the mean efficiency of both selections, and a quarter of the perfect one, less fakes and duplicates.
    Fragments do not count: most are pieces of soft particles that nobody asks for.
    """

    def merit(choice: tuple[LabellingMethod, float]) -> float:
        total = 0.0
        for scored in sets:
            rates = measure(scored, labelling=choice[0], cut=choice[1])
            found = rates.get("efficiency", 0.0) + rates.get("comparison_efficiency", 0.0)
            lost = rates.get("fake_rate", 0.0) + rates.get("duplicate_rate", 0.0)
            total += found / 2 + rates.get("perfect_efficiency", 0.0) / 4 - lost
        return total

    return max(((name, cut) for name in LABELLINGS for cut in GNN_CUTS), key=merit)


def measure(scored: Sequence[Scored], *, labelling: LabellingMethod, cut: float) -> dict[str, float]:
    """Return physics and size of a labelling and a cut, by name; a rate of nothing is left out.

    ``efficiency`` and the rates are the design's, ``comparison_efficiency`` is that of the comparison selection;
    ``n_pairs`` and ``n_edges`` are means per event after graph and filter, with the share of the consecutive pairs
    (pT >= 1 GeV) that is left there.
    """
    counts: dict[str, list[Counts]] = {name: [] for name in SELECTIONS}
    for one in scored:
        labels = LABELLINGS[labelling](one.event.hits, one.edge_index, one.edge_score, cut=cut)
        pairs = pairs_from_labels(labels)
        for name, selection in SELECTIONS.items():
            counts[name].append(count(event=one.event, pairs=pairs, selection=selection))
    reports = {name: sum(found[1:], start=found[0]).report() for name, found in counts.items()}
    rates = {name: rate["value"] for name, rate in reports["targets"].rates.to_json().items()}
    rates["comparison_efficiency"] = reports["comparison"].rates.to_json()["efficiency"]["value"]
    values = {name: value for name, value in rates.items() if value is not None}
    for stage in ("graph", "filter"):
        of_stage = [getattr(one, stage) for one in scored]
        values[f"{stage}_edge_efficiency"] = sum(of_stage[1:], start=of_stage[0]).efficiency
    values["n_pairs"] = float(np.mean([one.n_pairs for one in scored]))
    values["n_edges"] = float(np.mean([one.edge_score.size for one in scored]))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _graph_cuts(
    networks: Mapping[str, nn.Module], files: Sequence[Path], *, windows: Windows, demands: Demands
) -> tuple[float, float]:
    samples = (make_sample(read_event(path)) for path in files)
    radius = choose_radius(networks["embedding"], samples, recall=demands.graph)
    graphs = (
        (sample, graph_pairs(networks["embedding"], sample.hits, radius=radius, windows=windows))
        for sample in (make_sample(read_event(path)) for path in files)
    )
    return radius, choose_filter_cut(networks["filter"], graphs, recall=demands.filter)
