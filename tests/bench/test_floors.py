from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper

from tritrack.bench.costs.counts import Count, count_stages, tensors_of
from tritrack.bench.costs.rates import Probes, last_cache
from tritrack.bench.costs.traffic import Linear, count_network
from tritrack.bench.floors import Machine, Result, against_floor, device_stages
from tritrack.bench.result import ResultError, read_result
from tritrack.events.parquet import event_file, write_event
from tritrack.export.network import export_network
from tritrack.stages.card import Networks
from tritrack.stages.contract import EMBEDDING_STAGE, GNN_STAGE, STAGES
from tritrack.stages.graph import count_compared, radius_graph
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.weights import load_weights


def make(nodes, weights, inputs, output):
    graph = helper.make_graph(
        nodes, "tiny", inputs, [output], [numpy_helper.from_array(w, n) for n, w in weights]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


HITS = helper.make_tensor_value_info("HITS", TensorProto.FLOAT, ["n_hits", 3])
EDGES = helper.make_tensor_value_info("EDGE_INDEX", TensorProto.INT32, [2, "n_edges"])


def test_a_tiny_network_is_counted_as_by_hand():
    # [n, 3] x [3, 5] + [5], then ReLU.
    model = make(
        [helper.make_node("Gemm", ["HITS", "w", "b"], ["h"]), helper.make_node("Relu", ["h"], ["EMBEDDING"])],
        [("w", np.ones((3, 5), np.float32)), ("b", np.ones(5, np.float32))],
        [HITS],
        helper.make_tensor_value_info("EMBEDDING", TensorProto.FLOAT, ["n_hits", 5]),
    )
    cost = count_network(model, spec=EMBEDDING_STAGE)
    assert cost.weight_bytes == 4 * (15 + 5)
    assert cost.operations == Linear(per_hit=2 * 3 * 5)
    assert cost.operator_bytes == {
        "Gemm": Linear(constant=4 * 20, per_hit=4 * (3 + 5)),
        "Relu": Linear(per_hit=4 * (5 + 5)),
    }
    assert cost.unfused_bytes.at(n_hits=100, n_edges=0) == 80 + 100 * 72


def test_a_network_of_edges_is_counted_as_by_hand():
    # The hits of each edge's one end, [n_edges, 3] x [3, 1]; the end is a row of EDGE_INDEX, a view is nothing.
    model = make(
        [
            helper.make_node("Gather", ["EDGE_INDEX", "zero"], ["inner"], axis=0),
            helper.make_node("Gather", ["HITS", "inner"], ["x"], axis=0),
            helper.make_node("MatMul", ["x", "w"], ["score"]),
            helper.make_node("Reshape", ["score", "flat"], ["EDGE_SCORE"]),
        ],
        [
            ("zero", np.array(0, np.int64)),
            ("w", np.ones((3, 1), np.float32)),
            ("flat", np.array([-1], np.int64)),
        ],
        [HITS, EDGES],
        helper.make_tensor_value_info("EDGE_SCORE", TensorProto.FLOAT, ["n_edges"]),
    )
    cost = count_network(model, spec=GNN_STAGE)
    assert cost.operations == Linear(per_edge=2 * 3)
    assert cost.operator_bytes == {
        # Of an edge: a row's number read and written, 4 + 4; then three coordinates twice, and the number.
        "Gather": Linear(constant=8, per_edge=8 + 12 + 12 + 4),
        "MatMul": Linear(constant=12, per_edge=12 + 4),
    }


def test_what_does_not_grow_linearly_is_refused():
    model = make(
        [
            helper.make_node("Transpose", ["HITS"], ["t"]),
            helper.make_node("MatMul", ["HITS", "t"], ["EMBEDDING"]),
        ],
        [],
        [HITS, EDGES],
        helper.make_tensor_value_info("EMBEDDING", TensorProto.FLOAT, ["n_hits", "n_hits"]),
    )
    with pytest.raises(ResultError, match=r"gnn: .* not linear"):
        count_network(model, spec=GNN_STAGE)


def test_graphs_within_are_refused():
    body = helper.make_graph([], "body", [], [])
    loop = helper.make_node("Loop", ["", ""], ["EMBEDDING"], body=body)
    output = helper.make_tensor_value_info("EMBEDDING", TensorProto.FLOAT, ["n_hits", 5])
    with pytest.raises(ResultError, match="embedding: Loop has a graph within"):
        count_network(make([loop], [], [HITS], output), spec=EMBEDDING_STAGE)


@pytest.fixture(scope="module")
def costs(small_weights):
    card, networks = load_weights(small_weights)
    return {
        spec.name: count_network(
            export_network(networks[spec.name], spec=spec, card=card, rendering="scatter"), spec=spec
        )
        for spec in STAGES
        if spec.engine
    }


def test_the_products_of_the_real_networks_are_those_of_their_layers(small_weights, costs):
    card, networks = load_weights(small_weights)
    n_steps, w = card.networks.gnn_steps, card.networks.gnn_width
    for name, network in networks.items():
        layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        # Each runs once for each hit or for each edge; of the last step nobody reads what becomes of the hits.
        unread = 4 * 2 * w * w if name == "gnn" else 0
        products = costs[name].operations
        assert products.per_hit + products.per_edge == sum(2 * m.weight.numel() for m in layers) - unread
        assert products.constant == 0
    per_edge = 2 * (11 * w + w * w + n_steps * 2 * w * w + w * w + w)
    assert costs["gnn"].operations.per_edge == per_edge


def test_compared_pairs_are_at_least_those_found(small_engines, small_event, costs):
    pipeline = Pipeline.load(small_engines, threads=1)
    tensors = tensors_of(pipeline, small_event.hits)
    embedding = tensors[1]["EMBEDDING"]
    n = small_event.n_hits
    cuts = pipeline.card.point().cuts
    n_pairs = radius_graph(
        small_event.hits, embedding, radius=cuts.radius, windows=cuts.windows, max_pairs=10**9
    ).shape[1]
    assert n_pairs <= count_compared(embedding, radius=cuts.radius) <= n * (n - 1) // 2
    assert count_compared(embedding, radius=1e6) == n * (n - 1) // 2
    assert count_compared(embedding[:1], radius=1.0) == 0
    counts = count_stages(pipeline, tensors, costs)
    pairs, edges = tensors[2]["EDGE_INDEX"].nbytes, tensors[3]["EDGE_INDEX"].nbytes
    assert counts["graph"].bytes == n * (12 + 4 * 4) + pairs
    assert counts["labelling"] == Count(bytes=n * 12 + edges + edges // 2 + n * 8)
    assert counts["filter"].bytes == n * 12 + pairs + edges + costs["filter"].weight_bytes
    assert counts["graph"].operations == 12 * count_compared(embedding, radius=cuts.radius)


def test_the_floor_is_the_longer_of_two_times():
    machine = Machine(
        device="cpu", clock="wall", bandwidth=(100.0, 200.0), rates={"a": (10.0, 10.0), "b": (50.0, 5.0)}
    )
    found = against_floor(Count(bytes=200, operations=60.0, unfused_bytes=400.0), (4.0, 12.0), machine)
    assert found["floor_seconds"] == (2.0, 6.0)
    assert found["unfused_seconds"] == (4.0, 2.0)
    assert (found["bound"], found["fraction"]) == ("operations", 0.5)
    assert against_floor(Count(bytes=200), (4.0, 4.0), machine)["bound"] == "bytes"


def test_the_device_has_all_stages(small_weights, small_engines, small_event):
    _, networks = load_weights(small_weights)
    pipeline = Pipeline.load(small_engines, threads=1).at("fast")
    tensors = tensors_of(pipeline, small_event.hits)
    stages = device_stages(pipeline, networks, tensors, device="cpu")
    assert list(stages) == ["embedding", "graph", "filter", "gnn", "labelling"]
    np.testing.assert_allclose(stages["gnn"]().numpy(), tensors[-1]["EDGE_SCORE"], atol=1e-4)
    assert stages["graph"]().shape == tensors[2]["EDGE_INDEX"].shape
    assert stages["labelling"]().shape == (small_event.n_hits,)


PROBES = """
import sys
import torch
from pathlib import Path
from tritrack.bench.costs.rates import Probes
from tritrack.bench.threads import set_threads
from tritrack.stages.pipeline import Pipeline

set_threads(1)
pipeline = Pipeline.load(Path(sys.argv[1]), threads=1)
Probes(device="cpu", networks=pipeline.card.networks, threads=1, cache_bytes=1 << 10).bandwidth()
print(torch.get_num_threads())
"""


def test_the_machine_is_measured_with_the_threads_of_the_stages(small_engines):
    # In a process of its own: numba sets the threads that torch shares when it starts, once.
    done = subprocess.run([sys.executable, "-c", PROBES, small_engines], check=True, capture_output=True)
    assert done.stdout.split()[-1] == b"1"
    with pytest.raises(RuntimeError, match="threads, 99 wanted"):
        Probes(device="cpu", networks=Networks(), threads=99)


def test_the_machine_is_measured():
    probes = Probes(
        device="cpu",
        networks=Networks(embedding_width=8, gnn_width=4),
        threads=torch.get_num_threads(),
        cache_bytes=1 << 16,
    )
    wall, cpu = probes.bandwidth()
    assert min(wall, cpu) > 0
    rates = probes.rates()
    assert len(rates) == 10  # of the widths 4, 8, 64 and 128, and the square, in two libraries
    assert np.min(list(rates.values())) > 0
    assert last_cache("cpu") >= 1 << 18


@pytest.mark.slow
def test_every_stage_is_set_against_its_floor(small_weights, small_engines, small_event, tmp_path):
    write_event(small_event, tmp_path / event_file(small_event.event_id))
    out = tmp_path / "bench" / "floors.json"
    command = [sys.executable, "-m", "tritrack.bench.floors", tmp_path, "--weights", small_weights]
    command += ["--engines", small_engines, "--out", out, "--rounds", "2", "--threads", "1"]
    subprocess.run(command, check=True)
    result = read_result(out, Result)
    on_cpu = [row for row in result.rows if row.device == "cpu"]
    assert [row.stage for row in on_cpu] == [spec.name for spec in STAGES]
    for row in on_cpu:
        assert len(row.seconds) == len(row.floor_seconds) == 2
        assert 0 < row.fraction < 1
        assert 0 < row.cpu_fraction < 1
        assert bool(row.unfused_seconds) is (row.stage not in ("graph", "labelling"))
        assert result.ratios()[f"fraction of the floor, {row.stage} on cpu"] == row.fraction
    gaps = [gap for gap in result.gaps if gap.device == "cpu"]
    assert len(gaps) == 3
    assert gaps[0].seconds >= gaps[1].seconds >= gaps[2].seconds > 0
    assert (result.gpu is not None) is torch.cuda.is_available()
