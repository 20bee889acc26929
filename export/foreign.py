"""ONNX files from elsewhere as stages: brought to the contract's names and types, and gated without a torch reference."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx
import onnx.compose
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from tritrack.export.gates import (
    NETWORK_TOLERANCE,
    TRACK_TOLERANCE,
    GateResult,
    deviation_of,
    share_of_other_tracks,
)
from tritrack.export.network import model_props
from tritrack.stages.card import CardError, NetworkName
from tritrack.stages.contract import EDGE_INDEX, EMBEDDING, FILTER_STAGE, HITS
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.events.event import Event
    from tritrack.export.cases import Case
    from tritrack.stages.card import ForeignStage, ModelCard
    from tritrack.stages.contract import StageSpec, TensorSpec
    from tritrack.stages.engine import Engine
    from tritrack.stages.pipeline import Pipeline

PREFIX = "foreign/"
"""Before every name of the file: none can be one of the contract's."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
_TAKEN = {HITS: _FLOATS, EDGE_INDEX: (onnx.TensorProto.INT32, onnx.TensorProto.INT64)}
_SCORE_MARGIN = 1e-6  # a probability in float32 may be this much over one


class ForeignError(ValueError):
    """A file that cannot be a stage; the message names the stage and what does not fit."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Files from elsewhere, and the card that they are served with.

    Attributes
    ----------
    card
        Says of each file how it stands for its stage, and has the cuts and limits of the whole chain.
    files
        By stage, the ONNX file.
    """

    card: ModelCard
    files: Mapping[NetworkName, Path]


