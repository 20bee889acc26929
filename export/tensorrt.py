"""A folder of ONNX files -> a folder of TensorRT engines for this machine's GPU, each behind its parity gate."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import onnx
import torch

from tritrack.export.cases import drawn_cases, event_cases
from tritrack.export.gates import gate_network, require
from tritrack.export.onnx import check_out, clear_engines, finish_engines, gate_compiled, gate_events
from tritrack.stages.card import CardError, Precision, engine_file, read_card
from tritrack.stages.contract import EDGE_INDEX, FILTER_STAGE, GRAPH_STAGE, HITS, STAGES
from tritrack.stages.filtering import PAIRS_AT_ONCE
from tritrack.stages.networks import run_network
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import PlanFacts, Sizes, facts_file, find_gpu, plan_file
from tritrack.stages.stage import run_engine
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.events.event import Event
    from tritrack.export.cases import Case
    from tritrack.export.gates import GateResult
    from tritrack.export.onnx import Passed, StageHook
    from tritrack.stages.card import ModelCard
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine
    from tritrack.stages.plan_file import Gpu

LEAST_TENSORRT = 10
"""Older ones take ScatterElements and ignore its reduction: they sum wrongly, without a word."""

TIMING_CACHE = "timing.cache"


class NoTensorRTError(RuntimeError):
    """What building an engine needs and this machine lacks."""


def export_plans(
    *, weights: Path, engines: Path, out: Path, events: Sequence[Event], on_stage: StageHook | None = None
) -> list[GateResult]:
    """Build a TensorRT engine of each ONNX file of a folder, with the model card and what the gates measured.

    Beside each engine lies a JSON file that says what it was built for (`tritrack.stages.plan_file`). The
    filter's cut and the other stages stay outside of the engines.

    Parameters
    ----------
    weights
        The folder of weights that the ONNX files were exported from: the reference of the gates.
    engines
        The folder of ONNX files, with the sum over edges as "scatter"; their types are the engines' precision.
    out
        Folder to fill, as in :func:`tritrack.export.onnx.export_engines`; TensorRT's timing cache stays there.
    events
        Events to compare on, and whose median sizes the engines are tuned for.
    on_stage
        As in :func:`tritrack.export.onnx.export_engines`.

    Raises
    ------
    NoTensorRTError
        Where TensorRT, a GPU, or a torch that uses it is missing.
    CardError
        Where weights or ONNX files cannot be used or do not belong together.
    PlanError
        Where TensorRT does not build a network.
    GateError
        Where a stage does not compute what its reference computes; its engine is not left in ``out``.
    FolderError
        Where ``out`` holds what is read.
    """
    check_out(out, reads=[weights, engines])
    version, gpu = find_tensorrt()
    card, networks = load_weights(weights)
    precision = check_onnx_folder(engines, card=card)
    passed = _build(
        card=card,
        networks=networks,
        engines=engines,
        out=out,
        built_by=(version, gpu),
        precision=precision,
        events=events,
    )
    return finish_engines(out, card=card, passed=passed, on_stage=on_stage)


def _build(
    *,
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    engines: Path,
    out: Path,
    built_by: tuple[str, Gpu],
    precision: Precision,
    events: Sequence[Event],
) -> Iterator[Passed]:
    """Build the engines one after the other, and yield each stage that has passed."""
    version, gpu = built_by
    for network in networks.values():
        network.cuda()
    typical = median_sizes(card, networks, events)
    cases = [
        *drawn_cases(),
        *event_cases(events, networks=networks, cuts=card.point().cuts, limits=card.limits),
    ]
    clear_engines(out)
    runnable: dict[str, Engine] = {}
    for spec in STAGES:
        if spec.engine:
            facts = PlanFacts(
                tensorrt=version,
                gpu=gpu,
                precision=precision,
                profile=profile_of(spec, card=card, typical=typical),
                onnx_sha256=hashlib.sha256((engines / engine_file(spec.name)).read_bytes()).hexdigest(),
                card_sha256=card.hash,
            )
            with _built(engines / engine_file(spec.name), facts=facts, spec=spec, out=out) as engine:
                runnable[spec.name] = engine
                passed = gate_network(
                    partial(run_engine, engine, spec, card),
                    spec=spec,
                    network=networks[spec.name],
                    cases=[case for case in cases if fits(case, spec=spec, profile=facts.profile)],
                    precision=precision,
                )
                require(passed)
        else:
            passed = gate_compiled(
                spec, card=card, embed=partial(run_network, networks["embedding"]), cases=cases
            )
        yield spec.name, passed
    yield gate_events(
        runnable, card=card, networks=networks, precision=precision, events=events, device="cuda:0"
    )


def find_tensorrt() -> tuple[str, Gpu]:
    """Return TensorRT's version and the GPU.

    Raises
    ------
    NoTensorRTError
        Says what is missing.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise NoTensorRTError(
            f"TensorRT is not installed: pip install 'tensorrt>={LEAST_TENSORRT}', in the version of the server"
        )
    gpu = find_gpu()
    if gpu is None:
        raise NoTensorRTError("TensorRT builds an engine on the GPU that will run it, and there is none here")
    if not torch.cuda.is_available():
        raise NoTensorRTError(
            f"torch {torch.__version__} uses no GPU, and the engines are compared with torch"
        )
    import tensorrt

    version: str = tensorrt.__version__
    if int(version.split(".")[0]) < LEAST_TENSORRT:
        raise NoTensorRTError(
            f"TensorRT {version} is installed, {LEAST_TENSORRT} or later is wanted: older ones sum over edges wrongly"
        )
    return version, gpu


