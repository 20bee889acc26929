"""A folder of weights -> a folder of engines, each stage behind its parity gate."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx

from tritrack.export.cases import drawn_cases, event_cases
from tritrack.export.foreign import (
    ForeignError,
    gate_foreign,
    gate_orders,
    join_networks,
    load_wrapped,
    wrap_foreign,
)
from tritrack.export.gates import (
    GateResult,
    gate_chain,
    gate_graph,
    gate_labelling,
    gate_network,
    gate_physics,
    require,
)
from tritrack.export.joined import joined_network
from tritrack.export.network import export_network
from tritrack.export.precision import typed_network
from tritrack.stages.card import CARD_FILE, engine_file
from tritrack.stages.contract import EMBEDDING_STAGE, GRAPH_STAGE, STAGES
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.networks import run_network
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import facts_file, plan_file
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from tritrack.events.event import Event
    from tritrack.export.cases import Case
    from tritrack.export.edge_sum import Rendering
    from tritrack.export.foreign import Foreign
    from tritrack.stages.card import ModelCard, Precision
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine

    StageHook = Callable[[str, Sequence[GateResult]], None]
    Passed = tuple[str, list[GateResult]]
    """A stage's name, or what else was compared, and its comparisons."""

GATES_FILE = "gates.json"


class FolderError(ValueError):
    """A folder to fill that holds what is read."""


def export_engines(
    *,
    weights: Path | None,
    out: Path,
    threads: int,
    precision: Precision = "fp32",
    edge_sum: Rendering = "sorted",
    events: Sequence[Event] = (),
    foreign: Foreign | None = None,
    on_stage: StageHook | None = None,
) -> list[GateResult]:
    """Export the five stages: an ONNX file for each network, the model card, and what the gates measured.

    Parameters
    ----------
    weights
        Folder of weights with its model card; None where every network is foreign.
    out
        Folder to fill. Engines that were there before are removed first; the card comes last, so that a
        folder with a card holds engines that passed.
    threads
        Threads of the engines while they are compared: those that will be served.
    precision
        What the networks' inner layers compute in (see `tritrack.export.precision`).
    edge_sum
        How the sum over edges is written: "sorted" for a CPU, "scatter" for a GPU and TensorRT.
    events
        Events to compare on, besides drawn hits, stage by stage and end to end; in 16 bits with truth.
    foreign
        Files from elsewhere that stand for networks, and the card to export in the place of the weights' own. A chain
        with such has no reference: its events are compared with the same hits in another order.
    on_stage
        Called with each stage's name and results once it has passed, and at the end with "chain", in 16 bits
        with "physics".

    Returns
    -------
    list of GateResult
        All comparisons, in the order of the stages.

    Raises
    ------
    CardError
        Where the weights cannot be used.
    GateError
        Where a stage does not compute what its reference computes; its engine is not left in ``out``.
    ForeignError
        Where a file from elsewhere does not fit; it is not left in ``out`` either.
    ContractError
        Where an event is over the card's limits.
    PhysicsError
        Where an event that the physics is compared on has no truth.
    FolderError
        Where ``out`` holds what is read.
    """
    check_out(out, reads=[weights, *(foreign.files.values() if foreign is not None else ())])
    if foreign is not None:
        card, networks = join_networks(foreign, weights)
    elif weights is not None:
        card, networks = load_weights(weights)
    else:
        raise ForeignError("export: neither weights nor files of networks from elsewhere are given")
    passed = _export(
        card=card,
        networks=networks,
        out=out,
        threads=threads,
        precision=precision,
        edge_sum=edge_sum,
        events=events,
        foreign=foreign,
    )
    return finish_engines(out, card=card, passed=passed, on_stage=on_stage)


