"""The chain beside a Kalman filter: ``python -m tritrack.bench.physics EVENTS... --out FOLDER``.

Both find the tracks of the same events from the same hits and are judged alike. The figures go to
``FOLDER/physics.json``; `tritrack.bench.pages.physics_page` makes plots and a page of them.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer

from tritrack.bench.finders.ckf import WORKING_POINTS, CkfError, CkfFinder
from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.events.source import find_files, read_all
from tritrack.failures import UsageError, one_sentence
from tritrack.physics.edges import count_edges
from tritrack.physics.intervals import CONFIDENCE, share
from tritrack.physics.losses import count_losses
from tritrack.physics.matching import MIN_COUNTED_HITS, TrackClass, match, pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import SELECTIONS, TARGETS, truth_of
from tritrack.stages.card import WorkingPointName  # noqa: TC001  (typer reads the annotations)
from tritrack.stages.contract import EDGE_INDEX, EDGE_SCORE, ContractError
from tritrack.stages.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from tritrack.bench.finders.ckf import CkfTracks
    from tritrack.events.event import Event
    from tritrack.physics.edges import EdgeCounts
    from tritrack.physics.losses import LossCounts
    from tritrack.physics.metrics import Counts

RESULT_FILE = "physics.json"
CHAIN, CKF = "tritrack", "CKF"
"""Names of the two finders in JSON and plots."""
FITTED_CUTS = {"pT > 1 GeV": (1.0, np.inf), "pT > 1 GeV, |eta| < 2.5": (1.0, 2.5)}
"""The Kalman filter's unmatched tracks are also counted over a fitted pT and within a fitted abs(eta), as its fakes
often are given: by name."""
EDGE_VIEWS = {**{name: (s, 0) for name, s in SELECTIONS.items()}, "targets_skip_one": (TARGETS, 1)}
"""How graphs are judged: the selection, and the hits that a true pair may leave out. The networks are trained
to keep pairs that leave out one, so they are no impurity."""
_WARM_UP_HITS = 2000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finder on one event.

    Attributes
    ----------
    refused
        Why the finder does not take the event; None where it does.
    seconds
        Wall time of each step, in order.
    cpu_seconds
        Processor time of all steps, which a busy machine lengthens less.
    conversion_seconds
        Wall time of handing over hits and tracks, which is none of the finder's.
    counts
        The tracks judged, by selection.
    edges
        The graph of each stage judged, by stage and `EDGE_VIEWS`; empty for a finder without graphs.
    losses
        Where targets were lost, by selection; empty for a finder without graphs.
    fitted
        Tracks within `FITTED_CUTS`, and those of them that match no particle; empty without a fit.
    """

    refused: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    conversion_seconds: float = 0.0
    counts: dict[str, Counts] = field(default_factory=dict)
    edges: dict[str, dict[str, EdgeCounts]] = field(default_factory=dict)
    losses: dict[str, LossCounts] = field(default_factory=dict)
    fitted: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One event and what each finder, by name, made of it."""

    event_id: int
    n_hits: int
    outcomes: dict[str, Outcome]

    def to_json(self) -> dict[str, Any]:
        """Return what is of one event: refusals and times."""
        return {
            "event_id": self.event_id,
            "n_hits": self.n_hits,
            "finders": {
                name: {
                    "refused": outcome.refused,
                    "seconds": outcome.seconds,
                    "cpu_seconds": outcome.cpu_seconds,
                    "conversion_seconds": outcome.conversion_seconds,
                }
                for name, outcome in self.outcomes.items()
            },
        }


def run_chain(pipeline: Pipeline, event: Event) -> Outcome:
    """Find and judge the tracks of one event with the chain."""
    gnn_cut = np.float32(pipeline.card.point(pipeline.working_point).cuts.gnn_cut)
    seconds: dict[str, float] = {}
    graphs: dict[str, NDArray[Any]] = {}

    def on_stage(stage: str, outputs: dict[str, NDArray[Any]], elapsed: float) -> None:
        seconds[stage] = elapsed
        if EDGE_INDEX.name in outputs:
            graphs[stage] = outputs[EDGE_INDEX.name]
        if EDGE_SCORE.name in outputs:  # what the labelling joins
            keep = outputs[EDGE_SCORE.name] >= gnn_cut
            graphs[stage] = next(reversed(graphs.values()))[:, keep]

    start = time.process_time()
    try:
        labels = pipeline.find(event.hits, on_stage=on_stage)
    except ContractError as error:
        return Outcome(refused=str(error))
    cpu = time.process_time() - start
    chosen, pairs = SELECTIONS.values(), pairs_from_labels(labels)
    return Outcome(
        seconds=seconds,
        cpu_seconds=cpu,
        counts={s.name: count(event=event, pairs=pairs, selection=s) for s in chosen},
        edges={
            stage: {
                view: count_edges(event=event, edge_index=edges, selection=s, skip=skip)
                for view, (s, skip) in EDGE_VIEWS.items()
            }
            for stage, edges in graphs.items()
        },
        losses={s.name: count_losses(event=event, graphs=graphs, pairs=pairs, selection=s) for s in chosen},
    )


def run_ckf(find: Callable[[Event], CkfTracks], event: Event) -> Outcome:
    """Find and judge the tracks of one event with a Kalman filter's ``find``."""
    try:
        tracks = find(event)
    except CkfError as error:
        return Outcome(refused=str(error))
    counts = {s.name: count(event=event, pairs=tracks.pairs, selection=s) for s in SELECTIONS.values()}
    matching = match(pairs=tracks.pairs, particle_id=truth_of(event).particle_id)
    pt, eta = tracks.pt[matching.track], tracks.eta[matching.track]
    long_enough = matching.n_hits >= MIN_COUNTED_HITS
    unmatched = matching.track_class != TrackClass.MATCHED
    within = {
        name: long_enough & (pt > min_pt) & (np.abs(eta) < max_eta)
        for name, (min_pt, max_eta) in FITTED_CUTS.items()
    }
    return Outcome(
        seconds=tracks.seconds,
        cpu_seconds=tracks.cpu_seconds,
        conversion_seconds=tracks.conversion_seconds,
        counts=counts,
        fitted={
            name: (int(np.count_nonzero(some)), int(np.count_nonzero(some & unmatched)))
            for name, some in within.items()
        },
    )