def check_onnx_folder(folder: Path, *, card: ModelCard) -> Precision:
    """Check that a folder holds the ONNX files of some weights as TensorRT wants them; return their precision.

    Raises
    ------
    CardError
        Names the file and what is wrong with it.
    """
    found = read_card(folder)
    if found.hash != card.hash:
        raise CardError(
            f"{folder}: these engines are of {found.name}, not of the weights given ({card.name})"
        )
    precisions = set()
    for spec in STAGES:
        path = folder / engine_file(spec.name)
        if not spec.engine:
            continue
        if not path.is_file():
            raise CardError(f"{path}: no engine there")
        try:
            model = onnx.load(path)
        except Exception as error:  # noqa: BLE001 (protobuf's errors share no other class)
            raise CardError(f"{path}: no ONNX file: {error}") from None
        said = {entry.key: entry.value for entry in model.metadata_props}
        if said.get("card_hash") != card.hash:
            raise CardError(f"{path}: was exported with another model card than the one beside it")
        if said.get("edge_sum") != "scatter":
            raise CardError(
                f"{path}: sums over edges as ONNX Runtime likes it, TensorRT cannot: "
                "tritrack export --engine onnx --edge-sum scatter"
            )
        precisions.add(said.get("precision"))
    for precision in get_args(Precision):
        if precisions == {precision}:
            return precision  # type: ignore[no-any-return]
    raise CardError(f"{folder}: the files' precisions are {sorted(map(str, precisions))}, one is wanted")


def median_sizes(
    card: ModelCard, networks: Mapping[str, nn.Module], events: Sequence[Event]
) -> dict[str, int]:
    """Return the median numbers of hits, pairs and edges of events at the card's default working point.

    Returns
    -------
    dict
        ``n_hits``; ``n_pairs``, out of the graph; ``n_edges``, out of the filter.
    """
    chain = Pipeline(card=card, engines={name: partial(run_network, net) for name, net in networks.items()})
    pairs: dict[str, list[int]] = {GRAPH_STAGE.name: [], FILTER_STAGE.name: []}

    def on_stage(stage: str, outputs: dict[str, NDArray[np.generic]], _: float) -> None:
        if stage in pairs:
            pairs[stage].append(outputs[EDGE_INDEX.name].shape[1])

    for event in events:
        chain.find(event.hits, on_stage=on_stage)
    return {
        "n_hits": int(np.median([event.n_hits for event in events])),
        "n_pairs": int(np.median(pairs[GRAPH_STAGE.name])),
        "n_edges": int(np.median(pairs[FILTER_STAGE.name])),
    }


def profile_of(spec: StageSpec, *, card: ModelCard, typical: Mapping[str, int]) -> dict[str, Sizes]:
    """Return the shapes of a stage's inputs: from one row over the typical event to the card's limits.

    The filter is fastest at a piece of the pairs, as it sees them in process and in a Python step; a container's own
    backend gives it all pairs of an event at once.

    Parameters
    ----------
    spec
        The stage.
    card
        Fixed sizes and limits.
    typical
        What :func:`median_sizes` returns.
    """
    edges, limit = typical["n_edges"], card.limits.max_edges
    if spec is FILTER_STAGE:
        edges, limit = min(typical["n_pairs"], PAIRS_AT_ONCE), card.limits.max_pairs
    largest = {"n_hits": card.limits.max_hits, "n_edges": limit}
    middle = {"n_hits": typical["n_hits"], "n_edges": edges}
    fixed = {"n_columns": len(card.columns)}

    def shape(dims: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)

    return {
        tensor.name: Sizes(
            min=shape(tensor.dims, fixed | dict.fromkeys(largest, 1)),
            opt=shape(
                tensor.dims, fixed | {name: min(max(middle[name], 1), largest[name]) for name in middle}
            ),
            max=shape(tensor.dims, fixed | largest),
        )
        for tensor in spec.inputs
    }


def fits(case: Case, *, spec: StageSpec, profile: Mapping[str, Sizes]) -> bool:
    """Tell whether a stage's engine takes a case: those drawn for the gates may be over a small model's limits."""
    if case.hits.shape[0] > profile[HITS.name].max[0]:
        return False
    edges = profile.get(EDGE_INDEX.name)
    return edges is None or case.edge_index[spec.name].shape[1] <= edges.max[1]


@contextmanager
def _built(source: Path, *, facts: PlanFacts, spec: StageSpec, out: Path) -> Iterator[Engine]:
    """Build an engine aside and load it; it moves to its place, its facts first, where nothing was raised."""
    from tritrack.export.plan_builder import build_plan
    from tritrack.stages.plan_engine import PlanEngine

    with tempfile.TemporaryDirectory(dir=out, prefix=".gate-") as folder:
        plan = Path(folder) / plan_file(spec.name)
        beside = plan.with_name(facts_file(plan.name))
        plan.write_bytes(build_plan(source, profile=facts.profile, timing=out / TIMING_CACHE))
        beside.write_bytes(facts.to_json())
        yield PlanEngine(plan, spec=spec)
        beside.replace(out / beside.name)
        plan.replace(out / plan.name)
