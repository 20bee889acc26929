"""Let a network run in blocks of rows, so that what lies between two of its layers stays in the processor's cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir
from onnx import NodeProto, TensorProto
from onnx.helper import make_empty_tensor_value_info, make_graph, make_node, make_tensor_value_info
from onnx_ir.passes.common import TopologicalSortPass

from tritrack.export.edge_sum import SUM_EDGES, WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Shapes = Mapping[str, tuple[int | str, ...]]

NUMBERS = 1 << 18
"""Numbers of a tensor in a block, a megabyte in float32: a few of them fit into a core's cache."""

_ELEMENTWISE = frozenset(
    {
        "Add", "Asinh", "Cast", "Clip", "Div", "GreaterOrEqual", "LayerNormalization", "Mul", "Neg", "Relu",
        "Sigmoid", "Sqrt", "Sub", "Where",
    }
)  # fmt: skip


def run_in_blocks(model: onnx.ModelProto, *, dim: str, numbers: int = NUMBERS) -> onnx.ModelProto:
    """Rewrite a model: layers that treat all rows of a dimension alike run in a loop over blocks of rows.

    A tensor of a million edges is larger than any cache, and each layer would read and write it whole, into memory
    that the system hands out page by page. In a block every layer between two sums over edges finds its input where the
    one before has put it. Blocks have equal sizes: rows of zeros are added for that at the end, and left out again.

    Parameters
    ----------
    model
        The model; its inputs and outputs stay as they are.
    dim
        Symbol of the dimension, the first of each tensor that is cut into blocks.
    numbers
        Most numbers of a tensor in a block.

    Returns
    -------
    ModelProto
        Which computes the same numbers.
    """
    shapes = _shapes(model)
    regions = _regions(model.graph.node, shapes, dim)
    inside = {id(node) for region in regions for node in region}
    outside = [_copy(node) for node in model.graph.node if id(node) not in inside]
    results = {value.name for value in model.graph.output}
    read_outside = results | {name for node in outside for name in _reads(node)}
    nodes: list[NodeProto] = []
    in_blocks: set[str] = set()
    reshaped: list[str] = []
    for name in _sum_whole(outside, {name for each in regions for name in _row_inputs(each, shapes, dim)}):
        in_blocks.add(name)
        if name in read_outside:
            nodes.append(_own_rows(name, dim))
    for number, region in enumerate(regions):
        made = [name for node in region for name in node.output]
        read = _row_inputs(region, shapes, dim)
        for name in sorted(read - in_blocks):
            nodes += _padded(name, dim, rank=len(shapes[name]))
        others = {name for other in regions if other is not region for node in other for name in node.input}
        given = [name for name in made if name in read_outside | others]
        nodes += _loop(f"{dim}/{number}", region, dim, read=sorted(read), given=given)
        in_blocks |= read | set(given)
        reshaped += given
        # What reads single rows never reads those that were added.
        for node in outside:
            if node.op_type in ("Gather", SUM_EDGES) and node.input[0] in given and _axis(node) == 0:
                node.input[0] = _whole(node.input[0])
        still = results | {name for node in outside for name in _reads(node)}
        nodes += [_own_rows(name, dim) for name in given if name in still]
    if not regions:
        return model
    widest = max(
        math.prod(map(int, shapes[name][1:])) for region in regions for node in region for name in node.output
    )
    whole = {_whole(name): (f"{dim}{WHOLE}", *shapes[name][1:]) for name in in_blocks}
    rows = max(numbers // widest, 1)
    constants = _constants(dim, rows) + [_rows_of(name, shapes[name]) for name in reshaped]
    return _rebuilt(model, [*_sizes(model, dim), *nodes, *outside], whole=whole, constants=constants)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, tuple[int | str, ...]] = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _regions(nodes: Sequence[NodeProto], shapes: Shapes, dim: str) -> list[list[NodeProto]]:
    """Return the nodes that go row by row, a list for each stretch between nodes that do not, in order."""
    level: dict[str, int] = {}
    by_row: set[str] = set()
    for node in nodes:
        if _is_by_row(node, shapes, dim):
            at = max(level.get(name, 0) for name in node.input)
            by_row.update(node.output)
        else:
            # What is made from a stretch's rows comes after it, and opens the next one.
            at = max((level.get(name, 0) + (name in by_row) for name in _reads(node)), default=0)
        level |= dict.fromkeys(node.output, at)
    # As late as it is wanted: a product that only the next stretch reads need not be carried there.
    latest: dict[str, int] = {}
    regions: dict[int, list[NodeProto]] = {}
    for node in reversed(nodes):
        (output,) = node.output[:1]
        at = latest.get(output, level[output]) if output in by_row else level[output]
        if output in by_row:
            regions.setdefault(at, []).append(node)
        for name in _reads(node):
            # A node that does not go by row needs its input's stretch to be over.
            wanted = at if output in by_row else at - 1
            latest[name] = min(latest.get(name, wanted), wanted)
    return [region[::-1] for _, region in sorted(regions.items())]


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _reads(node: NodeProto) -> set[str]:
    """Names that a node reads, its loop's body included."""
    bodies = [attribute.g.node for attribute in node.attribute if attribute.HasField("g")]
    return {*node.input, *(name for body in bodies for inner in body for name in inner.input)}


