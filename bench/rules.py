"""The rule-based finder beside the Kalman filter of ACTS, on the same hits and one core: rates, times, and its fit."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer

from tritrack.bench.finders.ckf import WORKING_POINTS, CkfFinder
from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.bench.physics import CKF, EventRow, Outcome, run_ckf, summarise
from tritrack.events.source import find_files, read_all
from tritrack.failures import UsageError, one_sentence
from tritrack.physics.fit import ERROR_COLUMNS, fit_tracks, true_helices
from tritrack.physics.matching import match, pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import COMPARISON, SELECTIONS, kinematics, particle_rows, truth_of
from tritrack.rules.finder import RuleFinder
from tritrack.stages.contract import ContractError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.physics.fit import Fits

RULES = "rules"
"""The rule-based finder's name in the result."""
PT_EDGES, ETA_EDGES = (1.0, 1.5, 3.0, 10.0), (0.0, 1.0, 2.5)
"""Bins of the fit's resolution, in GeV and abs(eta)."""
CORE = 0.683
"""Half the width that holds this share is given as a resolution; of a normal distribution it is one standard deviation."""


def run_rules(finder: RuleFinder, event: Event) -> tuple[Outcome, NDArray[np.float64]]:
    """Find, fit and judge the tracks of one event.

    Returns
    -------
    Outcome, ndarray
        The times hold the fit; and float64 [n, 12], see `fit_offsets`.
    """
    seconds: dict[str, float] = {}
    cpu_start = time.process_time()
    try:
        labels = finder.find(event.hits, on_part=seconds.__setitem__)
    except ContractError as error:
        return Outcome(refused=str(error)), np.empty((0, 2 + 2 * len(ERROR_COLUMNS)))
    start = time.perf_counter()
    fits = fit_tracks(hits=event.hits, labels=labels, layers=finder.rules.layers, field=finder.rules.field)
    seconds["helix fit"] = time.perf_counter() - start
    cpu = time.process_time() - cpu_start
    pairs = pairs_from_labels(labels)
    counts = {s.name: count(event=event, pairs=pairs, selection=s) for s in SELECTIONS.values()}
    outcome = Outcome(seconds=seconds, cpu_seconds=cpu, counts=counts)
    return outcome, fit_offsets(event, pairs, fits, field=finder.rules.field)


def fit_offsets(event: Event, pairs: NDArray[np.int64], fits: Fits, *, field: float) -> NDArray[np.float64]:
    """Compare fitted helices with true ones, in a field in T.

    Returns
    -------
    ndarray
        float64 [n, 12], a row for each matched track of a particle of the comparison: true pT and eta; fitted less true
        pT (over pT), phi, eta, d0, z0; and these over their errors.
    """
    truth = truth_of(event)
    matching = match(pairs=pairs, particle_id=truth.particle_id)
    row = particle_rows(truth, matching.leading)
    wanted = matching.best & COMPARISON.passes(truth, kinematics(truth))[row]
    track, row = matching.track[wanted], row[wanted]
    true = true_helices(truth.particles, field=field)[row]
    off = fits.fitted[track, : len(ERROR_COLUMNS)] - true[:, : len(ERROR_COLUMNS)]
    off[:, 1] = (off[:, 1] + np.pi) % (2 * np.pi) - np.pi
    pull = off / fits.errors[track]
    off[:, 0] /= true[:, 0]
    return np.concatenate([true[:, [0, 2]], off, pull], axis=1)


def fit_quality(offsets: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return, by pT and abs(eta), tracks, median offset, resolution and width of the pulls of each quantity."""
    bins: list[dict[str, Any]] = []
    for pt, eta in itertools.product(itertools.pairwise(PT_EDGES), itertools.pairwise(ETA_EDGES)):
        forward = np.abs(offsets[:, 1])
        wanted = (offsets[:, 0] >= pt[0]) & (offsets[:, 0] < pt[1]) & (forward >= eta[0]) & (forward < eta[1])
        some = offsets[wanted]
        unfitted = np.isnan(some).any(axis=1)
        bins.append({"pt": pt, "eta": eta, "n_tracks": len(some), "n_unfitted": int(unfitted.sum())})
        if unfitted.all():
            continue
        off, pull = np.split(some[~unfitted, 2:], 2, axis=1)
        middle = np.median(off, axis=0)
        width = np.quantile(np.abs(off - middle), CORE, axis=0)
        pulls = np.quantile(np.abs(pull), CORE, axis=0)
        bins[-1]["quality"] = {
            name: {"offset": float(middle[i]), "resolution": float(width[i]), "pull": float(pulls[i])}
            for i, name in enumerate(ERROR_COLUMNS)
        }
    return bins


def main(
    events: Annotated[list[Path], typer.Argument(help="Events with truth and local measurements.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    rules: Annotated[Path, typer.Option(help="Folder of the rules.")] = Path("weights/rules"),
    ckf: Annotated[
        str, typer.Option(help=f"Working point of the CKF: {' or '.join(WORKING_POINTS)}.")
    ] = "wide",
    title: Annotated[str, typer.Option(help="What events these are.")] = "",
) -> None:
    """Run the rule-based finder and a Kalman filter on the same events, in one thread each, and write JSON."""
    if ckf not in WORKING_POINTS:
        raise UsageError(f"--ckf: {ckf} given, {' or '.join(WORKING_POINTS)} wanted")
    find_files(events)  # a wrong path shows before the work
    finder, peer = RuleFinder.load(rules), CkfFinder(WORKING_POINTS[ckf])
    rows: list[EventRow] = []
    offsets = []
    for event in read_all(events):
        if not rows:  # what is compiled on first use is in no time
            run_rules(finder, event)
        outcome, off = run_rules(finder, event)
        rows.append(
            EventRow(
                event_id=event.event_id,
                n_hits=event.n_hits,
                outcomes={RULES: outcome, CKF: run_ckf(peer.find, event)},
            )
        )
        offsets.append(off)
        times = ", ".join(f"{name} {some.cpu_seconds:.2f} s" for name, some in rows[-1].outcomes.items())
        print(f"event {event.event_id}: {event.n_hits} hits, processor time: {times}", flush=True)
    result = {
        "title": title,
        "machine": describe_machine(),
        "versions": describe_versions(("tritrack", "numpy", "numba", "pyacts")),
        "rules": {"name": finder.rules.name, "windows": finder.rules.windows._asdict()},
        "ckf": ckf,
        "selections": {s.name: s.meaning for s in SELECTIONS.values()},
        "cpu_seconds": {
            name: float(np.median([row.outcomes[name].cpu_seconds for row in rows])) for name in (RULES, CKF)
        },
        "events": [row.to_json() for row in rows],
        "fit": fit_quality(np.concatenate(offsets)),
        **summarise(rows),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    print(f"{out}: written")


if __name__ == "__main__":
    with one_sentence(extra="dev"):
        typer.run(main)
