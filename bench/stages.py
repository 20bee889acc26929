"""What each stage costs in process: ``python -m tritrack.bench.stages --out FILE.json EVENTS...``."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer

from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.events.source import read_all
from tritrack.failures import one_sentence
from tritrack.stages.contract import EDGE_INDEX, GRAPH_STAGE, LABELLING_STAGE, StageSpec
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.stage import has_device_form, stage_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tritrack.events.event import Event

CHAIN = "chain"
"""In a stage's place: all of them, from the hits in the host's memory to the labels there."""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One stage on one event.

    Attributes
    ----------
    event_id, n_hits
        The event.
    stage
        The stage, or `CHAIN`.
    n_edges
        Pairs that the stage gives; None for what gives none.
    seconds
        Wall time of each repeat, the warm-up left out.
    """

    event_id: int
    n_hits: int
    stage: str
    n_edges: int | None
    seconds: tuple[float, ...]


def device_functions(pipeline: Pipeline) -> dict[StageSpec, Callable[..., Tensor]]:
    """Return what computes the stages without a network on tensors of a device, for those that have a form for one."""
    card = pipeline.card
    cuts = card.point(pipeline.working_point).cuts
    return {
        spec: stage_function(spec, card=card, cuts=cuts, engine=None, on_device=True)
        for spec in (GRAPH_STAGE, LABELLING_STAGE)
        if has_device_form(spec, cuts=cuts, engine=None)
    }


def time_event(pipeline: Pipeline, event: Event, *, repeats: int) -> list[StageTime]:
    """Run the chain on an event, once to warm up and then ``repeats`` times; a row for each stage, and one of `CHAIN`."""
    seconds: dict[str, list[float]] = defaultdict(list)
    n_edges: dict[str, int | None] = {CHAIN: None}

    def on_stage(stage: str, outputs: dict[str, NDArray[Any]], elapsed: float) -> None:
        seconds[stage].append(elapsed)
        pairs = outputs.get(EDGE_INDEX.name)
        n_edges[stage] = None if pairs is None else pairs.shape[1]

    for _ in range(repeats + 1):
        start = time.perf_counter()
        pipeline.find(event.hits, on_stage=on_stage)
        seconds[CHAIN].append(time.perf_counter() - start)
    return [
        StageTime(
            event_id=event.event_id,
            n_hits=event.n_hits,
            stage=stage,
            n_edges=n_edges[stage],
            seconds=tuple(times[1:]),
        )
        for stage, times in seconds.items()
    ]


def main(
    events: Annotated[list[Path], typer.Argument(help="Events to time the stages on.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    threads: Annotated[int, typer.Option(min=1, help="Threads of each stage.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each event.")] = 5,
) -> None:
    """Time each stage of the chain in process and write JSON."""
    pipeline = Pipeline.load(engines, threads=threads)
    times = [row for event in read_all(events) for row in time_event(pipeline, event, repeats=repeats)]
    result = {
        **describe_machine(),
        "threads": threads,
        "card_sha256": pipeline.card.hash,
        "versions": describe_versions(("tritrack", "numpy", "numba", "onnxruntime")),
        "stages": times,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    for row in times:
        print(
            f"event {row.event_id}, {row.n_hits} hits, {row.stage}: median {np.median(row.seconds) * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
