"""What a network in ONNX says that it must compute and move, whatever runs it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from tritrack.bench.result import ResultError
from tritrack.export.cases import drawn_hits
from tritrack.stages.contract import EDGE_INDEX, HITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.stages.contract import StageSpec

_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
"""Operators that move nothing: their output is the input in another shape."""

_PRODUCTS = frozenset({"Gemm", "MatMul"})

# Hits and edges of the runs that tell the laws: edges in whole blocks of 16, as the sums over edges are padded to, and
# at least one a hit.
_PROBES = ((64, 160), (128, 160), (64, 320), (192, 480))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A count that is linear in hits and edges."""

    constant: float = 0.0
    per_hit: float = 0.0
    per_edge: float = 0.0

    def at(self, *, n_hits: int, n_edges: int) -> float:
        """Return the count for an event."""
        return self.constant + self.per_hit * n_hits + self.per_edge * n_edges

    def __add__(self, other: Linear) -> Linear:
        return Linear(
            constant=self.constant + other.constant,
            per_hit=self.per_hit + other.per_hit,
            per_edge=self.per_edge + other.per_edge,
        )


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """What a network costs for so many hits and edges.

    Attributes
    ----------
    weight_bytes
        Its weights.
    operations
        Of its matrix products: a multiplication and an addition for each of their terms.
    operator_bytes
        By kind of operator, what these read and write where each goes to memory for its inputs and outputs. A Gather
        reads what it gives. Every hit counts as if it had edges both ways.
    """

    weight_bytes: int
    operations: Linear
    operator_bytes: dict[str, Linear]

    @property
    def unfused_bytes(self) -> Linear:
        """Those of all operators."""
        return sum(self.operator_bytes.values(), Linear())


def count_network(model: onnx.ModelProto, *, spec: StageSpec) -> NetworkCost:
    """Count what a network in ONNX costs, from the shapes of its tensors in small runs.

    Parameters
    ----------
    model
        The network as one graph, without loops; every tensor of it becomes an output.
    spec
        The stage, which names its inputs.

    Raises
    ------
    ResultError
        Where it has graphs within, or its tensors do not grow linearly in hits and edges.
    """
    for node in model.graph.node:
        if any(each.type in (each.GRAPH, each.GRAPHS) for each in node.attribute):
            raise ResultError(
                f"{spec.name}: {node.op_type} has a graph within, what that does cannot be counted"
            )
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    given = {output.name for output in model.graph.output}
    names = [name for node in nodes for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    # As the file says, with every tensor in it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]
    counted = []
    for n_hits, n_edges in _PROBES:
        inputs = _drawn_inputs(spec, n_hits=n_hits, n_edges=n_edges)
        tensors = weights | inputs | dict(zip(outputs, session.run(outputs, inputs), strict=True))
        counted.append(_count_nodes(nodes, tensors))
    laws = {
        name: _linear([counts[name] for counts in counted], what=f"{spec.name}: {name}")
        for name in counted[0]
    }
    return NetworkCost(
        weight_bytes=sum(array.nbytes for array in weights.values()),
        operations=laws.pop("operations"),
        operator_bytes=laws,
    )


def _drawn_inputs(spec: StageSpec, *, n_hits: int, n_edges: int) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {HITS.name: drawn_hits(n_hits=n_hits, seed=0)}
    if EDGE_INDEX in spec.inputs:
        inner = np.arange(n_edges, dtype=np.int32) % np.int32(n_hits)
        inputs[EDGE_INDEX.name] = np.stack([inner, (inner + np.int32(1)) % np.int32(n_hits)])
    return inputs


def _count_nodes(nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    counts: dict[str, float] = defaultdict(float, operations=0.0)
    for node in nodes:
        if node.op_type in _VIEWS:
            continue
        read = [tensors[name].nbytes for name in dict.fromkeys(node.input) if name]
        written = sum(tensors[name].nbytes for name in node.output if name)
        if node.op_type == "Gather":
            read[0] = written
        counts[node.op_type] += sum(read) + written
        if node.op_type in _PRODUCTS:
            transposed = any(each.name == "transA" and each.i for each in node.attribute)
            terms = tensors[node.input[0]].shape[0 if transposed else -1]
            counts["operations"] += 2.0 * tensors[node.output[0]].size * terms
    return counts


def _linear(counts: Sequence[float], *, what: str) -> Linear:
    (few_hits, few_edges), (many_hits, _), (_, many_edges), (most_hits, most_edges) = _PROBES
    least, by_hits, by_edges, most = counts
    per_hit = (by_hits - least) / (many_hits - few_hits)
    per_edge = (by_edges - least) / (many_edges - few_edges)
    law = Linear(
        constant=least - per_hit * few_hits - per_edge * few_edges, per_hit=per_hit, per_edge=per_edge
    )
    if law.at(n_hits=most_hits, n_edges=most_edges) != most:
        raise ResultError(f"{what} is not linear in hits and edges, so it cannot be counted")
    return law
