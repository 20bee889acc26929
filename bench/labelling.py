"""What the labellings make of the same scores: ``python -m tritrack.bench.labelling --out FILE.json EVENTS...``.

Each labelling is judged at its own best cut, chosen on one half of the events, on the other half.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tritrack.bench.result import Header, make_header, write_result
from tritrack.events.event import EventError
from tritrack.events.source import read_all
from tritrack.failures import one_sentence
from tritrack.physics.matching import MIN_COUNTED_HITS, match, pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import COMPARISON, TARGETS, truth_of
from tritrack.stages.card import LabellingMethod  # noqa: TC001 (read when a row is decoded)
from tritrack.stages.contract import EDGE_INDEX, EDGE_SCORE, HITS, NO_TRACK
from tritrack.stages.labelling import LABELLINGS
from tritrack.stages.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.physics.intervals import Share

CUTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The cuts that are tried."""


@dataclass(frozen=True, kw_only=True)
class ScoredEvent:
    """An event and what the labelling gets of it.

    Attributes
    ----------
    event
        With truth.
    edge_index, edge_score
        See the contract.
    """

    event: Event
    edge_index: NDArray[np.int32]
    edge_score: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One labelling at one cut; the rates are those of `tritrack.physics.metrics`, None of nothing.

    Attributes
    ----------
    labelling, cut
        The method and the lowest score that it counts.
    efficiency, comparison_efficiency
        Of the targets and of the comparison selection.
    perfect_efficiency
        Of the targets.
    fake_rate, fragment_rate, duplicate_rate, unmatched_rate
        Of the tracks with at least 5 hits.
    purity
        Mean over these of the share of hits that are the leading particle's.
    hits_on_tracks
        Share of all hits.
    seconds
        Median time for an event, in one thread.
    """

    labelling: LabellingMethod
    cut: float
    efficiency: float | None
    comparison_efficiency: float | None
    perfect_efficiency: float | None
    fake_rate: float | None
    fragment_rate: float | None
    duplicate_rate: float | None
    unmatched_rate: float | None
    purity: float | None
    hits_on_tracks: float
    seconds: float

    @property
    def merit(self) -> float:
        """What a cut is chosen by."""
        return (self.efficiency or 0.0) - (self.fake_rate or 0.0) - (self.duplicate_rate or 0.0)


@dataclass(frozen=True, kw_only=True)
class Result:
    """All labellings on the same scores.

    Attributes
    ----------
    header
        ``threads`` are those of the networks and of the compiled loops.
    n_hits
        Of each event.
    judged
        Each labelling at its best cut, on the second half of the events.
    scanned
        Each at all cuts, on the first half.
    """

    header: Header
    n_hits: tuple[int, ...]
    judged: tuple[Row, ...]
    scanned: tuple[Row, ...]


def score(pipeline: Pipeline, events: Iterable[Event]) -> list[ScoredEvent]:
    """Run the chain up to the labelling.

    Raises
    ------
    PhysicsError
        Where an event has no truth.
    """
    scored = []
    for event in events:
        truth_of(event)
        tensors: dict[str, NDArray[Any]] = {HITS.name: event.hits}
        for stage in pipeline.stages[:-1]:
            tensors |= stage(tensors)
        scored.append(
            ScoredEvent(event=event, edge_index=tensors[EDGE_INDEX.name], edge_score=tensors[EDGE_SCORE.name])
        )
    return scored


def judge(scored: Sequence[ScoredEvent], *, labelling: LabellingMethod, cut: float) -> Row:
    """Judge a labelling at a cut."""
    targets, comparison, purity, on_tracks, seconds = [], [], [], [], []
    for each in scored:
        start = time.perf_counter()
        labels = LABELLINGS[labelling](each.event.hits, each.edge_index, each.edge_score, cut=cut)
        seconds.append(time.perf_counter() - start)
        pairs = pairs_from_labels(labels)
        targets.append(count(event=each.event, pairs=pairs, selection=TARGETS))
        comparison.append(count(event=each.event, pairs=pairs, selection=COMPARISON))
        matching = match(pairs=pairs, particle_id=truth_of(each.event).particle_id)
        purity.append(matching.purity[matching.n_hits >= MIN_COUNTED_HITS])
        on_tracks.append(labels != NO_TRACK)
    total = sum(targets[1:], start=targets[0]).total
    rates = total.rates()
    pure = np.concatenate(purity)
    return Row(
        labelling=labelling,
        cut=cut,
        efficiency=_value(rates.efficiency),
        comparison_efficiency=_value(sum(comparison[1:], start=comparison[0]).total.rates().efficiency),
        perfect_efficiency=_value(rates.perfect_efficiency),
        fake_rate=_value(rates.fake_rate),
        fragment_rate=_value(rates.fragment_rate),
        duplicate_rate=_value(rates.duplicate_rate),
        unmatched_rate=_value(rates.unmatched_rate),
        purity=float(pure.mean()) if pure.size else None,
        hits_on_tracks=float(np.concatenate(on_tracks).mean()),
        seconds=float(np.median(seconds)),
    )


def _value(share: Share) -> float | None:
    value: float | None = share.to_json()["value"]
    return value


def compare(scored: Sequence[ScoredEvent]) -> tuple[list[Row], list[Row]]:
    """Choose each labelling's cut on the first half of the events and judge it on the others.

    Parameters
    ----------
    scored
        At least two events.

    Returns
    -------
    judged : list of Row
        Each labelling at its best cut, on the second half.
    scanned : list of Row
        Each labelling at every cut, on the first half.

    Raises
    ------
    EventError
        Where there are fewer than two events.
    """
    if len(scored) < 2:
        raise EventError(f"{len(scored)} event: one to choose the cuts on and another to judge are wanted")
    half = (len(scored) + 1) // 2
    judged, scanned = [], []
    for labelling in LABELLINGS:
        rows = [judge(scored[:half], labelling=labelling, cut=cut) for cut in CUTS]
        best = max(rows, key=lambda row: row.merit)
        judged.append(judge(scored[half:], labelling=labelling, cut=best.cut))
        scanned += rows
    return judged, scanned


def table(rows: Iterable[Row]) -> str:
    """Return rows as a table in Markdown."""
    names = [
        "labelling", "cut", "efficiency", "comparison", "perfect", "fakes", "fragments", "duplicates", "unmatched",
        "purity", "hits on tracks", "ms",
    ]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        shares = [
            row.efficiency, row.comparison_efficiency, row.perfect_efficiency, row.fake_rate, row.fragment_rate,
            row.duplicate_rate, row.unmatched_rate, row.purity, row.hits_on_tracks,
        ]  # fmt: skip
        cells = [
            row.labelling,
            f"{row.cut:.2f}",
            *("" if share is None else f"{share:.4f}" for share in shares),
        ]
        lines.append(f"| {' | '.join([*cells, f'{row.seconds * 1e3:.0f}'])} |")
    return "\n".join(lines)


def main(
    events: Annotated[list[Path], typer.Argument(help="Events with truth, two or more.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of the networks and of the compiled loops.")
    ] = 2,
) -> None:
    """Judge every labelling on the same scores; print a table and write JSON."""
    pipeline = Pipeline.load(engines, threads=threads)
    header = make_header(
        "labelling",
        card=pipeline.card,
        working_point=None,
        threads=threads,
        packages=("tritrack", "numpy", "numba", "onnxruntime"),
    )
    scored = score(pipeline, read_all(events))
    judged, scanned = compare(scored)
    n_hits = tuple(each.event.n_hits for each in scored)
    write_result(Result(header=header, n_hits=n_hits, judged=tuple(judged), scanned=tuple(scanned)), out)
    print(table(judged))


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
