"""A folder of weights -> a folder of engines, each stage behind its parity gate."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx

from tritrack.export.cases import drawn_cases, event_cases
from tritrack.export.gates import GateResult, gate_chain, gate_graph, gate_labelling, gate_network, require
from tritrack.export.network import export_network
from tritrack.stages.card import CARD_FILE, engine_file
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.networks import run_network
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from tritrack.events.event import Event
    from tritrack.export.cases import Case
    from tritrack.stages.card import ModelCard
    from tritrack.stages.contract import StageSpec

    StageHook = Callable[[str, Sequence[GateResult]], None]

GATES_FILE = "gates.json"


def export_engines(
    *,
    weights: Path,
    out: Path,
    threads: int,
    events: Sequence[Event] = (),
    on_stage: StageHook | None = None,
) -> list[GateResult]:
    """Export the five stages: an ONNX file for each network, the model card, and what the gates measured.

    Parameters
    ----------
    weights
        Folder of weights with its model card.
    out
        Folder to fill. Engines that were there before are removed first; the card comes last, so that a
        folder with a card holds engines that passed.
    threads
        Threads of the engines while they are compared: those that will be served.
    events
        Events to compare on, besides drawn hits, stage by stage and end to end.
    on_stage
        Called with each stage's name and results once it has passed, and with "chain" at the end.

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
    ContractError
        Where an event is over the card's limits.
    """
    card, networks = load_weights(weights)
    out.mkdir(parents=True, exist_ok=True)
    for stale in [out / CARD_FILE, out / GATES_FILE, *(out / engine_file(spec.name) for spec in STAGES)]:
        stale.unlink(missing_ok=True)
    # The networks are the same at every working point, and only their inputs' sizes differ.
    pairs_at = card.point().cuts
    points = card.working_points.values()
    cases = [*drawn_cases(), *event_cases(events, networks=networks, cuts=pairs_at, limits=card.limits)]
    results: list[GateResult] = []
    for spec in STAGES:
        if spec.engine:
            passed = _export_stage(spec, networks=networks, card=card, cases=cases, out=out, threads=threads)
        elif spec.name == "graph":
            graphs = dict.fromkeys((point.cuts.radius, point.cuts.windows) for point in points)
            passed = [
                result
                for radius, windows in graphs
                for result in gate_graph(
                    network=networks["embedding"], radius=radius, windows=windows, cases=cases
                )
            ]
            require(passed)
        else:
            gnn_cuts = sorted({point.cuts.gnn_cut for point in points})
            passed = [result for cut in gnn_cuts for result in gate_labelling(cut=cut)]
            require(passed)
        if on_stage is not None:
            on_stage(spec.name, passed)
        results += passed
    if events:
        engines = {
            spec.name: OnnxEngine(out / engine_file(spec.name), spec=spec, threads=threads)
            for spec in STAGES
            if spec.engine
        }
        modules = {name: partial(run_network, network) for name, network in networks.items()}
        passed = gate_chain(
            Pipeline(card=card, engines=engines),
            reference=Pipeline(card=card, engines=modules),
            events=events,
        )
        require(passed)
        if on_stage is not None:
            on_stage("chain", passed)
        results += passed
    (out / GATES_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    (out / CARD_FILE).write_bytes(card.to_json())
    return results


def _export_stage(
    spec: StageSpec,
    *,
    networks: dict[str, nn.Module],
    card: ModelCard,
    cases: Sequence[Case],
    out: Path,
    threads: int,
) -> list[GateResult]:
    with tempfile.TemporaryDirectory(dir=out, prefix=".gate-") as folder:
        path = Path(folder) / engine_file(spec.name)
        onnx.save_model(export_network(networks[spec.name], spec=spec, card=card), path)
        engine = OnnxEngine(path, spec=spec, threads=threads)
        results = gate_network(engine, spec=spec, network=networks[spec.name], cases=cases)
        require(results)
        path.replace(out / engine_file(spec.name))
    return results