def _is_by_row(node: NodeProto, shapes: Shapes, dim: str) -> bool:
    if not all(shapes.get(name, ())[:1] == (dim,) for name in node.output):
        return False
    read = [name for name in node.input if name]
    if not all(name in shapes for name in read):
        return False
    rows = [name for name in read if dim in shapes[name]]
    if not rows or any(shapes[name][0] != dim or dim in shapes[name][1:] for name in rows):
        return False
    rank = len(shapes[node.output[0]])
    match node.op_type:
        case "Gather":
            return rows == ([node.input[1]] if _axis(node) == 0 else [node.input[0]])
        case "Gemm" | "MatMul":
            return rows == [node.input[0]]
        case "Concat":
            return rows == read and _axis(node) % rank != 0
        case "Unsqueeze":
            return rank > len(shapes[rows[0]]) and rows == [node.input[0]]
    return node.op_type in _ELEMENTWISE and all(len(shapes[name]) == rank for name in rows)


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _row_inputs(region: Sequence[NodeProto], shapes: Shapes, dim: str) -> set[str]:
    made = {name for node in region for name in node.output}
    return {
        name
        for node in region
        for name in node.input
        if shapes.get(name, ())[:1] == (dim,) and name not in made
    }


def _whole(name: str) -> str:
    """Name of a tensor with the rows that were added."""
    return name + WHOLE


def _rows_of(name: str, shape: tuple[int | str, ...]) -> TensorProto:
    """Shape that makes rows of a tensor's blocks."""
    return onnx.numpy_helper.from_array(np.array([-1, *shape[1:]]), f"{name}/shape")


def _sum_whole(nodes: Iterable[NodeProto], wanted: set[str]) -> list[str]:
    """Let sums that blocks read have a row for each row that is added, which has no edges; return their names."""
    names = []
    for node in nodes:
        if node.op_type == SUM_EDGES and wanted.issuperset((node.output[0], node.input[2])):
            names.append(node.output[0])
            node.output[0], node.input[2] = _whole(node.output[0]), _whole(node.input[2])
    return names


def _sizes(model: onnx.ModelProto, dim: str) -> list[NodeProto]:
    """Nodes that compute how many blocks of how many rows there are."""
    value, axis = next(
        (value.name, axis)
        for value in model.graph.input
        for axis, d in enumerate(value.type.tensor_type.shape.dim)
        if d.dim_param == dim
    )

    def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
        return make_node(op_type, inputs, [f"{dim}/{output}"], **attributes)

    return [
        node("Shape", [value], "rows", start=axis, end=axis + 1),
        node("Add", [f"{dim}/rows", f"{dim}/less_one"], "rounded"),
        node("Div", [f"{dim}/rounded", f"{dim}/most"], "some"),
        node("Max", [f"{dim}/some", f"{dim}/one"], "blocks"),
        node("Add", [f"{dim}/rows", f"{dim}/blocks"], "above"),
        node("Sub", [f"{dim}/above", f"{dim}/one"], "upto"),
        node("Div", [f"{dim}/upto", f"{dim}/blocks"], "equal"),
        # Never empty: what gathers rows that were added needs one to read.
        node("Max", [f"{dim}/equal", f"{dim}/one"], "size"),
        node("Mul", [f"{dim}/blocks", f"{dim}/size"], "whole"),
        node("Sub", [f"{dim}/whole", f"{dim}/rows"], "missing"),
    ]


