from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tritrack.ensemble_repo.config import config_text, model_configs
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.event import Event
from tritrack.export import gates
from tritrack.export.cases import drawn_cases, drawn_hits
from tritrack.export.gates import gate_network
from tritrack.export.network import export_network
from tritrack.export.onnx import export_engines
from tritrack.export.precision import exact_layers, typed_network
from tritrack.physics.selection import PhysicsError
from tritrack.stages.card import read_card
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.networks import run_network
from tritrack.stages.weights import load_weights

ENGINES = {spec.name: spec for spec in STAGES if spec.engine}
TYPE = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def models(small_weights):
    """By precision and stage, the exported model, with the types of all tensors in it."""
    card, networks = load_weights(small_weights)
    return {
        (precision, name): onnx.shape_inference.infer_shapes(
            export_network(
                typed_network(networks[name], precision), spec=spec, card=card, precision=precision
            ),
            check_type=True,
            strict_mode=True,
        )
        for precision in TYPE
        for name, spec in ENGINES.items()
    }


def graphs_of(graph):
    """A graph and the bodies of its loops."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *bodies]


def types_in(model):
    """Element types of every tensor of a model, by name."""
    types = {}
    for graph in graphs_of(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info)
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        types |= {value.name: value.type.tensor_type.elem_type for value in values}
    return types


@pytest.mark.parametrize(
    ("stage", "exact"),
    [
        ("embedding", {"net.0", "net.4"}),
        ("filter", {"first.inner", "first.outer", "first.edge", "rest.1.2"}),
        (
            "gnn",
            {"encode_hits.0", "encode_pairs.0", "decode.3"}
            | {f"steps.{step}.{layer}" for step in (0, 1) for layer in ("incoming", "outgoing")},
        ),
    ],
)
def test_layers_that_stay_exact(small_weights, stage, exact):
    _, networks = load_weights(small_weights)
    assert exact_layers(networks[stage]) == exact


def test_fp32_is_the_network_itself(small_weights):
    _, networks = load_weights(small_weights)
    assert all(typed_network(network, "fp32") is network for network in networks.values())


@pytest.mark.parametrize("stage", ENGINES)
@pytest.mark.parametrize("precision", TYPE)
def test_types_of_the_weights(models, small_weights, precision, stage):
    _, networks = load_weights(small_weights)
    exact = exact_layers(networks[stage])
    linear = {name for name, layer in networks[stage].named_modules() if isinstance(layer, torch.nn.Linear)}
    weights = {
        tensor.name: tensor.data_type
        for tensor in models[precision, stage].graph.initializer
        if len(tensor.dims) == 2 and min(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.INT64
    }
    assert set(weights.values()) == {FLOAT, TYPE[precision]}
    in_16_bits = sum(kind == TYPE[precision] for kind in weights.values())
    # Nobody reads the GNN's last update of the hits: it is not in the file.
    assert in_16_bits == len(linear - exact - {"steps.1.node", "steps.1.update.2"})


@pytest.mark.parametrize("stage", ENGINES)
@pytest.mark.parametrize("precision", TYPE)
def test_types_of_what_is_computed(models, precision, stage):
    model = models[precision, stage]
    types = types_in(model)
    wanted = [
        (tensor.name, onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype))
        for tensor in (*ENGINES[stage].inputs, *ENGINES[stage].engine)
    ]
    assert [(name, types[name]) for name, _ in wanted] == wanted
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    products = {types[node.output[0]] for node in nodes if node.op_type in ("Gemm", "MatMul")}
    assert products == {FLOAT, TYPE[precision]}
    # Features, normalisations and sums are float32: on every input of them.
    for node in nodes:
        if node.op_type in ("Asinh", "Sqrt", "LayerNormalization", "CumSum", "Sigmoid"):
            assert {types[name] for name in node.input[:1]} <= {
                FLOAT,
                onnx.TensorProto.INT64,
                onnx.TensorProto.DOUBLE,
            }


@pytest.mark.parametrize("precision", TYPE)
def test_scattered_sums_add_in_float32(small_weights, precision):
    card, networks = load_weights(small_weights)
    network = typed_network(networks["gnn"], precision)
    model = export_network(network, spec=ENGINES["gnn"], card=card, rendering="scatter", precision=precision)
    types = types_in(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
    sums = [node for node in model.graph.node if node.op_type == "ScatterElements"]
    assert len(sums) == 2  # two a step, but nobody reads the last of two updates
    assert {types[node.input[place]] for node in sums for place in (0, 2)} == {FLOAT}
    # Of asinh, whose square leaves float16 at 256.
    assert {types[node.input[0]] for node in model.graph.node if node.op_type in ("Abs", "Log")} == {FLOAT}


@pytest.mark.parametrize("stage", ENGINES)
@pytest.mark.parametrize("precision", TYPE)
def test_gate_tells_16_bits_from_a_fault(small_weights, precision, stage):
    _, networks = load_weights(small_weights)
    network, spec, cases = networks[stage], ENGINES[stage], drawn_cases()

    def engine(*inputs):
        return run_network(typed_network(network, precision), *inputs)

    results = gate_network(engine, spec=spec, network=network, cases=cases, precision=precision)
    assert all(result.passed for result in results)
    assert max(result.deviation for result in results) > gates.NETWORK_TOLERANCE["fp32"][stage]

    def faulty(*inputs):
        return np.roll(engine(*inputs), 1, axis=0)

    results = gate_network(faulty, spec=spec, network=network, cases=cases, precision=precision)
    assert not all(result.passed for result in results)


def drawn_event():
    hits = drawn_hits(n_hits=1500, seed=1)
    modules = np.zeros((1500, 3), np.int32)
    return Event(event_id=42, hits=hits, hit_id=np.arange(1500), modules=modules)


@pytest.mark.parametrize("precision", TYPE)
def test_a_folder_of_engines(small_weights, small_engines, tmp_path, precision):
    engines = tmp_path / "engines"
    results = export_engines(weights=small_weights, out=engines, threads=1, precision=precision)
    assert all(result.passed for result in results)
    assert (engines / "card.json").read_bytes() == (small_engines / "card.json").read_bytes()
    # The boundary is the contract's, so that a container's repository is the same but for the engines.
    repositories = {}
    for name, folder in (("fp32", small_engines), (precision, engines)):
        out = tmp_path / f"repository-{name}"
        render_repository(engines=folder, out=out, server="container", device="cpu", threads=1)
        repositories[name] = {path.parent.name: path.read_text() for path in out.glob("*/config.pbtxt")}
    assert repositories[precision] == repositories["fp32"]
    configs = model_configs(card=read_card(engines), server="container", device="cpu", threads=1)
    assert repositories[precision] == {name: config_text(config) for name, config in configs.items()}


def test_onnx_runtime_takes_the_fp16_files(models, tmp_path):
    hits = drawn_hits(n_hits=50, seed=2)
    onnx.save(models["fp16", "embedding"], tmp_path / "embedding.onnx")
    engine = OnnxEngine(tmp_path / "embedding.onnx", spec=ENGINES["embedding"], threads=1)
    assert engine(hits).dtype == np.float32


def test_physics_without_truth_is_refused(small_weights, tmp_path):
    with pytest.raises(PhysicsError, match="event 42: has no truth"):
        export_engines(
            weights=small_weights, out=tmp_path, threads=1, precision="fp16", events=[drawn_event()]
        )
    assert not (tmp_path / "card.json").exists()