def join_networks(foreign: Foreign, weights: Path | None) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Return the card with the hashes of all files, and the networks of the other stages.

    Parameters
    ----------
    foreign
        The files and their card.
    weights
        Folder of weights that the other stages' networks are taken from; None where there are no others.

    Raises
    ------
    ForeignError
        Where card, files and weights do not belong together.
    CardError
        Where the weights cannot be used.
    """
    card, files = foreign.card, foreign.files
    if set(card.foreign) != set(files):
        raise ForeignError(
            f"model {card.name}: files are given for {_listed(files)}, the card's foreign stages are {_listed(card.foreign)}"
        )
    sha256 = {f"{name}.onnx": _digest(path) for name, path in files.items()}
    own = [name for name in get_args(NetworkName) if name not in files]
    networks: dict[str, nn.Module] = {}
    if own:
        if weights is None:
            raise ForeignError(f"model {card.name}: weights are wanted for {_listed(own)}")
        theirs, networks = load_weights(weights)
        networks = {name: networks[name] for name in own}
        for name in (f"{stage}.safetensors" for stage in own):
            if card.sha256.get(name, theirs.sha256[name]) != theirs.sha256[name]:
                raise ForeignError(
                    f"{weights / name}: not the file that the card of {card.name} was written for"
                )
            sha256[name] = theirs.sha256[name]
    return replace(card, sha256=sha256), networks


def _digest(path: Path) -> str:
    """Return the sha256 of a file, and of what its weights lie in beside it, in the order of the names."""
    digest = hashlib.sha256(path.read_bytes())
    try:
        weights = onnx.load(path, load_external_data=False).graph.initializer
    except DecodeError:  # what is wrong with it is said where it is wrapped
        weights = []
    beside = {ExternalDataInfo(tensor).location for tensor in weights if uses_external_data(tensor)}
    for file in (path.parent / name for name in sorted(beside)):
        if not file.is_file():
            raise ForeignError(f"{file}: missing, {path} has its weights there")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def wrap_foreign(foreign: Foreign, *, spec: StageSpec, card: ModelCard) -> onnx.ModelProto:
    """Bring the ONNX file of a stage to a stage's names, types and shapes.

    Parameters
    ----------
    foreign
        The files. A stage's file takes what its network takes, in whatever order: hits of a float type, and pairs,
        int32 or int64 [2, n_edges]; it gives a float type, scores as [n_edges] or [n_edges, 1].
    spec
        The stage.
    card
        What :func:`join_networks` returned; its hash goes into the metadata.

    Returns
    -------
    ModelProto
        The contract's inputs and output around the file's graph.

    Raises
    ------
    ForeignError
        Where the file is none, or does not fit the stage.
    """
    path, stage = next(
        (foreign.files[name], card.foreign[name]) for name in foreign.files if name == spec.name
    )
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 (protobuf's errors share no other class)
        raise ForeignError(f"{spec.name}: {path}: no valid ONNX file: {_first_line(error)}") from None
    sizes = {"n_columns": len(card.columns), "d": card.networks.embedding_dim}
    known = onnx.defs.onnx_opset_version()
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > known:
        raise ForeignError(
            f"{spec.name}: {path}: wants operator set {opset}, those up to {known} are known here"
        )
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    outputs = {value.name: value for value in model.graph.output}
    _check_names(inputs, outputs, path=path, spec=spec, stage=stage)
    for name, tensor in zip(stage.inputs, spec.inputs, strict=True):
        _check_value(inputs[name], tensor, types=_TAKEN[tensor], sizes=sizes, path=path, spec=spec)
    (output,) = spec.engine
    _check_value(outputs[stage.output], output, types=_FLOATS, sizes=sizes, path=path, spec=spec)
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    # Given here, names of weights are replaced in the bodies of loops, too.
    names = {tensor.name: PREFIX + tensor.name for tensor in model.graph.initializer}
    onnx.compose.add_prefix_graph(wrapped.graph, PREFIX, inplace=True, name_map=names)
    _surround(wrapped.graph, spec=spec, stage=stage, sizes=sizes)
    onnx.helper.set_model_props(wrapped, model_props(spec, card))
    return wrapped


def _check_names(
    inputs: Iterable[str], outputs: Iterable[str], *, path: Path, spec: StageSpec, stage: ForeignStage
) -> None:
    wanted = ", ".join(tensor.name for tensor in spec.inputs)
    if len(list(inputs)) != len(spec.inputs):
        raise ForeignError(
            f"{spec.name}: {path}: takes {_listed(inputs)}, the stage gives {len(spec.inputs)}: {wanted}"
        )
    if sorted(inputs) != sorted(stage.inputs):
        raise ForeignError(
            f"{spec.name}: {path}: takes {_listed(inputs)}, the card names {_listed(stage.inputs)} for {wanted}"
        )
    if stage.output not in outputs:
        raise ForeignError(f"{spec.name}: {path}: gives {_listed(outputs)}, the card names {stage.output}")


def _check_value(
    value: onnx.ValueInfoProto,
    tensor: TensorSpec,
    *,
    types: Sequence[int],
    sizes: Mapping[str, int],
    path: Path,
    spec: StageSpec,
) -> None:
    kind = value.type.tensor_type
    here = f"{spec.name}: {path}: {value.name}, which is {tensor.name},"
    if kind.elem_type not in types:
        names = " or ".join(onnx.TensorProto.DataType.Name(other) for other in types)
        raise ForeignError(f"{here} is {onnx.TensorProto.DataType.Name(kind.elem_type)}, wanted is {names}")
    if not kind.HasField("shape"):
        return  # the gates' cases tell
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    shown = f"[{', '.join(map(str, dims))}]"
    wanted = f"[{', '.join(map(str, tensor.dims))}]"
    column = len(dims) == len(tensor.dims) + 1 and tensor in spec.engine and tensor is not EMBEDDING
    if column and dims.pop() not in (1, "?"):
        raise ForeignError(f"{here} has the shape {shown}, wanted is {wanted}")
    if len(dims) != len(tensor.dims):
        raise ForeignError(f"{here} has the shape {shown}, wanted is {wanted}")
    for dim, own in zip(dims, tensor.dims, strict=True):
        size = sizes.get(own) if isinstance(own, str) else own
        if isinstance(dim, int) and dim != size:
            fixed = f"the axis {own} is fixed to {dim}" + (
                f", not to {size}" if size else ": it must be free"
            )
            raise ForeignError(f"{here} has the shape {shown}: {fixed}")


def _surround(
    graph: onnx.GraphProto, *, spec: StageSpec, stage: ForeignStage, sizes: Mapping[str, int]
) -> None:
    """Put the contract's inputs and output around a prefixed graph."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    before = [
        onnx.helper.make_node("Cast", [tensor.name], [PREFIX + name], to=types[PREFIX + name])
        for name, tensor in zip(stage.inputs, spec.inputs, strict=True)
    ]
    (output,) = spec.engine
    last = PREFIX + stage.output
    after = []
    if stage.sigmoid:
        after.append(onnx.helper.make_node("Sigmoid", [last], ["contract/probability"]))
        last = "contract/probability"
    if output is not EMBEDDING:
        flat = onnx.numpy_helper.from_array(np.array([-1], dtype=np.int64), "contract/flat")
        graph.initializer.append(flat)
        after.append(onnx.helper.make_node("Reshape", [last, flat.name], ["contract/scores"]))
        last = "contract/scores"
    after.append(onnx.helper.make_node("Cast", [last], [output.name], to=onnx.TensorProto.FLOAT))
    nodes = [*before, *graph.node, *after]
    for field, values in (
        (graph.node, nodes),
        (graph.input, [_value(tensor, sizes) for tensor in spec.inputs]),
        (graph.output, [_value(output, sizes)]),
    ):
        del field[:]
        field.extend(values)


def _value(tensor: TensorSpec, sizes: Mapping[str, int]) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)
    dims = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.dims]
    return onnx.helper.make_tensor_value_info(tensor.name, kind, dims)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A case with its hits or pairs in some order, and the rows of the answer in the case's own that it must give."""

    what: str
    inputs: list[NDArray[Any]]
    rows: NDArray[np.int64]