def _constants(dim: str, rows: int) -> list[TensorProto]:
    values = {
        "most": np.array([rows]),
        "less_one": np.array([rows - 1]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "always": np.array(True),
    }
    return [onnx.numpy_helper.from_array(value, f"{dim}/{name}") for name, value in values.items()]


def _padded(name: str, dim: str, *, rank: int) -> list[NodeProto]:
    none = [f"{dim}/zero"] * (rank - 1)
    return [
        make_node("Concat", [f"{dim}/zero", *none, f"{dim}/missing", *none], [f"{name}/pads"], axis=0),
        make_node("Pad", [name, f"{name}/pads"], [_whole(name)]),
    ]


def _own_rows(name: str, dim: str) -> NodeProto:
    """Node that leaves out the rows that were added."""
    return make_node("Slice", [_whole(name), f"{dim}/zero", f"{dim}/rows", f"{dim}/zero"], [name])


def _loop(
    loop: str, region: Sequence[NodeProto], dim: str, *, read: Sequence[str], given: Sequence[str]
) -> list[NodeProto]:
    """Nodes that run a region in blocks: NAME/whole of what it reads -> NAME/whole of what it gives."""

    def inner(name: str) -> str:
        return f"{loop}/{name}"

    made = {name for node in region for name in node.output}
    # Names of the project's own have a slash, those of the exporter none.
    turn, go, going, start, end = (f"{loop}/of/{name}" for name in ("turn", "go", "going", "start", "end"))
    body = [
        make_node("Identity", [go], [going]),
        make_node("Mul", [turn, f"{dim}/size"], [start]),
        make_node("Add", [start, f"{dim}/size"], [end]),
        *(make_node("Slice", [_whole(name), start, end, f"{dim}/zero"], [inner(name)]) for name in read),
    ]
    for node in region:
        copy = _copy(node)
        copy.input[:] = [inner(name) if name in made or name in read else name for name in node.input]
        copy.output[:] = [inner(name) for name in node.output]
        body.append(copy)
    graph = make_graph(
        body,
        loop,
        [
            make_tensor_value_info(turn, TensorProto.INT64, []),
            make_tensor_value_info(go, TensorProto.BOOL, []),
        ],
        [
            make_tensor_value_info(going, TensorProto.BOOL, []),
            *(make_empty_tensor_value_info(inner(name)) for name in given),
        ],
    )
    nodes = [
        make_node(
            "Loop", [f"{dim}/blocks", f"{dim}/always"], [f"{name}/stacked" for name in given], body=graph
        )
    ]
    nodes += [make_node("Reshape", [f"{name}/stacked", f"{name}/shape"], [_whole(name)]) for name in given]
    return nodes


def _rebuilt(
    model: onnx.ModelProto,
    nodes: Iterable[NodeProto],
    *,
    whole: Mapping[str, tuple[int | str, ...]],
    constants: Iterable[TensorProto],
) -> onnx.ModelProto:
    """Return the model with other nodes, sorted, and with the shapes of what is new."""
    rebuilt = onnx.ModelProto()
    rebuilt.CopyFrom(model)
    graph = rebuilt.graph
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    graph.value_info.extend(
        make_tensor_value_info(name, types[name.removesuffix(WHOLE)], dims) for name, dims in whole.items()
    )
    kept = {name for node in graph.node for name in node.output}
    values = [value for value in graph.value_info if value.name in kept]
    del graph.value_info[:]
    graph.value_info.extend(values)
    sortable = onnx_ir.from_proto(rebuilt)
    TopologicalSortPass()(sortable)
    return onnx_ir.to_proto(sortable)
