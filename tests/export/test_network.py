from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.export.joined import joined_network
from tritrack.export.network import _EXAMPLE, IR_VERSION, OPSET, ExportError, export_network
from tritrack.export.precision import typed_network
from tritrack.stages.card import Networks, read_card
from tritrack.stages.contract import (
    EMBEDDING_STAGE,
    FILTER_STAGE,
    GNN_STAGE,
    HITS,
    STAGES,
    StageSpec,
    TensorSpec,
)
from tritrack.stages.networks import build_networks
from tritrack.stages.weights import load_weights

ENGINES = [spec for spec in STAGES if spec.engine]

# Of those that ONNX Runtime's docs/OperatorKernels.md (commit 001d12d) lists under CUDAExecutionProvider, for this opset
# and these types. There is no Asinh, Asin or Atan.
ON_CUDA = {
    *("Abs", "Add", "Cast", "Clip", "Concat", "Div", "Expand", "Gather", "Gemm", "GreaterOrEqual"),
    *("LayerNormalization", "Log", "MatMul", "Min", "Mul", "Relu", "ScatterElements", "Shape", "Sigmoid"),
    *("Sign", "Sqrt", "Sub", "Unsqueeze", "Where"),
}


@pytest.fixture(scope="module")
def models(small_engines):
    return {spec.name: onnx.load(small_engines / f"{spec.name}.onnx") for spec in ENGINES}


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_names_dtypes_and_axes_are_the_contracts(models, spec):
    graph = models[spec.name].graph
    fixed = {"n_columns": 3, "d": 4}
    for tensors, values in ((spec.inputs, graph.input), (spec.engine, graph.output)):
        assert [value.name for value in values] == [tensor.name for tensor in tensors]
        for tensor, value in zip(tensors, values, strict=True):
            kind = value.type.tensor_type
            assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == tensor.dtype
            axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
            assert axes == [fixed.get(dim, dim) for dim in tensor.dims]


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_what_the_model_says_of_itself(models, spec, small_weights):
    model, card = models[spec.name], read_card(small_weights)
    assert model.ir_version == IR_VERSION
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "stage": spec.name,
        "contract_version": str(card.contract_version),
        "card_hash": card.hash,
        "edge_sum": "sorted",
        "precision": "fp32",
    }
    # Nothing of the machine that exported it: no paths in node metadata.
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_no_size_of_the_example_is_left(models, spec):
    sizes = set(_EXAMPLE.values())
    graph = models[spec.name].graph
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    constants += [
        onnx.numpy_helper.to_array(attribute.t)
        for node in graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    ]
    integers = [array for array in constants if np.issubdtype(array.dtype, np.integer)]
    assert not sizes & {int(number) for array in integers for number in array.ravel()}
    assert not sizes & {size for array in constants for size in array.shape}


def test_operators(models):
    counts = {
        name: Counter(node.op_type for node in onnx_ir.from_proto(model).graph.all_nodes())
        for name, model in models.items()
    }
    for operators in counts.values():
        assert not {"GatherND", "ScatterND", "Transpose", "ReduceMean"} & set(operators)
    # Of EDGE_INDEX; per sum, of the running sum and back: three steps less the last one's, in two directions.
    assert [counts[name]["Cast"] for name in ("embedding", "filter", "gnn")] == [0, 1, 1 + 3 * 2]
    assert counts["gnn"]["TopK"] == 2
    # encode_hits, encode_pairs, decode; per step: message and update, but nobody reads the last update.
    assert counts["gnn"]["LayerNormalization"] == 3 + 2 * 2 - 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_scatter_files_have_cuda_kernels_alone(small_weights, spec, precision):
    card, networks = load_weights(small_weights)
    network = typed_network(joined_network(networks[spec.name]), precision)
    model = export_network(network, spec=spec, card=card, rendering="scatter", precision=precision)
    assert {node.op_type for node in model.graph.node} <= ON_CUDA


def test_asinh_without_its_operator(small_weights):
    class Asinh(torch.nn.Module):
        def forward(self, hits):
            return torch.asinh(hits)

    out = TensorSpec(name="OUT", dtype=np.dtype(np.float32), dims=("n_hits", 3), unit="1", meaning="")
    spec = StageSpec(name="asinh", inputs=(HITS,), engine=(out,), outputs=(out,))
    model = export_network(Asinh(), spec=spec, card=read_card(small_weights), rendering="scatter")
    sizes = np.concatenate([[0.0], np.geomspace(1e-30, 1e18, 1000), [3e38]]).astype(np.float32)
    x = np.stack([sizes, -sizes, sizes[::-1]], axis=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"HITS": x})
    wanted = np.arcsinh(np.clip(x.astype(np.float64), -1e18, 1e18))
    np.testing.assert_allclose(found, wanted, rtol=2e-7, atol=2e-7)


def test_edges_are_sorted_once_however_many_steps_there_are(small_weights):
    card = read_card(small_weights)
    network = build_networks(Networks(gnn_width=8, gnn_steps=5))["gnn"].eval()
    model = export_network(network, spec=GNN_STAGE, card=card)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["TopK"] == 2
    assert counts["ScatterElements"] == 2
    model = export_network(network, spec=GNN_STAGE, card=card, rendering="scatter")
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["ScatterElements"] == 4 * 2  # nobody reads the last step's
    # The rows of each direction, as wide as the values: of 0.8 million edges and 64 numbers, 410 MB. And the zeros.
    assert counts["Expand"] == 2 + 1


def test_the_exporter_is_quiet(small_weights, capfd):
    card = read_card(small_weights)
    export_network(build_networks(card.networks)["embedding"], spec=EMBEDDING_STAGE, card=card)
    assert capfd.readouterr() == ("", "")


def test_a_network_of_another_stage(small_weights):
    card = read_card(small_weights)
    embedding = build_networks(card.networks)["embedding"]

    class Wrong(torch.nn.Module):
        def forward(self, hits, edge_index):
            return embedding(hits)[edge_index[0].long()]

    with pytest.raises(ExportError, match=r"filter: exported with .* the contract wants"):
        export_network(Wrong(), spec=FILTER_STAGE, card=card)
