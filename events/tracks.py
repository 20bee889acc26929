"""Track files: which track each hit is on.

``.parquet`` holds event_id, hit_id and track_label (-1: on no track), and what found them as metadata. ``.csv`` is a TrackML submission with
event_id, hit_id and track_id, where label t stands as t + 1 and -1 as 0.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tritrack.events.event import EventError
from tritrack.events.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.events.event import Event

_NO_TRACK = -1
_LABEL = {".parquet": "track_label", ".csv": "track_id"}
"""Name of the third column by the file's ending."""


class MissingEventError(EventError):
    """A track file lacks an event, as where a finder refused it."""


def check_track_file(path: Path) -> Path:
    """Check that a path can be a track file, before work is spent on it.

    Raises
    ------
    EventError
        On an unknown ending.
    """
    if path.suffix not in _LABEL:
        raise EventError(f"{path}: a track file ends in .parquet or .csv")
    return path


class TrackWriter:
    """Takes labels event by event; made by `write_tracks`."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self._seen: set[int] = set()

    def add(self, event: Event, labels: NDArray[np.int64]) -> None:
        """Write the labels of one event.

        Parameters
        ----------
        event
            The event.
        labels
            int64 [n_hits], the track of each hit, in the event's order; -1 for none.

        Raises
        ------
        EventError
            Where there is not one label a hit, a label is below -1, or the event was written before.
        """
        where = f"{self._path}: event {event.event_id}"
        if labels.dtype != np.int64 or labels.shape != (event.n_hits,):
            raise EventError(
                f"{where}: labels are {labels.dtype} {list(labels.shape)}, wanted is int64 [{event.n_hits}]"
            )
        if (labels < _NO_TRACK).any():
            raise EventError(f"{where}: a label is {labels.min()}, the least is {_NO_TRACK}")
        if event.event_id in self._seen:
            raise EventError(f"{where}: written already; the events of one track file need different numbers")
        self._seen.add(event.event_id)
        shift = 1 if self._path.suffix == ".csv" else 0
        columns = [np.full(event.n_hits, event.event_id), event.hit_id, labels + shift]
        self._file.write_table(
            pa.Table.from_arrays([pa.array(c) for c in columns], schema=_schema(self._path))
        )


@contextmanager
def write_tracks(path: Path, *, metadata: Mapping[str, str] | None = None) -> Iterator[TrackWriter]:
    """Open a track file for writing. It appears when all is written, and not at all after an error.

    Parameters
    ----------
    path
        The file, ``.parquet`` or ``.csv``; its folder is made if missing.
    metadata
        What else is known of the tracks, by key: what found them. `tritrack.events.parquet.read_metadata` gives it
        back; a ``.csv`` has no place for it.

    Yields
    ------
    TrackWriter
        Takes the events.

    Raises
    ------
    EventError
        On an unknown ending.
    """
    check_track_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            schema = _schema(path).with_metadata(metadata)
            file = pq.ParquetWriter(temporary, schema, compression="zstd")
        else:
            file = pa.csv.CSVWriter(
                temporary, _schema(path), write_options=pa.csv.WriteOptions(quoting_style="none")
            )
        with file:
            yield TrackWriter(path, file)


class Tracks:
    """The labels of a track file, by event; made by `read_tracks`."""

    def __init__(self, path: Path, columns: dict[str, NDArray[np.int64]]) -> None:
        self._path = path
        order = np.lexsort((columns["hit_id"], columns["event_id"]))
        self._event_id, self._hit_id, self._label = (columns[name][order] for name in columns)

    @property
    def event_ids(self) -> NDArray[np.int64]:
        """int64 [n_events], the events with at least one hit in the file, sorted."""
        ids: NDArray[np.int64] = np.unique(self._event_id)
        return ids

    def labels_for(self, event: Event) -> NDArray[np.int64]:
        """Give the labels of an event, in the order of its hits.

        Parameters
        ----------
        event
            The event.

        Returns
        -------
        ndarray
            int64 [n_hits], -1 for hits on no track.

        Raises
        ------
        MissingEventError
            Where the file has no hit of the event, which has some.
        EventError
            Where the file lacks hits of the event, has hits that the event has not, or has a hit twice.
        """
        where = f"{self._path}: event {event.event_id}"
        rows = slice(*np.searchsorted(self._event_id, [event.event_id, event.event_id + 1]))
        hit_id, label = self._hit_id[rows], self._label[rows]
        if not len(hit_id) and event.n_hits:
            raise MissingEventError(f"{where}: the file has no hits of this event")
        twice = hit_id[1:][hit_id[1:] == hit_id[:-1]]
        if len(twice):
            raise EventError(f"{where}: {len(twice)} hits occur more than once, first hit_id {twice[0]}")
        missing = np.setdiff1d(event.hit_id, hit_id)
        if len(missing):
            raise EventError(f"{where}: {len(missing)} hits are missing, first hit_id {missing[0]}")
        unknown = np.setdiff1d(hit_id, event.hit_id)
        if len(unknown):
            raise EventError(f"{where}: {len(unknown)} hits are not the event's, first hit_id {unknown[0]}")
        aligned: NDArray[np.int64] = label[np.searchsorted(hit_id, event.hit_id)]
        return aligned


def read_tracks(path: Path) -> Tracks:
    """Read a track file.

    Parameters
    ----------
    path
        The file, ``.parquet`` or ``.csv``.

    Returns
    -------
    Tracks
        Its labels.

    Raises
    ------
    EventError
        Where the file is missing, ends in something else, lacks a column, or holds a label out of range.
    """
    check_track_file(path)
    schema = _schema(path)
    try:
        if path.suffix == ".parquet":
            table = pq.ParquetFile(path).read()
        else:
            types = dict(zip(schema.names, schema.types, strict=True))
            table = pa.csv.read_csv(str(path), convert_options=pa.csv.ConvertOptions(column_types=types))
    except FileNotFoundError:
        raise EventError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise EventError(f"{path}: cannot be read as a track file: {error}") from None
    columns = {}
    for name in schema.names:
        if name not in table.column_names:
            raise EventError(f"{path}: column {name} is missing; wanted are {', '.join(schema.names)}")
        if table[name].type != pa.int64() or table[name].null_count:
            raise EventError(f"{path}: column {name} is {table[name].type}, wanted is int64 without gaps")
        columns[name] = np.array(table[name].to_numpy())
    if path.suffix == ".csv":
        columns["track_id"] -= 1
    labels = columns[_LABEL[path.suffix]]
    if (labels < _NO_TRACK).any():
        least = 0 if path.suffix == ".csv" else _NO_TRACK
        raise EventError(f"{path}: a {_LABEL[path.suffix]} is below {least}")
    return Tracks(path, columns)


def _schema(path: Path) -> pa.Schema:
    names = ("event_id", "hit_id", _LABEL[path.suffix])
    return pa.schema([pa.field(name, pa.int64(), nullable=False) for name in names])
