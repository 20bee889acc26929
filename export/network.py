"""The network of a stage -> an ONNX model with the contract's names and sizes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, CommonSubexpressionEliminationPass

from tritrack.export.blocks import run_in_blocks
from tritrack.export.edge_sum import RENDERINGS, SUM_EDGES, Rendering, expand_sums, op

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir
    from torch import nn

    from tritrack.stages.card import ModelCard, Precision
    from tritrack.stages.contract import StageSpec, TensorSpec

OPSET = 18
IR_VERSION = 10
"""Read by ONNX Runtime from 1.18 and by TensorRT 10."""

# Any sizes but 0 and 1 (which torch.export takes for constants), unlike each other and every width.
_EXAMPLE = {"n_hits": 53, "n_edges": 97}


class ExportError(RuntimeError):
    """A network that does not become an engine; the message names the stage."""


def export_network(
    network: nn.Module,
    *,
    spec: StageSpec,
    card: ModelCard,
    rendering: Rendering = "sorted",
    precision: Precision = "fp32",
) -> onnx.ModelProto:
    """Export the network of one stage.

    Parameters
    ----------
    network
        The module.
    spec
        Its stage: names, dtypes and dynamic axes come from here.
    card
        Its model card; the hash goes into the model's metadata.
    rendering
        How the sum over edges is written.
    precision
        What the network's inner layers compute in: the types are the network's own, this is their name.

    Returns
    -------
    ModelProto
        With ``contract_version``, ``card_hash``, ``edge_sum``, ``precision`` and ``stage`` in its metadata.

    Raises
    ------
    ExportError
        Where the exported model's inputs or outputs are not the contract's.
    """
    sizes = _EXAMPLE | {"n_columns": len(card.columns), "d": card.networks.embedding_dim}
    with _quiet():
        program = torch.onnx.export(
            network,
            tuple(_example(tensor, sizes) for tensor in spec.inputs),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=tuple(_dynamic_axes(tensor) for tensor in spec.inputs),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.engine],
            custom_translation_table={
                torch.ops.tritrack.sum_edges.default: RENDERINGS[rendering],
                torch.ops.aten.index.Tensor: _rows,
            }
            | ({torch.ops.aten.asinh.default: _asinh} if rendering == "scatter" else {}),
        )
    if program is None:
        raise ExportError(f"{spec.name}: torch gave no ONNX program")
    ClearMetadataAndDocStringPass()(program.model)
    _merge(program.model)
    model = program.model_proto
    if rendering == "sorted":
        # In 16 bits ONNX Runtime computes in float32 between casts on the CPU, and each block would cast all rows anew.
        for dim in _EXAMPLE if precision == "fp32" else ():
            model = run_in_blocks(model, dim=dim)
        expand_sums(model)
        _name_nodes(model.graph)
    model.ir_version = IR_VERSION
    _check_interface(model, spec=spec, sizes=sizes)
    onnx.helper.set_model_props(
        model,
        model_props(spec, card) | {"edge_sum": rendering, "precision": precision},
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def model_props(spec: StageSpec, card: ModelCard) -> dict[str, str]:
    """Return what every engine file says of itself in its metadata."""
    return {
        "stage": spec.name,
        "contract_version": str(card.contract_version),
        "card_hash": card.hash,
    }


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name each node after what it gives: ONNX Runtime up to 1.20 mixes up nodes without a name when it fuses them."""
    for node in graph.node:
        node.name = node.output[0]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_nodes(attribute.g)


def _example(tensor: TensorSpec, sizes: dict[str, int]) -> torch.Tensor:
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in tensor.dims]
    values = np.random.default_rng(0).uniform(0, sizes["n_hits"] - 1, shape)
    return torch.from_numpy(values.astype(tensor.dtype))


def _dynamic_axes(tensor: TensorSpec) -> dict[int, Any]:
    return {axis: torch.export.Dim(str(dim)) for axis, dim in enumerate(tensor.dims) if dim in _EXAMPLE}


def _merge(model: onnx_ir.Model) -> None:
    """Compute once what every step of a network needs and writes anew: the order of the edges above all."""
    hits = model.graph.inputs[0]
    for node in model.graph:
        if node.op_type == SUM_EDGES:
            node.replace_input_with(2, hits)
        # Each step takes n_hits from a tensor of its own.
        if node.op_type == "Shape" and node.attributes.get_int("end", 0) == 1:
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            if shape is not None and hits.shape is not None and shape[0] == hits.shape[0]:
                node.replace_input_with(0, hits)
    CommonSubexpressionEliminationPass()(model)


def _rows(values: Any, indices: Sequence[Any]) -> Any:
    # The exporter's own translation of x[index] is GatherND, which ONNX Runtime runs slower.
    (index,) = indices
    return op.Gather(values, index, axis=0)


def _asinh(x: Any) -> Any:
    # ONNX Runtime's CUDA provider has no Asinh: each would go by the host. What is lost near 0, 1e-7, is what float32
    # leaves of a feature of about one. Beyond the clip the square leaves float32.
    size = op.Min(op.Abs(x), op.Constant(value_float=1e18))
    square = op.Mul(size, size)
    root = op.Sqrt(op.Add(square, op.Constant(value_float=1.0)))
    return op.Mul(op.Sign(x), op.Log(op.Add(size, root)))


def _check_interface(model: onnx.ModelProto, *, spec: StageSpec, sizes: dict[str, int]) -> None:
    for tensors, values in ((spec.inputs, model.graph.input), (spec.engine, model.graph.output)):
        wanted = [
            (
                tensor.name,
                onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype),
                [dim if dim in _EXAMPLE else sizes.get(str(dim), dim) for dim in tensor.dims],
            )
            for tensor in tensors
        ]
        found = [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]
        if found != wanted:
            raise ExportError(f"{spec.name}: exported with {found}, the contract wants {wanted}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines, its log and the warnings of the libraries under it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
