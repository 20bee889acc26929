"""Folders that tests of several packages use: small random weights, and the engines made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU or TensorRT where there is none, and say what is missing."""
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device that torch can use")
    if item.get_closest_marker("tensorrt") is not None:
        pytest.importorskip("onnxscript")
        from tritrack.export.tensorrt import NoTensorRTError, find_tensorrt

        try:
            find_tensorrt()
        except NoTensorRTError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of tiny networks whose graph has some edges (limits: 5000 hits, 20,000 edges)."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("faiss")
    pytest.importorskip("numba")
    from tritrack.export.cases import drawn_hits
    from tritrack.stages.card import Cuts, Limits, ModelCard, Networks, Windows, WorkingPoint
    from tritrack.stages.networks import build_networks, run_network
    from tritrack.stages.weights import save_weights
    from tritrack.training.graphs import filtered_pairs, graph_pairs, pair_scores

    sizes = Networks(
        embedding_width=16,
        embedding_layers=2,
        embedding_dim=4,
        filter_widths=(16, 8),
        gnn_width=8,
        gnn_steps=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = build_networks(sizes)
    # The cuts keep half of the pairs, whatever the scores of untrained networks are.
    radius, hits = 0.01, drawn_hits(n_hits=2000, seed=1)
    windows = Windows(max_z0=1e9, max_curvature=1e9, overlap=15.0)
    pairs = graph_pairs(networks["embedding"], hits, radius=radius, windows=windows)
    filter_cut = float(np.median(pair_scores(networks["filter"], hits, pairs)))
    pairs = filtered_pairs(networks["filter"], hits, pairs, cut=filter_cut)
    gnn_cut = float(np.median(run_network(networks["gnn"], hits, pairs)))
    balanced = Cuts(
        graph="radius",
        radius=radius,
        windows=windows,
        k=10,
        filter_cut=filter_cut,
        gnn_cut=gnn_cut,
        labelling="walkthrough",
    )
    # fast has the graph of balanced, best its filter's cut.
    points = {
        "fast": replace(balanced, filter_cut=filter_cut + 0.01, labelling="components"),
        "balanced": balanced,
        "best": replace(balanced, radius=1.2 * radius, gnn_cut=gnn_cut - 0.01),
    }
    metrics = {"drawn": {"efficiency": 0.5}}
    card = ModelCard(
        name="small",
        networks=sizes,
        working_points={name: WorkingPoint(cuts=cuts, metrics=metrics) for name, cuts in points.items()},
        default="balanced",
        limits=Limits(max_hits=5000, max_pairs=20_000, max_edges=15_000),
        sha256={},
    )
    folder = tmp_path_factory.mktemp("weights")
    save_weights(networks, card=card, folder=folder)
    return folder


@pytest.fixture(scope="session")
def small_engines(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of ``small_weights``, for 2 threads."""
    pytest.importorskip("onnxscript")
    from tritrack.export.onnx import export_engines

    folder = tmp_path_factory.mktemp("engines")
    export_engines(weights=small_weights, out=folder, threads=2)
    return folder
