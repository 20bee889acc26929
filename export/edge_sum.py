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


def sum_sorted(values: Any, index: Any, like: Any) -> Any:
    """Sum by destination as differences of a running sum: for ONNX Runtime.

    Edges are sorted by the hit they add to (a stable sort: equal ones keep their order), a float64 running
    sum goes over them, and each hit's sum is the running sum at its last edge minus that at the last edge
    of the hit before it. The result does not depend on the number of threads. (ScatterND with a reduction
    loses duplicates under more than one thread of ONNX Runtime 1.32, and its ScatterElements takes several
    times as long.)

    All but three operators work on one number per edge or hit and are the same in every step of a network:
    they are merged, so that edges are sorted once per direction.
    """
    first = op.Constant(value_int=0)
    n_edges, n_hits = op.Shape(index), op.Shape(like, start=0, end=1)
    _, order = op.TopK(index, n_edges, axis=0, largest=0, sorted=1)
    degree = op.ScatterElements(
        op.Expand(op.Constant(value_ints=[0]), n_hits),
        index,
        op.Expand(op.Constant(value_ints=[1]), n_edges),
        axis=0,
        reduction="add",
    )
    has_edges = op.Cast(degree, to=_BOOL)
    last_edge = op.Compress(op.Sub(op.CumSum(degree, first), op.Constant(value_ints=[1])), has_edges, axis=0)
    # Hits with edges, counted up to and with each hit, and before it: rows of ``at_last`` below.
    one = op.Cast(has_edges, to=_INT64)
    upto = op.CumSum(one, first)
    before = op.Sub(upto, one)
    width = op.Shape(values, start=1, end=2)
    zero_row = op.Expand(
        op.Cast(op.Constant(value_float=0.0), to=_DOUBLE),
        op.Concat(op.Constant(value_ints=[1]), width, axis=0),
    )

    running = op.CumSum(op.Cast(op.Gather(values, order, axis=0), to=_DOUBLE), first)
    at_last = op.Concat(zero_row, op.Gather(running, last_edge, axis=0), axis=0)
    total = op.Sub(op.Gather(at_last, upto, axis=0), op.Gather(at_last, before, axis=0))
    return op.Cast(total, to=_FLOAT)


def sum_scattered(values: Any, index: Any, like: Any) -> Any:
    """Sum by ScatterElements with a reduction: what TensorRT 10 runs in parallel and right."""
    width = op.Shape(values, start=1, end=2)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(like, start=0, end=1), width, axis=0))
    rows = op.Expand(op.Unsqueeze(index, op.Constant(value_ints=[1])), op.Shape(values))
    return op.ScatterElements(zeros, rows, values, axis=0, reduction="add")


RENDERINGS: dict[Rendering, Callable[..., Any]] = {"sorted": sum_sorted, "scatter": sum_scattered}
"""Renderings of :func:`tritrack.stages.edge_sum.sum_edges` by name."""
