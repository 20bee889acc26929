from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.export.edge_sum import RENDERINGS
from tritrack.export.network import export_network
from tritrack.stages.contract import EDGE_INDEX, HITS, StageSpec, TensorSpec
from tritrack.stages.edge_sum import sum_edges

WIDTH = 64  # the networks': narrower rows are shared out among threads in another way

VALUES = TensorSpec(name="VALUES", dtype=np.dtype(np.float32), dims=("n_edges", WIDTH), unit="1", meaning="")
TOTAL = TensorSpec(name="TOTAL", dtype=np.dtype(np.float32), dims=("n_hits", WIDTH), unit="1", meaning="")
SPEC = StageSpec(name="sum", inputs=(HITS, EDGE_INDEX, VALUES), engine=(TOTAL,), outputs=(TOTAL,))


class Sum(torch.nn.Module):
    """Twice the sum at the inner hits and the sum at the outer hits, in two steps."""

    def forward(self, hits, edge_index, values):
        edge_index = edge_index.long()
        total = sum_edges(values, edge_index[0], hits)
        return 2.0 * sum_edges(values, edge_index[0], total) + sum_edges(values, edge_index[1], hits)


@pytest.fixture(scope="module")
def models(small_weights):
    from tritrack.stages.card import read_card

    card = read_card(small_weights)
    return {name: export_network(Sum(), spec=SPEC, card=card, rendering=name) for name in RENDERINGS}


def run(model, hits, edges, values, *, threads=2):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"HITS": hits, "EDGE_INDEX": edges, "VALUES": values})[0]


def event(n_hits, edges, seed=0):
    rng = np.random.default_rng(seed)
    edges = np.array(edges, dtype=np.int32).reshape(2, -1)
    values = rng.normal(1.0, 1.0, (edges.shape[1], WIDTH)).astype(np.float32)
    return np.zeros((n_hits, 3), np.float32), edges, values


RNG = np.random.default_rng(5)
EVENTS = {
    "no hits": (0, []),
    "one hit": (1, []),
    "no edges": (7, []),
    "one edge": (2, [[0], [1]]),
    "one pair many times": (9, [[4] * 3000, [2] * 3000]),
    "every hit to the last": (500, [range(500), [499] * 500]),
    "every hit to the first": (500, [range(500), [0] * 500]),
    "in no order": (300, RNG.integers(0, 300, (2, 5000))),
    "few hits with edges": (4000, RNG.integers(1000, 1040, (2, 2000))),
    "few edges": (4000, RNG.integers(0, 4000, (2, 300))),
    "many": (20_000, RNG.integers(0, 20_000, (2, 60_000))),
}


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_every_edge_counts(models, rendering, name):
    hits, edges, values = event(*EVENTS[name])
    wanted = np.zeros((len(hits), WIDTH))
    np.add.at(wanted, edges[0], 2.0 * values.astype(np.float64))
    np.add.at(wanted, edges[1], values.astype(np.float64))
    found = run(models[rendering], hits, edges, values)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVENTS)
def test_sorted_sum_is_the_same_with_any_threads(models, name):
    hits, edges, values = event(*EVENTS[name])
    once = run(models["sorted"], hits, edges, values, threads=1)
    for threads in (1, 2, 3, 4):
        assert np.array_equal(run(models["sorted"], hits, edges, values, threads=threads), once)


def test_sorted_sum_takes_edges_in_any_order(models):
    hits, edges, values = event(*EVENTS["many"])
    once = run(models["sorted"], hits, edges, values)
    order = np.random.default_rng(0).permutation(edges.shape[1])
    shuffled = run(models["sorted"], hits, edges[:, order], values[order])
    np.testing.assert_allclose(shuffled, once, rtol=1e-5, atol=1e-5)


def test_renderings(models):
    operators = {
        name: [
            (node.op_type, [a.s for a in node.attribute if a.name == "reduction"])
            for node in model.graph.node
        ]
        for name, model in models.items()
    }
    # Sorted once per direction, though the inner direction is summed twice.
    assert sum(op == "TopK" for op, _ in operators["sorted"]) == 2
    assert ("ScatterElements", [b"add"]) in operators["scatter"]
    for absent in ("TopK", "CumSum", "ScatterND"):
        assert absent not in {op for op, _ in operators["scatter"]}