def _export(
    *,
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    out: Path,
    threads: int,
    precision: Precision,
    edge_sum: Rendering,
    events: Sequence[Event],
    foreign: Foreign | None,
) -> Iterator[Passed]:
    """Export the stages one after the other, and yield each that has passed."""
    cases = drawn_cases()
    if foreign is None:
        # The networks are the same at every working point, and only their inputs' sizes differ.
        cases += event_cases(events, networks=networks, cuts=card.point().cuts, limits=card.limits)
    clear_engines(out)
    engines: dict[str, Engine] = {}
    for spec in STAGES:
        name = spec.name
        if name in networks:
            typed = typed_network(joined_network(networks[name]), precision)
            model = export_network(typed, spec=spec, card=card, rendering=edge_sum, precision=precision)
            with _written(model, spec, out=out) as path:
                engines[name] = _runnable(path, spec, typed, precision, threads=threads)
                passed = gate_network(
                    engines[name], spec=spec, network=networks[name], cases=cases, precision=precision
                )
                require(passed)
        elif foreign is not None and spec.engine:
            with _written(wrap_foreign(foreign, spec=spec, card=card), spec, out=out) as path:
                engines[name] = load_wrapped(path, spec=spec, threads=threads)
                passed = gate_foreign(engines[name], spec=spec, card=card, cases=cases)
                require(passed)
        else:
            network = networks.get(EMBEDDING_STAGE.name)
            embed = partial(run_network, network) if network is not None else engines[EMBEDDING_STAGE.name]
            passed = gate_compiled(spec, card=card, embed=embed, cases=cases)
        yield name, passed
    if events and foreign is not None:
        passed = gate_orders(Pipeline(card=card, engines=engines), events)
        require(passed)
        yield "chain", passed
    elif events:
        yield gate_events(engines, card=card, networks=networks, precision=precision, events=events)


def check_out(out: Path, *, reads: Iterable[Path | None]) -> None:
    """Refuse a folder for engines that holds what they are made from (raises FolderError): it is cleared first."""
    for path in reads:
        if path is not None and out.resolve() == (path if path.is_dir() else path.parent).resolve():
            raise FolderError(
                f"export: {out} is to be filled anew and is read from ({path}); take another folder"
            )


def clear_engines(out: Path) -> None:
    """Make a folder for engines, and remove those that are there: the card first."""
    out.mkdir(parents=True, exist_ok=True)
    files = [name for spec in STAGES for name in (engine_file(spec.name), plan_file(spec.name))]
    facts = [facts_file(plan_file(spec.name)) for spec in STAGES]
    for stale in (CARD_FILE, GATES_FILE, *files, *facts):
        (out / stale).unlink(missing_ok=True)


def finish_engines(
    out: Path, *, card: ModelCard, passed: Iterable[Passed], on_stage: StageHook | None
) -> list[GateResult]:
    """Let every stage be exported, write what the gates measured, and the card last; return all comparisons."""
    results: list[GateResult] = []
    for name, of_stage in passed:
        results += of_stage
        if on_stage is not None:
            on_stage(name, of_stage)
    (out / GATES_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    (out / CARD_FILE).write_bytes(card.to_json())
    return results


def gate_compiled(
    spec: StageSpec, *, card: ModelCard, embed: Engine, cases: Sequence[Case]
) -> list[GateResult]:
    """Gate a stage without a network, graph or labelling, at the cuts of every working point (raises GateError)."""
    points = card.working_points.values()
    if spec is GRAPH_STAGE:
        all_cuts = [point.cuts for point in points]
        graphs = {(cuts.graph, cuts.radius, cuts.windows, cuts.k): cuts for cuts in all_cuts}
        results = [
            result for cuts in graphs.values() for result in gate_graph(embed=embed, cuts=cuts, cases=cases)
        ]
    else:
        gnn_cuts = sorted({point.cuts.gnn_cut for point in points})
        results = [result for cut in gnn_cuts for result in gate_labelling(cut=cut)]
    require(results)
    return results


def gate_events(
    engines: Mapping[str, Engine],
    *,
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    precision: Precision,
    events: Sequence[Event],
    device: str | None = None,
) -> Passed:
    """Gate the chain, on the device where it will be, on events: its tracks in fp32, its physics in 16 bits.

    The reference is on the host. Raises GateError, PhysicsError.
    """
    chain = Pipeline(card=card, engines=engines, device=device)
    modules = {name: partial(run_network, network) for name, network in networks.items()}
    reference = Pipeline(card=card, engines=modules)
    gate, name = (gate_chain, "chain") if precision == "fp32" else (gate_physics, "physics")
    results = gate(chain, reference=reference, events=events)
    require(results)
    return name, results


@contextmanager
def _written(model: onnx.ModelProto, spec: StageSpec, *, out: Path) -> Iterator[Path]:
    """Write a model aside, and move it to its place where nothing was raised."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".gate-") as folder:
        path = Path(folder) / engine_file(spec.name)
        onnx.save_model(model, path)
        yield path
        path.replace(out / engine_file(spec.name))


def _runnable(path: Path, spec: StageSpec, typed: nn.Module, precision: Precision, *, threads: int) -> Engine:
    # ONNX Runtime has no bfloat16 layers on the CPU: there the module that was exported stands for its file.
    if precision == "bf16":
        return partial(run_network, typed)
    return OnnxEngine(path, spec=spec, threads=threads)