def summarise(rows: list[EventRow]) -> dict[str, Any]:
    """Add up events.

    Judged are the events that every finder takes, so that all are judged on the same ones. A finder that takes
    none of them is left out.

    Parameters
    ----------
    rows
        The events, each with the same finders.

    Returns
    -------
    dict
        Plain JSON values: ``n_judged``, and by finder its reports, edges and losses by selection, and its
        unmatched tracks within `FITTED_CUTS`.
    """
    counted = [rows[place] for place in judged(rows)]
    taking = (
        [name for name, outcome in counted[0].outcomes.items() if outcome.refused is None] if counted else []
    )
    finders = {name: _of_finder([row.outcomes[name] for row in counted]) for name in taking}
    return {"n_judged": len(counted), "finders": finders}


def judged(rows: Sequence[EventRow]) -> list[int]:
    """Return the places of the events that every finder takes which takes any; none where no finder does."""
    names = rows[0].outcomes if rows else {}
    taking = [name for name in names if any(row.outcomes[name].refused is None for row in rows)]
    return [
        place
        for place, row in enumerate(rows)
        if taking and all(row.outcomes[name].refused is None for name in taking)
    ]


def _of_finder(outcomes: list[Outcome]) -> dict[str, Any]:
    first = outcomes[0]
    tracks = {name: np.sum([outcome.fitted[name] for outcome in outcomes], axis=0) for name in first.fitted}
    return {
        "reports": {
            key: _total(outcome.counts[key] for outcome in outcomes).report().to_json()
            for key in first.counts
        },
        "edges": {
            stage: {
                view: _total(outcome.edges[stage][view] for outcome in outcomes).to_json() for view in views
            }
            for stage, views in first.edges.items()
        },
        "losses": {
            key: _total(outcome.losses[key] for outcome in outcomes).to_json() for key in first.losses
        },
        "fitted": {
            name: {
                "n_tracks": int(n_tracks),
                "n_unmatched": int(n_unmatched),
                "confidence": CONFIDENCE,
                "unmatched_rate": share(n_unmatched, n_tracks).to_json(),
            }
            for name, (n_tracks, n_unmatched) in tracks.items()
        },
    }


