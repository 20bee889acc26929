"""The choice of the working points, with networks whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.events.event import EventError
from tritrack.events.parquet import event_file, write_event
from tritrack.stages.card import Windows
from tritrack.stages.labelling import LABELLINGS
from tritrack.training.sample import make_sample, pair_targets, path_pairs
from tritrack.training.validation import count_pairs
from tritrack.training.working_point import (
    DEMANDS,
    GNN_CUTS,
    Scored,
    choose_gnn_cut,
    choose_working_points,
    measure,
    validation_sets,
)

WINDOWS = Windows(max_z0=1e9, max_curvature=1e9, overlap=15.0)


def scored(event, edges, scores):
    sample = make_sample(event)
    counts = count_pairs(sample, edges)
    return Scored(
        event=event,
        n_pairs=edges.shape[1] + 7,
        graph=counts,
        filter=counts,
        edge_index=edges,
        edge_score=scores.astype(np.float32),
    )


def test_gnn_cut(helices, graph_of):
    found = []
    for i in (1, 2):
        event = helices(i)
        sample = make_sample(event)
        edges = graph_of(sample)
        found.append(scored(event, edges, np.where(pair_targets(sample, edges)[0], 0.52, 0.48)))
    labelling, cut = choose_gnn_cut([found[:1], found[1:]])
    assert cut == 0.5
    assert labelling in LABELLINGS
    metrics = measure(found, labelling=labelling, cut=cut)
    assert metrics["efficiency"] == metrics["comparison_efficiency"] == 1
    assert metrics["fake_rate"] == metrics["unmatched_rate"] == 0
    assert metrics["graph_edge_efficiency"] == metrics["filter_edge_efficiency"] == 1
    n_edges = [one.edge_score.size for one in found]
    assert metrics["n_edges"] == np.mean(n_edges)
    assert metrics["n_pairs"] == np.mean(n_edges) + 7


def test_no_tracks_at_any_cut(helices, graph_of):
    event = helices(1)
    edges = graph_of(make_sample(event))
    nothing = [scored(event, edges, np.zeros(edges.shape[1]))]
    labelling, cut = choose_gnn_cut([nothing])
    assert cut in GNN_CUTS
    metrics = measure(nothing, labelling=labelling, cut=cut)
    assert metrics["efficiency"] == 0
    assert "fake_rate" not in metrics  # of no tracks there is no share


@pytest.fixture
def sets(helices, tmp_path):
    found = {}
    for name, first in (("sparse", 0), ("dense", 10)):
        (tmp_path / name).mkdir()
        paths = []
        for i in range(first, first + 3):
            paths.append(tmp_path / name / event_file(i))
            write_event(helices(i, n_particles=10 + first), paths[-1])
        found[name] = paths
    return found


def test_working_points(sets, known):
    notes = []
    networks = {
        "embedding": known(lambda hits: hits / 1000),
        "filter": known(lambda _, pairs: (pairs[0] * 31 + pairs[1] * 17) % 1009 / 1009),
        "gnn": known(lambda _, pairs: np.full(pairs.shape[1], 0.6)),
    }
    points = choose_working_points(networks, windows=WINDOWS, sets=sets, on_note=notes.append)
    assert list(points) == list(DEMANDS)
    assert len(notes) == 3
    cuts = [point.cuts for point in points.values()]
    assert cuts[0].radius <= cuts[1].radius < cuts[2].radius
    assert cuts[0].filter_cut > cuts[1].filter_cut > cuts[2].filter_cut
    for cut, demands in zip(cuts, DEMANDS.values(), strict=True):
        assert cut.windows == replace(WINDOWS, min_chain=demands.min_chain)
        assert cut.labelling in LABELLINGS
    for point in points.values():
        assert set(point.metrics) == {"sparse", "dense"}
        for metrics in point.metrics.values():
            assert 0 <= metrics["efficiency"] <= 1
            assert 0 < metrics["n_edges"] < metrics["n_pairs"]
    sizes = [point.metrics["dense"]["n_edges"] for point in points.values()]
    assert sizes == sorted(sizes)
    # The cut on the radius is what was asked for, over the events that choose: the first and the third of each set.
    choosing = [path for paths in sets.values() for path in paths[::2]]
    from tritrack.training.wedges import read_event

    lengths = []
    for path in choosing:
        sample = make_sample(read_event(path))
        a, b = path_pairs(sample, gap=1)
        lengths.append(np.linalg.norm(sample.hits[a] - sample.hits[b], axis=1) / 1000)
    for cut, demands in zip(cuts, DEMANDS.values(), strict=True):
        assert np.mean(np.concatenate(lengths) <= cut.radius) == pytest.approx(demands.graph, abs=0.005)


def test_nothing_to_choose_on(helices, known, tmp_path):
    paths = [tmp_path / event_file(i) for i in range(2)]
    for i, path in enumerate(paths):
        write_event(helices(i, n_particles=0, n_noise=5), path)
    networks = {"embedding": known(lambda hits: hits)}
    with pytest.raises(EventError, match="no pair of hits"):
        choose_working_points(networks, windows=WINDOWS, sets={"noise": paths}, on_note=print)


def test_validation_sets(sets, tmp_path, helices):
    folders = [paths[0].parent for paths in sets.values()]
    assert validation_sets(folders) == sets
    (tmp_path / "more" / "dense").mkdir(parents=True)
    for i in range(2):
        write_event(helices(i), tmp_path / "more" / "dense" / event_file(i))
    with pytest.raises(EventError, match="a second folder of the name dense"):
        validation_sets([*folders, tmp_path / "more" / "dense"])