def _orders(case: Case, *, spec: StageSpec) -> list[_Order]:
    """Return a case as it is, and in other orders."""
    n_hits = case.hits.shape[0]
    rng = np.random.default_rng(n_hits)
    hits = rng.permutation(n_hits)
    if EDGE_INDEX not in spec.inputs:
        return [
            _Order(what="the same again", inputs=[case.hits], rows=np.arange(n_hits)),
            _Order(what="hits in another order", inputs=[case.hits[hits]], rows=hits),
        ]
    edges = case.edge_index[spec.name]
    same, pairs = np.arange(edges.shape[1]), rng.permutation(edges.shape[1])
    place = np.argsort(hits).astype(np.int32)  # where each hit has gone
    linked, number = np.unique(edges, return_inverse=True)
    number = number.reshape(edges.shape).astype(np.int32)
    half = np.ascontiguousarray(edges[:, ::2])
    return [
        _Order(what="the same again", inputs=[case.hits, edges], rows=same),
        _Order(
            what="pairs in another order",
            inputs=[case.hits, np.ascontiguousarray(edges[:, pairs])],
            rows=pairs,
        ),
        _Order(what="hits in another order", inputs=[case.hits[hits], place[edges]], rows=same),
        # The chain does both: a hit without a pair changes no score, and the filter sees its pairs in pieces.
        _Order(what="hits without a pair left out", inputs=[case.hits[linked], number], rows=same),
        *(
            [_Order(what="half of the pairs", inputs=[case.hits, half], rows=same[::2])]
            if spec is FILTER_STAGE
            else []
        ),
    ]


def load_wrapped(path: Path, *, spec: StageSpec, threads: int) -> Engine:
    """Load a wrapped file in ONNX Runtime (raises ForeignError)."""
    try:
        return OnnxEngine(path, spec=spec, threads=threads)
    except CardError as error:
        raise ForeignError(f"{spec.name}: {_first_line(error).removeprefix(f'{path}: ')}") from None


def gate_foreign(
    engine: Engine, *, spec: StageSpec, card: ModelCard, cases: Sequence[Case]
) -> list[GateResult]:
    """Gate a network that has no reference: what it gives, twice, and for hits and pairs in another order.

    Parameters
    ----------
    engine
        The network.
    spec
        Its stage.
    card
        Its sizes.
    cases
        Inputs of several sizes, no pairs and one among them.

    Returns
    -------
    list of GateResult
        Of each case: the same again, to the last bit; and within the stage's tolerance in float32 with the pairs,
        and with the hits, in another order, without the hits that have no pair, and of a filter with half of the pairs.

    Raises
    ------
    ForeignError
        Where it does not run, or gives another type or shape, a value that is not finite, or a score that is no
        probability.
    """
    results = []
    for case in cases:
        given, *others = _orders(case, spec=spec)
        wanted = _checked(engine, given, spec=spec, card=card, case=case)
        for order in (given, *others):
            found = _checked(engine, order, spec=spec, card=card, case=case)
            results.append(
                GateResult(
                    stage=spec.name,
                    case=f"{order.what}, {case.name}",
                    deviation=deviation_of(wanted[order.rows], found, relative=EMBEDDING in spec.engine),
                    tolerance=0.0 if order is given else NETWORK_TOLERANCE["fp32"][spec.name],
                )
            )
    return results


def _checked(
    engine: Engine, order: _Order, *, spec: StageSpec, card: ModelCard, case: Case
) -> NDArray[np.float32]:
    """Run a network and check what it gives (raises ForeignError)."""
    here = f"{spec.name}: on {case.name!r} it"
    (output,) = spec.engine
    try:
        found = engine(*order.inputs)
    except Exception as error:  # noqa: BLE001 (ONNX Runtime's errors share no other class)
        raise ForeignError(f"{here} does not run: {_first_line(error)}") from None
    shape = (order.rows.size, card.networks.embedding_dim) if output is EMBEDDING else (order.rows.size,)
    if found.dtype != output.dtype or found.shape != shape:
        raise ForeignError(
            f"{here} gives {found.dtype} {list(found.shape)}, wanted is {output.dtype} {list(shape)}"
        )
    bad = np.count_nonzero(~np.isfinite(found))
    if bad:
        raise ForeignError(f"{here} gives {bad} of {found.size} values that are not finite")
    if output is not EMBEDDING and found.size:
        low, high = float(found.min()), float(found.max())
        if low < 0 or high > 1 + _SCORE_MARGIN:
            raise ForeignError(
                f"{here} gives scores from {low:.3g} to {high:.3g}, which are no probabilities: for logits the card "
                "says sigmoid"
            )
    return found


def gate_orders(chain: Pipeline, events: Iterable[Event]) -> list[GateResult]:
    """Compare the tracks of events with those of the same hits in another order (raises ContractError)."""
    results = []
    for event in events:
        order = np.random.default_rng(event.n_hits).permutation(event.n_hits)
        found = chain.find(np.ascontiguousarray(event.hits[order]))
        results.append(
            GateResult(
                stage="chain",
                case=f"hits in another order, event {event.event_id}, {event.n_hits} hits",
                deviation=share_of_other_tracks(found, chain.find(event.hits)[order]),
                tolerance=TRACK_TOLERANCE,
            )
        )
    return results


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
