"""How the sum over edges is rendered in ONNX: one function for each kind of engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto
from onnx.defs import OpSchema
from onnx.helper import make_node
from onnxscript import opset18
from onnxscript.values import Opset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

op: Any = opset18  # its type hints do not allow one operator's output as another's input

Rendering = Literal["sorted", "scatter"]

SUM_EDGES = "SumEdges"
"""Operator that stands for a sum until `expand_sums` puts nodes in its place."""
DOMAIN = "tritrack"

WHOLE = "/whole"
"""Ends the name of a tensor with rows added at its end; it has at least one."""

onnx.defs.register_schema(
    OpSchema(
        SUM_EDGES,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter("values", "tensor(float)"),
            OpSchema.FormalParameter("index", "tensor(int64)"),
            OpSchema.FormalParameter("like", "T"),
        ],
        outputs=[OpSchema.FormalParameter("total", "tensor(float)")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
    )
)

_BLOCK = 16  # edges
_HITS = 512  # of a turn of the loop: their edges' messages fit into a core's cache


def sum_sorted(values: Any, index: Any, like: Any) -> Any:
    """Leave a node for :func:`expand_sums`."""
    return Opset(DOMAIN, 1).SumEdges(values, index, like)


def expand_sums(model: onnx.ModelProto) -> None:
    """Put a sum over sorted edges in the place of each :data:`SUM_EDGES`: for ONNX Runtime.

    Edges are sorted by the hit they add to (a stable sort: equal ones keep their order), once for each direction. A
    loop takes some hits at a time, gathers the rows of their edges and forms the running sum over them; each hit's sum
    is the difference of two of its values. Within blocks of 16 edges the running sum is float32, a product with a
    triangle of ones that gives the block's sum, too, over blocks float64: for values of one size as exact as adding
    the edges of a hit in float32 (the edges of a block share the error of its largest). The result does not depend on
    the number of threads, as a ReduceSum's would. (ScatterND with a reduction loses duplicates under more than one
    thread of ONNX Runtime 1.32, its ScatterElements takes several times as long, and so does a CumSum over all edges.)
    """
    nodes = list(model.graph.node)
    if all(node.op_type != SUM_EDGES for node in nodes):
        return
    del model.graph.node[:]
    described = (*model.graph.value_info, *model.graph.output)
    dims = {value.name: value.type.tensor_type.shape.dim for value in described}
    orders: set[str] = set()
    for node in nodes:
        if node.op_type != SUM_EDGES:
            model.graph.node.append(node)
            continue
        values, index, like = node.input
        order = f"{index}/sum/{like}"
        if order not in orders:
            orders.add(order)
            model.graph.node.extend(_order(order, index, like))
        if not values.endswith(WHOLE):
            more = f"{node.output[0]}/terms{WHOLE}"
            model.graph.node.extend(_with_one_row_more(values, more))
            values = more
        (total,) = node.output
        model.graph.node.extend(_sum(values, order, total))
        rows = np.array([-1, dims[total][1].dim_value])
        model.graph.initializer.append(onnx.numpy_helper.from_array(rows, f"{total}/rows"))
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, f"sum/{name}") for name, value in _CONSTANTS.items()
    )
    domain = next(opset for opset in model.opset_import if opset.domain == DOMAIN)
    model.opset_import.remove(domain)


_CONSTANTS: dict[str, NDArray[Any]] = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "block": np.array([_BLOCK]),
    "hits": np.array([_HITS]),
    "less_one": np.array([_HITS - 1]),
    "beyond": np.array([_HITS + 1]),
    "last": np.array([-1]),
    "first": np.array(0),
    "always": np.array(True),
    "rows": np.array([-1, _BLOCK]),
    "fill": np.zeros(_BLOCK, dtype=np.int64),
    "before": np.tril(np.ones((_BLOCK + 1, _BLOCK), dtype=np.float32), -1),
    "last_row": np.array(_BLOCK),
}
"""Tensors that all sums of a model share."""


def _with_one_row_more(values: str, more: str) -> list[onnx.NodeProto]:
    return [
        make_node("Constant", [], [f"{more}/pads"], value_ints=[0, 0, 1, 0]),
        make_node("Pad", [values, f"{more}/pads"], [more]),
    ]


def _order(order: str, index: str, like: str) -> list[onnx.NodeProto]:
    """Nodes that sort the edges of one direction, and say where the edges of each hit begin."""

    def name(what: str) -> str:
        return f"{order}/{what}"

    return [
        make_node("Shape", [index], [name("n_edges")]),
        make_node(
            "TopK", [index, name("n_edges")], [name("sorted"), name("by_hit")], axis=0, largest=0, sorted=1
        ),
        # A turn's last block may reach beyond the last edge.
        make_node("Concat", [name("by_hit"), "sum/fill"], [name("order")], axis=0),
        make_node("Shape", [like], [name("n_hits")], start=0, end=1),
        make_node("Add", [name("n_hits"), "sum/less_one"], [name("rounded")]),
        make_node("Div", [name("rounded"), "sum/hits"], [name("some")]),
        make_node("Max", [name("some"), "sum/one"], [name("turns")]),
        make_node("Mul", [name("turns"), "sum/hits"], [name("whole")]),
        make_node("Expand", ["sum/zero", name("whole")], [name("none")]),
        make_node("Expand", ["sum/one", name("n_edges")], [name("ones")]),
        make_node(
            "ScatterElements", [name("none"), index, name("ones")], [name("degree")], axis=0, reduction="add"
        ),
        make_node("CumSum", [name("degree"), "sum/first"], [name("ends")]),
        make_node("Concat", ["sum/zero", name("ends")], [name("begin")], axis=0),
    ]


def _sum(values: str, order: str, total: str) -> list[onnx.NodeProto]:
    """Nodes that sum over one direction."""

    def name(what: str) -> str:
        return f"{total}/{what}"

    def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return make_node(op_type, inputs, [name(output)], **attributes)

    body = [
        node("Identity", [name("go")], "going"),
        node("Mul", [name("turn"), "sum/hits"], "start"),
        node("Add", [name("start"), "sum/hits"], "last"),
        node("Add", [name("last"), "sum/one"], "stop"),
        node("Slice", [f"{order}/begin", name("start"), name("stop")], "begin"),
        node("Slice", [name("begin"), "sum/zero", "sum/one"], "first_edge"),
        node("Sub", [name("begin"), name("first_edge")], "edge"),  # counted from the turn's first
        node("Slice", [f"{order}/begin", name("last"), name("stop")], "last_edge"),
        node("Sub", [name("last_edge"), name("first_edge")], "n_edges"),
        node("Div", [name("n_edges"), "sum/block"], "full_blocks"),
        node("Add", [name("full_blocks"), "sum/one"], "blocks"),
        node("Mul", [name("blocks"), "sum/block"], "n_rows"),
        node("Add", [name("first_edge"), name("n_rows")], "end"),
        node("Slice", [f"{order}/order", name("first_edge"), name("end")], "row"),
        node("Reshape", [name("row"), "sum/rows"], "row_of_block"),
        node("Gather", [values, name("row_of_block")], "terms", axis=0),
        node("MatMul", ["sum/before", name("terms")], "in_block"),
        node("Flatten", [name("in_block")], "running", axis=2),
        node("Gather", [name("in_block"), "sum/last_row"], "of_block", axis=1),
        node("Cast", [name("of_block")], "of_block64", to=TensorProto.DOUBLE),
        node("CumSum", [name("of_block64"), "sum/first"], "before_block", exclusive=1),
        node("Div", [name("edge"), "sum/block"], "block"),
        node("Add", [name("edge"), name("block")], "row_of_edge"),  # a block's sum comes after its rows
        node("Gather", [name("running"), name("row_of_edge")], "within", axis=0),
        node("Cast", [name("within")], "within64", to=TensorProto.DOUBLE),
        node("Gather", [name("before_block"), name("block")], "until_block", axis=0),
        node("Add", [name("within64"), name("until_block")], "until"),
        node("Slice", [name("until"), "sum/one", "sum/beyond"], "until_end"),
        node("Slice", [name("until"), "sum/zero", "sum/last"], "until_begin"),
        node("Sub", [name("until_end"), name("until_begin")], "total64"),
        node("Cast", [name("total64")], "of_hits", to=TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(
        body,
        name("turns"),
        [
            onnx.helper.make_tensor_value_info(name("turn"), TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info(name("go"), TensorProto.BOOL, []),
        ],
        [
            onnx.helper.make_tensor_value_info(name("going"), TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info(name("of_hits"), TensorProto.FLOAT, None),
        ],
    )
    return [
        node("Loop", [f"{order}/turns", "sum/always"], "stacked", body=graph),
        node("Reshape", [name("stacked"), name("rows")], "of_all"),
        make_node("Slice", [name("of_all"), "sum/zero", f"{order}/n_hits", "sum/zero"], [total]),
    ]


def sum_scattered(values: Any, index: Any, like: Any) -> Any:
    """Sum by ScatterElements with a reduction: for TensorRT from 10 on, which has no other sum by index.

    (Before 10 TensorRT took the node and ignored its reduction.) Its threads add in no fixed order, so the last
    digits of a sum differ from run to run.
    """
    # The width as a number: so all sums of one direction share their rows, [n_edges, width] numbers of 64 bits.
    width = int(values.shape[1])
    n_hits = op.Shape(like, start=0, end=1)
    zeros = op.Expand(
        op.Constant(value_float=0.0), op.Concat(n_hits, op.Constant(value_ints=[width]), axis=0)
    )
    rows = op.Expand(op.Unsqueeze(index, op.Constant(value_ints=[1])), op.Constant(value_ints=[1, width]))
    return op.ScatterElements(zeros, rows, values, axis=0, reduction="add")


RENDERINGS: dict[Rendering, Callable[..., Any]] = {"sorted": sum_sorted, "scatter": sum_scattered}
"""Renderings of :func:`tritrack.stages.edge_sum.sum_edges` by name."""
