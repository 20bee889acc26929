from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.export.blocks import run_in_blocks
from tritrack.export.joined import joined_network
from tritrack.export.network import export_network
from tritrack.export.precision import typed_network
from tritrack.stages.contract import STAGES
from tritrack.stages.networks import PairLinear, run_network
from tritrack.stages.weights import load_weights

NETWORKS = {spec.name: spec for spec in STAGES if spec.engine}
WIDEST = 256


@pytest.fixture(scope="module")
def models(small_weights):
    """By stage, a whole export and what loops of up to three rows make of it."""
    card, networks = load_weights(small_weights)
    found = {}
    for name, spec in NETWORKS.items():
        whole = export_network(networks[name], spec=spec, card=card, rendering="scatter")
        blocks = whole
        for dim in ("n_hits", "n_edges"):
            blocks = run_in_blocks(blocks, dim=dim, numbers=3 * WIDEST)
        found[name] = whole, blocks
    return found


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


@pytest.mark.parametrize(
    ("n_hits", "n_edges"),
    [(0, 0), (1, 0), (5, 1), (6, 3), (7, 13), (40, 120), (1000, 64), (300, 1001)],
)
@pytest.mark.parametrize("stage", NETWORKS)
def test_blocks_compute_the_same(models, stage, n_hits, n_edges):
    rng = np.random.default_rng(n_hits)
    hits = rng.uniform(-1000, 1000, (n_hits, 3)).astype(np.float32)
    edges = np.sort(rng.integers(0, max(n_hits, 1), (2, n_edges)), axis=0).astype(np.int32)
    inputs = {"HITS": hits} if stage == "embedding" else {"HITS": hits, "EDGE_INDEX": edges}
    whole, blocks = models[stage]
    wanted, found = run(whole, inputs), run(blocks, inputs)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", NETWORKS)
def test_not_in_16_bits(small_weights, stage):
    """ONNX Runtime would cast all rows anew in every block there."""
    card, networks = load_weights(small_weights)
    typed = typed_network(networks[stage], "fp16")
    model = export_network(typed, spec=NETWORKS[stage], card=card, precision="fp16")
    assert any(node.op_type == "Gemm" for node in model.graph.node)
    rng = np.random.default_rng(0)
    hits = rng.uniform(-1000, 1000, (300, 3)).astype(np.float32)
    edges = np.sort(rng.integers(0, 300, (2, 2000)), axis=0).astype(np.int32)
    inputs = [hits, edges][: len(NETWORKS[stage].inputs)]
    names = [tensor.name for tensor in NETWORKS[stage].inputs]
    found = run(model, dict(zip(names, inputs, strict=True)))
    wanted = run_network(networks[stage], *inputs)
    np.testing.assert_allclose(found, wanted, atol=2e-2 * np.abs(wanted).max())


@pytest.mark.parametrize("stage", NETWORKS)
def test_products_over_rows_are_all_in_loops(models, stage):
    whole, blocks = models[stage]
    assert any(node.op_type == "Gemm" for node in whole.graph.node)
    operators = [node.op_type for node in blocks.graph.node]
    assert "Loop" in operators
    assert "Gemm" not in operators


def test_a_model_without_such_rows_stays_as_it_is(models):
    whole, _ = models["embedding"]
    assert run_in_blocks(whole, dim="n_edges") is whole


@pytest.mark.parametrize("stage", NETWORKS)
def test_only_layers_over_few_features_are_joined(small_weights, stage):
    _, networks = load_weights(small_weights)
    joined = joined_network(networks[stage], most_features=7)
    assert not any(
        isinstance(module, PairLinear) and module.inner.in_features <= 7 for module in joined.modules()
    )
    if stage != "embedding":
        rng = np.random.default_rng(3)
        hits = rng.uniform(-1000, 1000, (30, 3)).astype(np.float32)
        edges = rng.integers(0, 30, (2, 50)).astype(np.int32)
        np.testing.assert_allclose(
            run_network(joined, hits, edges), run_network(networks[stage], hits, edges), atol=1e-5
        )
