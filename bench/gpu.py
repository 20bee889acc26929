"""What each stage costs on a GPU: ``python -m tritrack.bench.gpu --engines ENGINES --out FOLDER EVENTS...``.

The chain in process with tensors that stay on the device wherever a stage has a form for it; of TensorRT's engines also
with arrays of the host between the stages; and graph and labelling alone on tensors. The tracks are compared with those
of the chain on the host: where more of an event's differ than an engine's gates let, it fails.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
import typer

from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.bench.stages import StageTime, device_functions, time_event
from tritrack.events.source import read_all
from tritrack.export.gates import TRACK_TOLERANCE, share_of_other_tracks
from tritrack.failures import UsageError, one_sentence
from tritrack.stages.contract import GRAPH_STAGE, HITS
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import find_gpu, plan_file, read_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tritrack.events.event import Event


def time_device_chain(
    engines: Path, event: Event, *, threads: int, device: str, repeats: int
) -> list[StageTime]:
    """Run the chain as a server on that device does, once to warm up and then ``repeats`` times.

    The stages are not synchronised with the device but where they wait for it themselves, as all that run there do:
    TensorRT's engines at their end, the others when they learn how many pairs there are.
    """
    pipeline = Pipeline.load(engines, threads=threads, device=device)
    where = {stage.spec.name: stage.device or "the host" for stage in pipeline.stages}
    return [
        replace(row, stage=f"{row.stage}, device chain, on {where[row.stage]}")
        for row in time_event(pipeline, event, repeats=repeats)
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
    gpu = find_gpu()
    if gpu is None or not torch.cuda.is_available():
        raise UsageError("bench.gpu: there is no GPU here, or torch cannot use it")
    plan = engines / plan_file("gnn")
    facts = read_facts(plan) if plan.exists() else None
    pipeline = Pipeline.load(engines, threads=threads)
    times = []
    for event in read_all(events):
        if facts is not None:  # ONNX Runtime would take the host's arrays on the host
            times += time_event(pipeline, event, repeats=repeats)
        times += time_device_chain(engines, event, threads=threads, device="cuda:0", repeats=repeats)
        times += time_device_stages(pipeline, event, device="cuda", repeats=repeats)
    for row in times:
        print(f"event {row.event_id}, {row.n_hits} hits, {row.stage}: {np.median(row.seconds) * 1e3:.2f} ms")
    result = {
        **describe_machine(),
        "gpu": gpu,
        "tensorrt": None if facts is None else facts.tensorrt,
        "precision": None if facts is None else facts.precision,
        "threads": threads,
        "card_sha256": pipeline.card.hash,
        "working_point": pipeline.working_point,
        "versions": describe_versions(("tritrack", "numpy", "numba", "onnxruntime", "torch")),
        "stages": times,
    }
    engine = "onnx" if facts is None else f"tensorrt {facts.precision}"
    name = re.sub(r"[^a-z0-9]+", "-", f"gpu {gpu.name} {engine}".lower())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
