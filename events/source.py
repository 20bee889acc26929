"""Events from wherever they lie: Parquet files, TrackML files, folders of either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritrack.events.event import Event, EventError
from tritrack.events.parquet import EVENT_FILES, read_events, read_numbers
from tritrack.events.trackml import hits_file_number, is_hits_file, read_trackml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_KINDS = "a Parquet event file, a TrackML eventNNN-hits.csv or .csv.gz, or a folder of them"


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Find the event files that paths stand for.

    Parameters
    ----------
    paths
        Each is a Parquet event file, a TrackML ``eventNNN-hits.csv`` or ``.csv.gz``, or a folder. Of a folder
        ``event*.parquet`` and the TrackML hits files are taken, sorted by name; what lies deeper is not.

    Returns
    -------
    list of Path
        In the order of ``paths``.

    Raises
    ------
    EventError
        Where a path does not exist or is something else, a folder holds no events, or a TrackML event lies
        there both plain and compressed.
    """
    files = []
    for path in paths:
        if path.is_dir():
            files += _in_folder(path)
        elif not path.exists():
            raise EventError(f"{path}: no such file or folder")
        elif path.suffix == ".parquet" or is_hits_file(path):
            files.append(path)
        else:
            raise EventError(f"{path}: not an event file; wanted is {_KINDS}")
    if not files:
        raise EventError(f"no events given; wanted is {_KINDS}")
    return files


def read_all(paths: Iterable[Path], *, truth: bool = True) -> Iterator[Event]:
    """Read events one at a time.

    Parameters
    ----------
    paths
        See `find_files`.
    truth
        Whether truth is wanted, where there is any: tracks are found without, and what is wrong with it is no matter.

    Yields
    ------
    Event
        In the order of `find_files`, and within a file of its rows.

    Raises
    ------
    EventError
        As `find_files`, before the first event; and where a file cannot be used, when its turn comes.
    """
    for file in find_files(paths):
        if is_hits_file(file):
            yield read_trackml(file, truth=truth)
        else:
            yield from read_events(file, truth=truth)


def check_numbers(paths: Iterable[Path]) -> list[int]:
    """Read the numbers of events, and refuse two of one number, before any event is read whole.

    Returns
    -------
    list of int
        In the order of `read_all`.

    Raises
    ------
    EventError
        Names both files; or as `find_files`, or where a file cannot be read at all.
    """
    files: dict[int, Path] = {}
    for file in find_files(paths):
        for number in [hits_file_number(file)] if is_hits_file(file) else read_numbers(file):
            if number in files:
                raise EventError(
                    f"{file}: event {number} is in {files[number]} as well; the events of one track file need "
                    "different numbers"
                )
            files[number] = file
    return list(files)


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if path.match(EVENT_FILES) or is_hits_file(path)]
    if not found:
        raise EventError(f"{folder}: no events there; wanted are {EVENT_FILES} or eventNNN-hits.csv(.gz)")
    for path in found:
        if path.suffix == ".csv" and path.with_name(path.name + ".gz") in found:
            raise EventError(f"{folder}: {path.name} lies there both plain and compressed; remove one")
    return found