def _total(counts: Iterable[Any]) -> Any:
    first, *others = counts
    for one in others:
        first = first + one
    return first


def _warm_up(pipeline: Pipeline, finder: CkfFinder, event: Event) -> None:
    """Run both once on a part of an event: what is compiled or set up on first use is in no time."""
    some = slice(0, _WARM_UP_HITS)
    few = dataclasses.replace(
        event,
        hits=event.hits[some],
        hit_id=event.hit_id[some],
        modules=event.modules[some],
        truth=None,
        measurements=event.measurements
        and dataclasses.replace(
            event.measurements,
            local=event.measurements.local[some],
            variance=event.measurements.variance[some],
        ),
    )
    try:
        pipeline.find(few.hits)
        finder.find(few)
    except (ContractError, CkfError):
        return  # the event itself is refused too, and there it is counted


def _say(row: EventRow, seconds: float) -> None:
    parts = [
        f"{name} {f'refuses: {outcome.refused}' if outcome.refused else f'{sum(outcome.seconds.values()):.2f} s'}"
        for name, outcome in row.outcomes.items()
    ]
    print(
        f"event {row.event_id}: {row.n_hits} hits, {', '.join(parts)} ({seconds:.1f} s with judging)",
        flush=True,
    )


def main(
    events: Annotated[list[Path], typer.Argument(help="Events with truth and local measurements.")],
    *,
    out: Annotated[Path, typer.Option(help=f"Folder for {RESULT_FILE}.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Of the chain; its card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the chain; the CKF has one.")] = 2,
    ckf: Annotated[
        str, typer.Option(help=f"Working point of the CKF: {' or '.join(WORKING_POINTS)}.")
    ] = "wide",
    title: Annotated[str, typer.Option(help="What events these are, for the page.")] = "",
    page: Annotated[bool, typer.Option("--page", help="Make the plots and the page, too.")] = False,
) -> None:
    """Run the chain and a Kalman filter on the same events, judge both, and write JSON."""
    if ckf not in WORKING_POINTS:
        raise UsageError(f"--ckf: {ckf} given, {' or '.join(WORKING_POINTS)} wanted")
    find_files(events)  # a wrong path shows before the work
    pipeline = Pipeline.load(engines, threads=threads, working_point=working_point)
    finder = CkfFinder(WORKING_POINTS[ckf])
    rows: list[EventRow] = []
    for event in read_all(events):
        truth_of(event)
        if not rows:
            _warm_up(pipeline, finder, event)
        start = time.perf_counter()
        outcomes = {CHAIN: run_chain(pipeline, event), CKF: run_ckf(finder.find, event)}
        rows.append(EventRow(event_id=event.event_id, n_hits=event.n_hits, outcomes=outcomes))
        _say(rows[-1], time.perf_counter() - start)
    result = {
        "title": title,
        "machine": describe_machine(),
        "versions": describe_versions(("tritrack", "numpy", "numba", "onnxruntime", "pyacts")),
        "card": {"name": pipeline.card.name, "sha256": pipeline.card.hash},
        "working_point": pipeline.working_point,
        "cuts": msgspec.to_builtins(pipeline.card.point(pipeline.working_point).cuts),
        "threads": {CHAIN: threads, CKF: 1},
        "ckf": {"working_point": ckf, "settings": dataclasses.asdict(finder.settings)},
        "selections": {s.name: s.meaning for s in SELECTIONS.values()},
        "events": [row.to_json() for row in rows],
        **summarise(rows),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULT_FILE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(f"{path}: written")
    if page:
        from tritrack.bench.pages.physics_page import write_page

        print(f"{write_page([path], out=out)}: written")


if __name__ == "__main__":
    with one_sentence(extra="dev"):
        typer.run(main)
