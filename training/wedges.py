"""The training set on disk: events, cut once into wedges of about one size, which a step reads one at a time."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.event import EventError
from tritrack.events.parquet import EVENT_FILES, read_events
from tritrack.training.sample import Sample, make_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tritrack.events.event import Event

WEDGE_HITS = 12_000
"""Hits of a wedge, about. A step on a part of an event, at its full density, costs less than one on the whole
event and teaches nearly as much; and steps on events of every pile-up cost the same."""


def event_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder of events, in order of their names.

    Raises
    ------
    EventError
        Where there are none.
    """
    files = sorted(folder.glob(EVENT_FILES))
    if not files:
        raise EventError(f"{folder}: no Parquet events there")
    return files


def read_event(path: Path) -> Event:
    """Read the one event of a file (raises EventError where it holds several)."""
    events = list(read_events(path))
    if len(events) != 1:
        raise EventError(f"{path}: holds {len(events)} events, the training wants one a file")
    return events[0]


def cut_wedges(sample: Sample, *, start: float, n_wedges: int) -> list[Sample]:
    """Cut an event into equal windows of phi.

    Parameters
    ----------
    sample
        The event.
    start
        Where the first wedge begins, in radians.
    n_wedges
        Number of wedges, 1 or more.

    Returns
    -------
    list of Sample
        Every hit is in exactly one, with its rank on the whole particle.
    """
    phi = np.arctan2(sample.hits[:, 1], sample.hits[:, 0])
    place = ((phi - start) / (2 * np.pi) % 1 * n_wedges).astype(np.int64) % n_wedges
    return [
        Sample(
            hits=sample.hits[inside],
            particle=sample.particle[inside],
            rank=sample.rank[inside],
            weight=sample.weight[inside],
        )
        for inside in (place == wedge for wedge in range(n_wedges))
    ]


def make_wedges(files: Iterable[Path], folder: Path, *, on_event: Callable[[], None]) -> list[Path]:
    """Cut events into wedges; events that are there already are left as they are.

    Parameters
    ----------
    files
        Files of one event each.
    folder
        Where the wedges go, a folder an event.
    on_event
        Called after each event.

    Returns
    -------
    list of Path
        The wedges' files, in order.
    """
    wedges = []
    for number, file in enumerate(files):
        target = folder / f"{number:05d}"
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            event = read_event(file)
            n_wedges = max(1, round(event.n_hits / WEDGE_HITS))
            # Somewhere else in every event, and where does not depend on the other events.
            start = np.random.default_rng(number).uniform(0, 2 * np.pi)
            for i, wedge in enumerate(cut_wedges(make_sample(event), start=start, n_wedges=n_wedges)):
                np.savez(partial / f"{i:03d}.npz", **vars(wedge))
            partial.replace(target)
        wedges += sorted(target.glob("*.npz"))
        on_event()
    return wedges


def read_wedge(path: Path) -> Sample:
    """Read a file of :func:`make_wedges`."""
    with np.load(path) as arrays:
        return Sample(**arrays)
