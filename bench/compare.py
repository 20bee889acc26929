"""All finders on the same events: ``python -m tritrack.bench.compare EVENTS... --out FILE.json``.

Each argument is a set of events that nothing was trained or chosen on. In every round each finder takes its turn, with
the machine to itself; what counts is the ratio within a round. `tritrack.bench.pages.compare_page` makes a page of the
figures.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tritrack.bench.event_sets import read_sets
from tritrack.bench.finders.ckf import WORKING_POINTS
from tritrack.bench.finders.contestants import (
    FUSED_MARK,
    Turn,
    contestants,
    take_turn_in_process,
    take_turn_on_a_server,
)
from tritrack.bench.physics import CKF, EventRow, judged, summarise
from tritrack.bench.quantiles import quantile
from tritrack.bench.result import Header, make_header, write_result
from tritrack.bench.turns import orders
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.source import find_files
from tritrack.failures import UsageError, one_sentence
from tritrack.physics.selection import SELECTIONS, truth_of
from tritrack.rules.windows import read_rules
from tritrack.stages.card import read_card

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tritrack.bench.finders.contestants import Contestant
    from tritrack.events.event import Event


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """One set of events.

    Attributes
    ----------
    name
        That of its folder.
    n_hits
        Hits of each event.
    n_judged
        Events that every finder takes which takes any: the rates and times are of these; throughput and memory are of
        all that a finder takes.
    """

    name: str
    n_hits: tuple[int, ...]
    n_judged: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finder on one set.

    Attributes
    ----------
    events
        Name of the set.
    finder, model
        Its name, and that of its model on the server; no model: it ran in process.
    refused
        A sentence for every event that it does not take.
    reports
        By selection, what it found in the judged events (`tritrack.physics.metrics.Report`); empty where it takes
        none.
    seconds
        In each round, the time of each judged event: of a served finder a client's, from the call to the labels; of
        the Kalman filter its algorithms' alone.
    median, p50
        Of all of these; ``p50`` is None where they are too few for one (`tritrack.bench.quantiles`), ``median`` where
        there are none.
    n_clients
        Clients at once behind ``events_per_s``; None for the Kalman filter: one process with one thread.
    events_per_s
        In each round; None where not measured.
    n_requests
        Of each round's load, None where there was none; empty in results that do not have it yet.
    not_loaded
        Why not, in the first round where it was not.
    peak_bytes
        Most memory, in any round, of the finder's processes: a server with it alone, or the Kalman filter's process.
        Looked at every 0.5 s, shared pages counted once.
    """

    events: str
    finder: str
    model: str | None
    refused: tuple[str, ...]
    reports: dict[str, dict[str, Any]]
    seconds: tuple[tuple[float, ...], ...]
    median: float | None
    p50: float | None
    n_clients: int | None
    events_per_s: tuple[float | None, ...]
    not_loaded: str | None
    peak_bytes: int | None
    n_requests: tuple[int | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """All finders on all sets.

    Attributes
    ----------
    header
        Its threads are those of each step of the servers.
    rules, rules_sha256
        Name and hash of the rules.
    ckf
        Working point of the Kalman filter.
    selections
        The particles that efficiencies are about, by name.
    sets, rows
        The events; a row for each set and finder.
    """

    header: Header
    rules: str
    rules_sha256: str
    ckf: str
    selections: dict[str, str]
    sets: tuple[MeasuredSet, ...]
    rows: tuple[Row, ...]

    def ratios(self) -> dict[str, float]:
        """Mean over the rounds: the Kalman filter's time by each finder's, and what fusing the chain gains."""
        ratios = {}
        rows = {(row.events, row.finder): row for row in self.rows}
        for (events, finder), row in rows.items():
            peer, ensemble = rows[events, CKF], rows.get((events, finder.removesuffix(FUSED_MARK)), row)
            if row is not peer and row.median is not None and peer.median is not None:
                times = np.sum(peer.seconds, axis=1) / np.sum(row.seconds, axis=1)
                ratios[f"{events}: seconds of {CKF} by those of {finder}"] = float(np.mean(times))
            rates = zip(row.events_per_s, ensemble.events_per_s, strict=True)
            gains = [mine / other for mine, other in rates if mine is not None and other is not None]
            if row is not ensemble and gains:
                ratios[f"{events}: throughput of {finder} by that of {ensemble.finder}"] = float(
                    np.mean(gains)
                )
        return ratios


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What holds for every finder.

    Attributes
    ----------
    threads
        Of each step of a server.
    ckf
        Working point of the Kalman filter.
    n_clients, load_seconds
        The load (`tritrack.bench.finders.contestants.take_turn_on_a_server`).
    rounds
        At least 1.
    """

    threads: int
    ckf: str
    n_clients: int
    load_seconds: float
    rounds: int


def compare(
    events: Sequence[Event],
    finders: Sequence[Contestant],
    *,
    name: str,
    repository: Path,
    conditions: Conditions,
) -> tuple[MeasuredSet, list[Row]]:
    """Let every finder take its turn with a set of events in each round.

    Parameters
    ----------
    events
        With truth, at least one.
    finders
        Names and models.
    name
        The set's.
    repository
        Model repository with the models.
    """
    turns: dict[str, list[Turn]] = {finder.name: [] for finder in finders}
    for order in islice(orders(len(finders)), conditions.rounds):
        for finder in (finders[number] for number in order):
            if finder.model is None:
                taken = take_turn_in_process(events, working_point=conditions.ckf)
            else:
                taken = take_turn_on_a_server(
                    finder.model,
                    events,
                    repository=repository,
                    n_clients=conditions.n_clients,
                    load_seconds=conditions.load_seconds,
                )
            turns[finder.name].append(taken)
            print(_line(name, finder, taken), flush=True)
    first = [
        EventRow(
            event_id=event.event_id,
            n_hits=event.n_hits,
            outcomes={finder: taken[0].outcomes[i] for finder, taken in turns.items()},
        )
        for i, event in enumerate(events)
    ]
    summary = summarise(first)
    places = judged(first)
    rows = [
        _row(name, finder, turns[finder.name], summary["finders"], places, conditions.n_clients)
        for finder in finders
    ]
    n_hits = tuple(event.n_hits for event in events)
    return MeasuredSet(name=name, n_hits=n_hits, n_judged=summary["n_judged"]), rows


def _row(
    events: str,
    finder: Contestant,
    turns: Sequence[Turn],
    summary: dict[str, Any],
    places: Sequence[int],
    n_clients: int,
) -> Row:
    counted = finder.name in summary
    seconds = tuple(
        tuple(sum(turn.outcomes[i].seconds.values()) for i in places if counted) for turn in turns
    )
    all_seconds = np.array(list(chain.from_iterable(seconds)))
    peaks = [turn.peak_bytes for turn in turns if turn.peak_bytes is not None]
    return Row(
        events=events,
        finder=finder.name,
        model=finder.model,
        refused=tuple(outcome.refused for outcome in turns[0].outcomes if outcome.refused is not None),
        reports=summary[finder.name]["reports"] if counted else {},
        seconds=seconds,
        median=float(np.median(all_seconds)) if all_seconds.size else None,
        p50=quantile(all_seconds, 0.5),
        n_clients=None if finder.model is None else n_clients,
        events_per_s=tuple(turn.events_per_s for turn in turns),
        n_requests=tuple(turn.n_requests for turn in turns),
        not_loaded=next((turn.not_loaded for turn in turns if turn.not_loaded is not None), None),
        peak_bytes=max(peaks, default=None),
    )


def compare_sets(
    paths: Sequence[Path], *, first: Sequence[int], engines: Path, rules: Path, conditions: Conditions
) -> Result:
    """Compare all finders on sets of events.

    Parameters
    ----------
    paths
        Folders of events with truth, a set each.
    first
        Events taken of each set, see `tritrack.bench.event_sets.for_each`.
    engines, rules
        Folders.

    Raises
    ------
    UsageError
        Where a set holds no events, or those of one have no truth.
    """
    card, rule_set = read_card(engines), read_rules(rules)
    sets, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        render_repository(
            engines=engines,
            out=repository,
            server="embedded",
            device="cpu",
            threads=conditions.threads,
            fused=True,
            rules=rules,
        )
        for name, events in read_sets(paths, first=first).items():
            for event in events:
                truth_of(event)
            of_set, found = compare(
                events,
                contestants(card),
                name=name,
                repository=repository,
                conditions=conditions,
            )
            sets.append(of_set)
            rows += found
    return Result(
        header=make_header(
            "compare",
            card=card,
            working_point=None,
            threads=conditions.threads,
            packages=("tritrack", "numpy", "numba", "onnxruntime", "nvidia-pytriton", "pyacts"),
        ),
        rules=rule_set.name,
        rules_sha256=rule_set.hash,
        ckf=conditions.ckf,
        selections={s.name: s.meaning for s in SELECTIONS.values()},
        sets=tuple(sets),
        rows=tuple(rows),
    )


def _line(name: str, finder: Contestant, turn: Turn) -> str:
    taken = [sum(outcome.seconds.values()) for outcome in turn.outcomes if outcome.refused is None]
    mean = f"{np.mean(taken):.2f} s an event" if taken else "takes none"
    rate = turn.not_loaded if turn.events_per_s is None else f"{turn.events_per_s:.2f} events/s"
    memory = "" if turn.peak_bytes is None else f", {turn.peak_bytes / 1e9:.2f} GB"
    return f"{name}, {finder.name}: {mean}, {rate}{memory}"


def main(
    events: Annotated[
        list[Path], typer.Argument(help="Sets of events with truth and measurements, a folder each.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    rules: Annotated[Path, typer.Option(help="Folder of the rules.")] = Path("weights/rules"),
    ckf: Annotated[
        str, typer.Option(help=f"Working point of the CKF: {' or '.join(WORKING_POINTS)}.")
    ] = "wide",
    first: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Events that are taken of a set, the first ones, all if not given; given again for the next set, the "
            "last holds on.",
        ),
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of each step of a server; the CKF has one.")
    ] = 2,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 8,
    load_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="About so long they go on, in s; loads of too few events are left out."),
    ] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each finder.")] = 1,
    page: Annotated[
        bool, typer.Option("--page", help="Make the plots and the page, too, beside the JSON.")
    ] = False,
) -> None:
    """Run the GNN chain, the rule-based finder and a Kalman filter on the same events, judge all, and write JSON."""
    if ckf not in WORKING_POINTS:
        raise UsageError(f"--ckf: {ckf} given, {' or '.join(WORKING_POINTS)} wanted")
    find_files(events)  # a wrong path shows before the work
    conditions = Conditions(
        threads=threads, ckf=ckf, n_clients=clients, load_seconds=load_seconds, rounds=rounds
    )
    result = compare_sets(events, first=first, engines=engines, rules=rules, conditions=conditions)
    write_result(result, out)
    print(f"{out}: written")
    for name, ratio in result.ratios().items():
        print(f"{name}: {ratio:.2f}")
    if page:
        from tritrack.bench.pages.compare_page import write_page

        print(f"{write_page(out, out=out.parent)}: written")


if __name__ == "__main__":
    with one_sentence(extra="dev"):
        typer.run(main)
