"""How the sum over edges is rendered in ONNX: one function for each kind of engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import onnx
from onnxscript import opset18

if TYPE_CHECKING:
    from collections.abc import Callable

op: Any = opset18  # its type hints do not allow one operator's output as another's input

Rendering = Literal["sorted", "scatter"]

_INT64, _FLOAT, _DOUBLE, _BOOL = (
    onnx.TensorProto.INT64,
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BOOL,
)


_BLOCK = 16  # edges


def sum_sorted(values: Any, index: Any, like: Any) -> Any:
    """Sum by destination as differences of a running sum: for ONNX Runtime.

    Edges are sorted by the hit they add to (a stable sort: equal ones keep their order), a running sum goes
    over them, and each hit's sum is the running sum at its last edge minus that at the last edge of the hit
    before it. Within blocks of 16 edges the running sum is float32, over blocks float64: as exact as adding
    the edges of a hit in float32, with half the memory traffic of float64 throughout. The result does not
    depend on the number of threads. (ScatterND with a reduction loses duplicates under more than one thread
    of ONNX Runtime 1.32, and its ScatterElements takes several times as long.)

    All up to ``before`` works on one number per edge or hit and is the same in every step of a network: the
    export merges it, so that edges are sorted once per direction.
    """
    n_edges, n_hits = op.Shape(index), op.Shape(like, start=0, end=1)
    first, none, block = (
        op.Constant(value_int=0),
        op.Constant(value_ints=[0]),
        op.Constant(value_ints=[_BLOCK]),
    )
    _, order = op.TopK(index, n_edges, axis=0, largest=0, sorted=1)
    fill = op.Expand(none, op.Mod(op.Neg(n_edges), block))  # to whole blocks; comes after every hit's edges
    blocks = op.Reshape(op.Concat(order, fill, axis=0), op.Constant(value_ints=[-1, _BLOCK]))
    ones = op.Expand(op.Constant(value_ints=[1]), n_edges)
    degree = op.ScatterElements(op.Expand(none, n_hits), index, ones, axis=0, reduction="add")
    has_edges = op.Cast(degree, to=_BOOL)
    last_edge = op.Compress(op.Sub(op.CumSum(degree, first), op.Constant(value_ints=[1])), has_edges, axis=0)
    last_block = op.Div(last_edge, block)
    # Hits with edges, counted up to and with each hit, and before it: rows of ``at_last`` below.
    one = op.Cast(has_edges, to=_INT64)
    upto = op.CumSum(one, first)
    before = op.Sub(upto, one)

    in_block = op.CumSum(op.Gather(values, blocks, axis=0), op.Constant(value_int=1))
    of_block = op.Cast(op.Gather(in_block, op.Constant(value_int=_BLOCK - 1), axis=1), to=_DOUBLE)
    to_block = op.CumSum(of_block, first, exclusive=1)
    width = op.Shape(values, start=1, end=2)
    running = op.Reshape(in_block, op.Concat(op.Constant(value_ints=[-1]), width, axis=0))
    at_last = op.Add(
        op.Cast(op.Gather(running, last_edge, axis=0), to=_DOUBLE), op.Gather(to_block, last_block, axis=0)
    )
    zero_row = op.Expand(
        op.Cast(op.Constant(value_float=0.0), to=_DOUBLE),
        op.Concat(op.Constant(value_ints=[1]), width, axis=0),
    )
    at_last = op.Concat(zero_row, at_last, axis=0)
    total = op.Sub(op.Gather(at_last, upto, axis=0), op.Gather(at_last, before, axis=0))
    return op.Cast(total, to=_FLOAT)


def sum_scattered(values: Any, index: Any, like: Any) -> Any:
    """Sum by ScatterElements with a reduction: for TensorRT from 10 on, which has no other sum by index.

    (Before 10 TensorRT took the node and ignored its reduction.) Its threads add in no fixed order, so the last
    digits of a sum differ from run to run.
    """
    width = op.Shape(values, start=1, end=2)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(like, start=0, end=1), width, axis=0))
    rows = op.Expand(op.Unsqueeze(index, op.Constant(value_ints=[1])), op.Shape(values))
    return op.ScatterElements(zeros, rows, values, axis=0, reduction="add")


RENDERINGS: dict[Rendering, Callable[..., Any]] = {"sorted": sum_sorted, "scatter": sum_scattered}
"""Renderings of :func:`tritrack.stages.edge_sum.sum_edges` by name."""
