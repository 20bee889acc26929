"""A small event is one that every stage has work with."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from tritrack.stages.card import Windows
from tritrack.stages.contract import NATIVE_STEPS, check_tensor
from tritrack.stages.graph import radius_graph
from tritrack.stages.labelling import LABELLINGS
from tritrack.stages.warm_up import small_event

EVENT = small_event(n_columns=4, embedding_dim=8)


def test_it_has_what_every_stage_takes():
    sizes = {"n_columns": 4, "d": 8}
    for spec in {tensor for step in NATIVE_STEPS for tensor in (*step.inputs, *step.outputs)}:
        sizes = check_tensor(EVENT[spec.name], spec, sizes)
    assert (sizes["n_hits"], sizes["n_edges"]) == (100, 90)


def test_its_graph_has_its_edges():
    windows = Windows(max_z0=200.0, max_curvature=1.8e-3, max_d0=1.0, min_chain=3, overlap=15.0)
    pairs = radius_graph(EVENT["HITS"], EVENT["EMBEDDING"], radius=0.5, windows=windows, max_pairs=1000)
    assert {*map(tuple, EVENT["EDGE_INDEX"].T)} <= {*map(tuple, pairs.T)}


@pytest.mark.parametrize(("method", "n_tracks"), [("components", 20), ("walkthrough", 20), ("helix", 10)])
def test_its_tracks_are_found(method, n_tracks):
    """By helix whole, for which pieces are joined."""
    labels = LABELLINGS[method](EVENT["HITS"], EVENT["EDGE_INDEX"], EVENT["EDGE_SCORE"], cut=0.3)
    assert np.unique(labels).size == n_tracks
    if method == "helix":
        np.testing.assert_array_equal(labels, EVENT["TRACK_LABEL"])
