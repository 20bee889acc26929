"""The memory that one event takes: ``python -m tritrack.bench.costs.peak HITS.npy --engines FOLDER``, answered in JSON.

A process of its own for each event: an allocator keeps what an earlier one took. Linux only.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer

from tritrack.bench.costs.sizes import window
from tritrack.failures import one_sentence
from tritrack.stages.card import WorkingPointName  # noqa: TC001 (typer reads the annotations)
from tritrack.stages.contract import EDGE_INDEX, ContractError
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.placement import lacks_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

WARM_UP_HITS = 2_000
"""Hits that load what is loaded at a first call: compiled loops, an engine's pools."""

_PROCESS = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Memory of the chain on one event.

    Attributes
    ----------
    base_bytes
        What the process holds before the event: libraries, engines, compiled loops.
    stage_bytes
        By stage, its peak above what was there when it began.
    chain_bytes
        The chain's peak above ``base_bytes``: the tensors between the stages count, too.
    n_pairs, n_edges
        Pairs that the graph and the filter give; None where the chain did not get so far.
    refused
        Why the chain does not take the event; None where it does.
    """

    base_bytes: int
    stage_bytes: dict[str, int] = field(default_factory=dict)
    chain_bytes: int = 0
    n_pairs: int | None = None
    n_edges: int | None = None
    refused: str | None = None


def begin() -> int:
    """Give back what is free, forget the peak so far, and return the bytes that the process holds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone keeps so much that it needs one
    if trim is not None:
        trim(0)
    (_PROCESS / "clear_refs").write_text("5")
    return _status("VmRSS")


def highest() -> int:
    """Return the most bytes that the process held since :func:`begin`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_PROCESS / 'status'}: has no {name}")


def measure_peak(pipeline: Pipeline, hits: NDArray[np.float32]) -> Peak:
    """Run the chain once on an event; what a first call loads should be loaded."""
    base = held = begin()
    stage_bytes: dict[str, int] = {}
    peaks: list[int] = []
    n_pairs: list[int] = []

    def on_stage(stage: str, outputs: dict[str, NDArray[Any]], _: float) -> None:
        nonlocal held
        peaks.append(highest())
        stage_bytes[stage] = max(peaks[-1] - held, 0)
        if EDGE_INDEX.name in outputs:
            n_pairs.append(outputs[EDGE_INDEX.name].shape[1])
        held = begin()

    refused = None
    try:
        pipeline.find(hits, on_stage=on_stage)
    except ContractError as error:
        refused = str(error)
    except Exception as error:
        if not lacks_memory(error):
            raise
        refused = f"no memory: {error}"
    n_found, n_kept, *_ = (*n_pairs, None, None)
    return Peak(
        base_bytes=base,
        stage_bytes=stage_bytes,
        chain_bytes=max([*peaks, base]) - base,
        n_pairs=n_found,
        n_edges=n_kept,
        refused=refused,
    )


def main(
    hits: Annotated[Path, typer.Argument(help="HITS, a .npy file of float32 [n_hits, 3].")],
    *,
    engines: Annotated[Path, typer.Option(help="Folder of engines.")],
    working_point: Annotated[WorkingPointName | None, typer.Option(help="The cuts.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine and stage.")] = 2,
) -> None:
    """Run the chain on one event and write its memory to stdout."""
    pipeline = Pipeline.load(engines, threads=threads, working_point=working_point)
    event: NDArray[np.float32] = np.load(hits)
    pipeline.find(window(event, n_hits=WARM_UP_HITS)[0])
    print(msgspec.json.encode(measure_peak(pipeline, event)).decode())


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
