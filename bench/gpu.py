"""What each stage costs on a GPU: ``python -m tritrack.bench.gpu --engines ENGINES --out FOLDER EVENTS...``.

The chain in process with tensors that stay on the device wherever a stage has a form for it; of TensorRT's engines also
with arrays of the host between the stages; and graph and labelling alone on tensors. The tracks are compared with those
of the chain on the host: where more of an event's differ than an engine's gates let, it fails.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
import typer

from tritrack.bench.machine import describe_machine, describe_versions, gpu_for
from tritrack.bench.stages import StageTime, device_functions, time_event
from tritrack.events.files import replacing
from tritrack.events.source import read_all
from tritrack.export.gates import TRACK_TOLERANCE, share_of_other_tracks
from tritrack.failures import one_sentence
from tritrack.stages.contract import GRAPH_STAGE, HITS
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import plan_file, read_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tritrack.events.event import Event


class OtherTracksError(RuntimeError):
    """Tracks of the chain on the device that are not those of the host's."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The tracks of one event.

    Attributes
    ----------
    event_id, n_hits
        The event.
    n_tracks
        Tracks of the chain with arrays of the host.
    other
        Share of the tracks that are not the same sets of hits in the device's chain.
    """

    event_id: int
    n_hits: int
    n_tracks: int
    other: float


def compare_tracks(here: Pipeline, there: Pipeline, event: Event) -> Tracks:
    """Find the tracks of an event in the host's chain and in the device's."""
    labels = here.find(event.hits)
    return Tracks(
        event_id=event.event_id,
        n_hits=event.n_hits,
        n_tracks=int(labels.max(initial=-1)) + 1,
        other=share_of_other_tracks(there.find(event.hits), labels),
    )


def require_same_tracks(compared: Sequence[Tracks]) -> None:
    """Raise OtherTracksError where more of an event's tracks differ than an engine's gates let."""
    for event in compared:
        if event.other > TRACK_TOLERANCE:
            raise OtherTracksError(
                f"event {event.event_id}, {event.n_hits} hits: {event.other:.3%} of the tracks are others on the GPU "
                f"than on the host, {TRACK_TOLERANCE:.1%} may be"
            )


def time_device_chain(there: Pipeline, event: Event, *, repeats: int) -> list[StageTime]:
    """Run the chain as a server on its device does, once to warm up and then ``repeats`` times.

    The stages are not synchronised with the device but where they wait for it themselves, as all that run there do:
    TensorRT's engines at their end, the others when they learn how many pairs there are.
    """
    where = {stage.spec.name: f", on {stage.device or 'the host'}" for stage in there.stages}
    return [
        replace(row, stage=f"{row.stage}, device chain{where.get(row.stage, '')}")
        for row in time_event(there, event, repeats=repeats)
    ]


def time_device_stages(pipeline: Pipeline, event: Event, *, device: str, repeats: int) -> list[StageTime]:
    """Run graph and labelling on a device's tensors, once to warm up and then ``repeats`` times.

    The inputs are the chain's own; copies to and from the device are not counted. A labelling without a form for a
    device is left out.
    """
    tensors: dict[str, NDArray[Any]] = {HITS.name: event.hits}
    for stage in pipeline.stages[:-1]:
        tensors |= stage(tensors)
    there = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
    rows = []
    for spec, function in device_functions(pipeline).items():
        run = partial(function, *(there[tensor.name] for tensor in spec.inputs))
        rows.append(
            StageTime(
                event_id=event.event_id,
                n_hits=event.n_hits,
                stage=f"{spec.name} on {device}",
                n_edges=run().shape[1] if spec is GRAPH_STAGE else None,
                seconds=_seconds(run, device=device, repeats=repeats),
            )
        )
    return rows


def _seconds(function: Callable[[], Tensor], *, device: str, repeats: int) -> tuple[float, ...]:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[1:])


def main(
    events: Annotated[list[Path], typer.Argument(help="Events to time the stages on.")],
    *,
    engines: Annotated[
        Path, typer.Option(help="Folder of TensorRT engines, or of ONNX engines with scattered sums.")
    ] = Path("build/plans"),
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the JSON file, gpu-NAME-tensorrt-PRECISION.json or gpu-NAME-onnx.json, after the GPU."
        ),
    ],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the stages on the host.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each event.")] = 20,
) -> None:
    """Time the chain with these engines, and the device's own stages, and write JSON."""
    gpu = gpu_for(engines, asked="bench.gpu")
    plan = engines / plan_file("gnn")
    facts = read_facts(plan) if plan.exists() else None
    here = Pipeline.load(engines, threads=threads)
    there = Pipeline.load(engines, threads=threads, device="cuda:0")
    result = {
        **describe_machine(),
        "gpu": gpu,
        "tensorrt": None if facts is None else facts.tensorrt,
        "precision": None if facts is None else facts.precision,
        "threads": threads,
        "card_sha256": here.card.hash,
        "working_point": here.working_point,
        "versions": describe_versions(("tritrack", "numpy", "numba", "onnxruntime", "torch")),
    }
    engine = "onnx" if facts is None else f"tensorrt {facts.precision}"
    name = re.sub(r"[^a-z0-9]+", "-", f"gpu {gpu.name} {engine}".lower())
    times: list[StageTime] = []
    compared: list[Tracks] = []
    out.mkdir(parents=True, exist_ok=True)
    for event in read_all(events):
        rows = time_device_chain(there, event, repeats=repeats)
        rows += time_device_stages(here, event, device="cuda", repeats=repeats)
        if facts is not None:  # ONNX Runtime would take the host's arrays on the host
            rows += time_event(here, event, repeats=repeats)
        times += rows
        compared.append(compare_tracks(here, there, event))
        # Anew after each event: what a run that is stopped had measured stays.
        figures = msgspec.json.encode(result | {"stages": times, "tracks": compared})
        with replacing(out / f"{name}.json") as part:
            part.write_bytes(msgspec.json.format(figures, indent=2) + b"\n")
        for row in rows:
            print(
                f"event {row.event_id}, {row.n_hits} hits, {row.stage}: {np.median(row.seconds) * 1e3:.2f} ms"
            )
        print(
            f"event {event.event_id}: {compared[-1].other:.3%} of the tracks are not the host's", flush=True
        )
    require_same_tracks(compared)


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
