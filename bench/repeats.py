"""Whether an engine answers twice alike: ``python -m tritrack.bench.repeats EVENTS... --engines FOLDER --out FILE.json``.

Engines that add with atomics, as the sums over edges are on a GPU, add in another order each time. Each event goes
through the chain again and again, and what changes is counted: scores, edges that a cut keeps, and tracks. Where more
of all events' tracks change than an engine's gates let differ, it fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tritrack.bench.event_sets import read_sets
from tritrack.bench.machine import gpu_of
from tritrack.bench.result import Header, make_header, write_result
from tritrack.ensemble_repo.plan import DeviceKind  # noqa: TC001 (typer reads the annotations)
from tritrack.export.gates import TRACK_TOLERANCE, share_of_other_tracks
from tritrack.failures import one_sentence
from tritrack.stages.card import WorkingPointName  # noqa: TC001
from tritrack.stages.contract import EDGE_INDEX, EDGE_SCORE
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.placement import find_device, to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tritrack.events.event import Event


class RepeatError(RuntimeError):
    """Tracks that change from run to run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One event, again and again.

    Attributes
    ----------
    events, event_id, n_hits, n_edges
        Name of the set, the event, and the edges that the filter left in the first run.
    score_spread
        Largest difference between any two runs' scores of an edge, in runs that left the first one's edges.
    other_edges
        Most edges of a run that are not the first one's, or the other way round.
    n_tracks
        Tracks of the first run.
    other_tracks
        Largest share of tracks of a run that are not the same sets of hits as in the first.
    """

    events: str
    event_id: int
    n_hits: int
    n_edges: int
    score_spread: float
    other_edges: int
    n_tracks: int
    other_tracks: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What changes from run to run.

    Attributes
    ----------
    header
        What it was made with.
    gpu
        Name of the GPU that the chain ran on; None on a processor.
    repeats
        Runs of each event.
    rows
        The events.
    """

    header: Header
    gpu: str | None
    repeats: int
    rows: tuple[Row, ...]

    def ratios(self) -> dict[str, float]:
        """Return the share of tracks that are the same in every run, or in all but what changes with the worst one."""
        return {"tracks that stay": 1.0 - changing_share(self.rows)}


def repeat_event(chain: Pipeline, event: Event, *, events: str, repeats: int) -> Row:
    """Run the chain on an event so often, and return what changed (raises ContractError)."""
    labels, edges, scores = _run(chain, event)
    low, high = scores.copy(), scores.copy()
    other_edges, other_tracks = 0, 0.0
    for _ in range(repeats - 1):
        some_labels, some_edges, some_scores = _run(chain, event)
        other_tracks = max(other_tracks, share_of_other_tracks(some_labels, labels))
        if np.array_equal(some_edges, edges):
            np.minimum(low, some_scores, out=low)
            np.maximum(high, some_scores, out=high)
        else:
            changed = np.setxor1d(
                _keys(some_edges, event.n_hits), _keys(edges, event.n_hits), assume_unique=True
            )
            other_edges = max(other_edges, changed.size)
    return Row(
        events=events,
        event_id=event.event_id,
        n_hits=event.n_hits,
        n_edges=edges.shape[1],
        score_spread=float(np.max(high - low, initial=0.0)),
        other_edges=other_edges,
        n_tracks=int(labels.max(initial=-1)) + 1,
        other_tracks=other_tracks,
    )


def changing_share(rows: Sequence[Row]) -> float:
    """Return the share of all events' tracks that change in each event's worst run; 0 where there are no tracks."""
    n_tracks = sum(row.n_tracks for row in rows)
    return sum(row.n_tracks * row.other_tracks for row in rows) / n_tracks if n_tracks else 0.0


def _run(chain: Pipeline, event: Event) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return labels, and edges and scores as the GNN had and gave them."""
    seen: dict[str, Any] = {}
    labels = chain.find(event.hits, on_stage=lambda _, outputs, __: seen.update(outputs))
    return labels, to_host(seen[EDGE_INDEX.name]), to_host(seen[EDGE_SCORE.name])


def _keys(edges: NDArray[np.int32], n_hits: int) -> NDArray[np.int64]:
    inner, outer = edges.astype(np.int64)
    keys: NDArray[np.int64] = inner * n_hits + outer
    return keys


def require_steady(rows: Sequence[Row]) -> None:
    """Raise RepeatError where more of the tracks change than an engine's gates let differ."""
    share = changing_share(rows)
    if share > TRACK_TOLERANCE:
        raise RepeatError(f"{share:.3%} of the tracks change from run to run, {TRACK_TOLERANCE:.1%} may")


def main(
    events: Annotated[list[Path], typer.Argument(help="Sets of events, a folder each.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Working point; the card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine and stage.")] = 2,
    first: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Events that are taken of a set, the first ones; given again for the next set, the last holds on.",
        ),
    ] = [5],  # noqa: B006 (typer reads it, nothing writes to it)
    repeats: Annotated[int, typer.Option(min=2, help="Runs of each event.")] = 100,
    device: Annotated[DeviceKind, typer.Option(help="Where the chain computes.")] = "cpu",
) -> None:
    """Run the chain on events again and again, count what changes, and write JSON."""
    gpu = gpu_of(device, engines=engines)
    sets = read_sets(events, first=first)
    chain = Pipeline.load(
        engines, threads=threads, working_point=working_point, device=find_device(device.upper(), 0)
    )
    rows = [
        repeat_event(chain, event, events=name, repeats=repeats)
        for name, some in sets.items()
        for event in some
    ]
    result = Result(
        header=make_header(
            "repeats",
            card=chain.card,
            working_point=working_point,
            threads=threads,
            packages=("tritrack", "numpy", "numba", "onnxruntime"),
        ),
        gpu=None if gpu is None else gpu.name,
        repeats=repeats,
        rows=tuple(rows),
    )
    write_result(result, out)
    for row in rows:
        print(
            f"{row.events}, event {row.event_id}, {row.n_hits} hits, {repeats} runs: scores of {row.n_edges} edges "
            f"differ by {row.score_spread:.1e}, {row.other_edges} edges, {row.other_tracks:.3%} of the tracks"
        )
    require_steady(rows)


if __name__ == "__main__":
    with one_sentence(extra="export"):
        typer.run(main)
