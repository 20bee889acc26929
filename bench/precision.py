"""What 16 bits cost in physics: ``python -m tritrack.bench.precision --out FILE.json EVENTS...``.

The same chain with the networks in fp32 (torch, the reference), with the fp16 files in ONNX Runtime, and with the
modules that the bf16 files are exported from in torch. All of it on the CPU, where ONNX Runtime computes most fp16
layers in float32 between rounded inputs and outputs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import onnx
import typer

from tritrack.bench.result import Header, make_header, write_result
from tritrack.events.source import read_all
from tritrack.export.gates import PHYSICS_TOLERANCE, compare_rates, judge
from tritrack.export.joined import joined_network
from tritrack.export.network import export_network
from tritrack.export.precision import typed_network
from tritrack.failures import UsageError, one_sentence
from tritrack.stages.card import WorkingPointName, engine_file
from tritrack.stages.contract import STAGES
from tritrack.stages.device_engine import DeviceEngine
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.networks import run_network
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from tritrack.events.event import Event
    from tritrack.export.edge_sum import Rendering
    from tritrack.physics.metrics import Report
    from tritrack.stages.card import ModelCard, Precision
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Result:
    """The physics of each variant.

    Attributes
    ----------
    header
        ``threads`` are ONNX Runtime's.
    events, n_hits
        Which events, and their hits together.
    tolerance
        Of the gates.
    variants
        A row each, fp32 first.
    """

    header: Header
    events: tuple[int, ...]
    n_hits: int
    tolerance: float
    variants: tuple[dict[str, Any], ...]


VARIANTS: tuple[tuple[Precision, str], ...] = (("fp16", "onnx"), ("bf16", "torch"))
"""Precision and library of what is compared with fp32 in torch."""


def chains(
    card: ModelCard, networks: Mapping[str, nn.Module], *, threads: int, point: WorkingPointName | None
) -> Iterator[tuple[Precision, str, Pipeline]]:
    """Yield each variant's precision, library and chain."""
    for precision, library in VARIANTS:
        typed = {
            name: typed_network(joined_network(network), precision) for name, network in networks.items()
        }
        engines: dict[str, Engine] = {name: partial(run_network, network) for name, network in typed.items()}
        if library == "onnx":
            engines = {
                spec.name: in_onnx(typed[spec.name], spec, card, precision=precision, threads=threads)
                for spec in STAGES
                if spec.engine
            }
        yield precision, library, Pipeline(card=card, engines=engines, working_point=point)


def in_onnx(
    network: nn.Module,
    spec: StageSpec,
    card: ModelCard,
    *,
    precision: Precision = "fp32",
    rendering: Rendering = "sorted",
    threads: int,
    device: str | None = None,
) -> Engine:
    """Export the network of a stage and load it in ONNX Runtime, on a device or the host; no file is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / engine_file(spec.name)
        model = export_network(network, spec=spec, card=card, rendering=rendering, precision=precision)
        onnx.save_model(model, path)
        if device is not None:
            return DeviceEngine(path, spec=spec, threads=threads, device=device)
        return OnnxEngine(path, spec=spec, threads=threads)


def compare(
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    events: Sequence[Event],
    *,
    threads: int,
    point: WorkingPointName | None = None,
) -> Iterator[dict[str, Any]]:
    """Judge every variant on events, one after the other; the first row is the reference's.

    A variant may be the default where neither efficiency nor fake rate differs by more than
    `tritrack.export.gates.PHYSICS_TOLERANCE` from the reference's.
    """
    modules = {name: partial(run_network, network) for name, network in networks.items()}
    reference = judge(Pipeline(card=card, engines=modules, working_point=point), events)
    yield _row("fp32", "torch", reference)
    for precision, library, chain in chains(card, networks, threads=threads, point=point):
        report = judge(chain, events)
        results = compare_rates(report, reference)
        yield _row(precision, library, report) | {
            "efficiency_difference": results[0].deviation,
            "fake_rate_difference": results[1].deviation,
            "may_be_default": all(result.passed for result in results),
        }


def _row(precision: Precision, library: str, report: Report) -> dict[str, Any]:
    return {"precision": precision, "library": library, "n_tracks": report.n_tracks, **report.rates.to_json()}


def _line(row: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{name} {row[name]['value']:.4f}" for name in ("efficiency", "fake_rate"))
    verdict = "" if "may_be_default" not in row else f", may be the default: {row['may_be_default']}"
    return f"{row['precision']} in {row['library']}: {rates}{verdict}"


def main(
    events: Annotated[list[Path], typer.Argument(help="Events with truth.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    weights: Annotated[Path, typer.Option(help="Folder of weights.")] = Path("weights/default"),
    first: Annotated[int, typer.Option(min=1, help="Events that are taken, the first of those given.")] = 20,
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="The cuts; the model's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 2,
) -> None:
    """Compare the physics of fp16 and bf16 with that of fp32 and write JSON."""
    card, networks = load_weights(weights)
    taken = list(islice(read_all(events), first))
    if not taken:
        raise UsageError("bench.precision: the event files hold no events")
    header = make_header(
        "precision",
        card=card,
        working_point=working_point,
        threads=threads,
        packages=("tritrack", "numpy", "onnxruntime", "torch"),
    )
    rows: list[dict[str, Any]] = []
    for row in compare(card, networks, taken, threads=threads, point=working_point):
        rows.append(row)
        print(_line(row), flush=True)
        result = Result(
            header=header,
            events=tuple(event.event_id for event in taken),
            n_hits=sum(event.n_hits for event in taken),
            tolerance=PHYSICS_TOLERANCE,
            variants=tuple(rows),
        )
        write_result(result, out)  # after each: they take minutes


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
