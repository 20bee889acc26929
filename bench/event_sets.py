"""Sets of events that are measured on: read from folders, and the protocols' own, simulated by seed to be the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, repeat, zip_longest
from typing import TYPE_CHECKING, Literal

import msgspec

from tritrack.events.parquet import event_file, read_metadata
from tritrack.events.simulation import SETTINGS_KEY, SimulationSettings, simulate
from tritrack.events.source import read_all
from tritrack.failures import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tritrack.events.event import Event

Length = Literal["short", "full"]
"""Which protocol: minutes, or hours."""

NOISE, INEFFICIENCY = 0.15, 0.02
"""Share of an event's hits that are noise, and of the particles' hits that are lost, as in the training."""


class EventSetError(ValueError):
    """A folder that holds other events than those wanted."""


@dataclass(frozen=True, kw_only=True)
class EventSet:
    """Events of one pile-up.

    Attributes
    ----------
    name
        Its name, in results too.
    pileup, seed
        Mean number of soft collisions, and the seed; no model is trained or chosen on these seeds.
    short, full
        Events of each protocol: the short one's are the full one's first.
    """

    name: str
    pileup: float
    seed: int
    short: int
    full: int

    @property
    def settings(self) -> SimulationSettings:
        """What the events are simulated with."""
        return SimulationSettings(seed=self.seed, pileup=self.pileup, noise=NOISE, inefficiency=INEFFICIENCY)

    def n_events(self, length: Length) -> int:
        """Return the events of a protocol."""
        return self.short if length == "short" else self.full


EVENT_SETS = (
    # Of about 1,000 to 5,000 hits: the event's own cost hides little of what a request costs.
    EventSet(name="small", pileup=0, seed=55, short=20, full=100),
    EventSet(name="pileup0", pileup=0, seed=51, short=4, full=20),
    EventSet(name="pileup40", pileup=40, seed=52, short=2, full=10),
    EventSet(name="pileup100", pileup=100, seed=53, short=0, full=5),
    EventSet(name="pileup200", pileup=200, seed=54, short=1, full=5),
)


def simulate_set(events: EventSet, folder: Path, *, n_events: int, jobs: int) -> int:
    """Simulate the events of a set that a folder lacks.

    Parameters
    ----------
    events
        The set.
    folder
        Where its files are, or will be.
    n_events
        Events that are wanted there; more do not matter.
    jobs
        Processes.

    Returns
    -------
    int
        Events that were simulated.

    Raises
    ------
    EventSetError
        Where the folder holds events of other settings.
    EventError, ImportError
        As `tritrack.events.simulation.simulate`.
    """
    files = [folder / event_file(number) for number in range(n_events)]
    there = 0
    for file in files:
        if not file.exists():
            break
        found = read_metadata(file).get(SETTINGS_KEY, "{}")
        if msgspec.json.decode(found) != msgspec.to_builtins(events.settings):
            raise EventSetError(f"{file}: not an event of the set {events.name}; move the folder away")
        there += 1
    return len(
        list(simulate(events.settings, folder, n_events=n_events - there, first=there, jobs=jobs))
        if there < n_events
        else []
    )


def for_each(given: Sequence[int], n_sets: int) -> list[int]:
    """Return a number for each set, in their order; the last one given holds for the sets that follow.

    Raises
    ------
    UsageError
        Where there are more numbers than sets.
    """
    if len(given) > n_sets:
        raise UsageError(
            f"{' '.join(map(str, given))}: {len(given)} numbers given for {n_sets} sets of events"
        )
    return [*given, *repeat(given[-1], n_sets - len(given))] if given else []


def name_of(path: Path) -> str:
    """Return the name of a set of events: that of its folder, or its file's without the ending."""
    return path.name if path.is_dir() else path.stem


def read_sets(paths: Sequence[Path], *, first: Sequence[int] = ()) -> dict[str, list[Event]]:
    """Read the first events of each set, by its name.

    Parameters
    ----------
    paths
        A folder or file for each set.
    first
        Events taken of each, see `for_each`; all where nothing is given.

    Raises
    ------
    UsageError
        Where a set is empty, or two have one name.
    """
    sets: dict[str, list[Event]] = {}
    for path, n_events in zip_longest(paths, for_each(first, len(paths))):
        if (name := name_of(path)) in sets:
            raise UsageError(f"{path}: another set is called {name}, too")
        sets[name] = list(islice(read_all([path]), n_events))
        if not any(event.n_hits for event in sets[name]):
            raise UsageError(f"{path}: no hits there")
    return sets
