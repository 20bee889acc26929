"""Events as Parquet files: one row an event, one list column a quantity.

A file written here holds one event and everything known of it. The reader takes files of several rows too.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tritrack.events.checks import check_event
from tritrack.events.event import Event, EventError, Measurements, Particles, Truth
from tritrack.events.files import replacing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT_VERSION = "1"
"""Stands in the file under ``tritrack_event_format``; raised when a column changes."""
_VERSION_KEY = b"tritrack_event_format"


def _column(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    # "element" is what the Parquet standard calls a list's values, and what readers give back.
    values = pa.list_(pa.field("element", kind, nullable=False))
    return pa.field(name, values, metadata={"unit": unit, "meaning": meaning})


def _columns(kind: pa.DataType, unit: str, meanings: dict[str, str]) -> list[pa.Field]:
    return [_column(name, kind, unit, meaning) for name, meaning in meanings.items()]


_F4, _I4, _I8 = pa.float32(), pa.int32(), pa.int64()
_HITS = [
    *_columns(_F4, "mm", {axis: f"global {axis} of each hit" for axis in "xyz"}),
    _column("hit_id", _I8, "1", "the source's own name of each hit"),
    *_columns(_I4, "1", {name: f"{name} of each hit's module" for name in ("volume", "layer", "module")}),
]
_TRUTH = [
    _column("particle_id", _I8, "1", "particle of each hit, 0 for noise"),
    _column("order", _F4, "ns or mm", "sorts one particle's hits along its path"),
]
_WEIGHT = _column("weight", _F4, "1", "TrackML scoring weight of each hit")
_MEASUREMENTS = [
    *_columns(_F4, "mm", {f"local_{i}": f"local coordinate {i} of each hit" for i in (0, 1)}),
    *_columns(_F4, "mm^2", {f"variance_{i}": f"variance of local coordinate {i}" for i in (0, 1)}),
]
_PARTICLES = [
    _column("particles.particle_id", _I8, "1", "number of each particle"),
    _column("particles.charge", _F4, "e", "charge"),
    *_columns(_F4, "mm", {f"particles.v{axis}": f"production vertex, {axis}" for axis in "xyz"}),
    *_columns(_F4, "GeV", {f"particles.p{axis}": f"momentum at production, {axis}" for axis in "xyz"}),
    _column("particles.primary", pa.bool_(), "1", "made by the collision itself"),
]
SCHEMA = pa.schema(
    [
        pa.field("event_id", _I8, nullable=False, metadata={"unit": "1", "meaning": "number of the event"}),
        *_HITS,
        *_TRUTH,
        _WEIGHT,
        *_MEASUREMENTS,
        *_PARTICLES,
    ],
    metadata={_VERSION_KEY: FORMAT_VERSION.encode()},
)
"""The columns of an event file. A column is null where the event has no truth, weights or measurements."""

REQUIRED = ("event_id", "x", "y", "z")
"""The columns that tracks are found from; of a file written elsewhere, any other may be missing."""

_OF_TRUTH = frozenset(f.name for f in (*_TRUTH, _WEIGHT, *_PARTICLES))

_FLOATS = [f.name for f in SCHEMA if pa.types.is_list(f.type) and f.type.value_type == _F4]


EVENT_FILES = "event*.parquet"
"""The names of event files in a folder."""


def event_file(event_id: int) -> str:
    """Name of the file of one event."""
    return f"event{event_id:09d}.parquet"


def write_event(event: Event, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write one event; the same event gives the same bytes. The file appears whole or not at all.

    Parameters
    ----------
    event
        The event.
    path
        The file, by habit named by `event_file`.
    metadata
        What else is known of the event, by key: where it comes from.

    Raises
    ------
    EventError
        Where the arrays of the event do not fit together.
    """
    check_event(event, where=str(path))
    values = _row(event)
    arrays = [
        pa.array([event.event_id], _I8),
        *(_list(values.get(field.name), field.type) for field in SCHEMA if field.name != "event_id"),
    ]
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, **(metadata or {})})
    table = pa.Table.from_arrays(arrays, schema=schema)
    encoding = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _FLOATS}
    encoding["hit_id.list.element"] = "DELTA_BINARY_PACKED"
    dictionary = [f"{f.name}.list.element" for f in SCHEMA if pa.types.is_list(f.type)]
    dictionary = [name for name in dictionary if name not in encoding]
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=9,
            use_dictionary=dictionary,
            column_encoding=encoding,
            write_statistics=False,
        )


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a file of events, or of tracks, says beside its columns, by key (raises EventError as `read_events`)."""
    with _reading(path), pq.ParquetFile(path) as file:
        return {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}


def read_numbers(path: Path) -> list[int]:
    """Read the numbers of a file's events alone (raises EventError as `read_events`)."""
    with _reading(path), pq.ParquetFile(path) as file:
        _check_schema(file.schema_arrow, path, unwanted=_OF_TRUTH)
        numbers: list[int] = file.read(columns=["event_id"]).column("event_id").to_pylist()
        return numbers


def read_events(path: Path, *, truth: bool = True) -> Iterator[Event]:
    """Read the events of one Parquet file, one at a time.

    Parameters
    ----------
    path
        The file.
    truth
        Whether truth is wanted, where there is any; without, its columns are not looked at.

    Yields
    ------
    Event
        One a row.

    Raises
    ------
    EventError
        Where the file is missing, no Parquet, of another format, or holds an event that does not fit together.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        columns = _check_schema(file.schema_arrow, path, unwanted=() if truth else _OF_TRUTH)
        for batch in file.iter_batches(batch_size=1, columns=columns):
            yield check_event(_event(batch, path), where=str(path))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise EventError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise EventError(f"{path}: cannot be read as Parquet: {error}") from None


def _check_schema(schema: pa.Schema, path: Path, *, unwanted: Collection[str]) -> list[str]:
    """Return the format's columns that the file has, but for unwanted ones."""
    version = (schema.metadata or {}).get(_VERSION_KEY)
    if version is not None and version != FORMAT_VERSION.encode():
        raise EventError(
            f"{path}: event format {version.decode()}, this version reads format {FORMAT_VERSION}"
        )
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise EventError(f"{path}: columns are missing: {', '.join(missing)}")
    present = [field for field in SCHEMA if field.name in schema.names and field.name not in unwanted]
    for field in present:
        found = schema.field(field.name).type
        is_list = pa.types.is_list(field.type)
        same = found == field.type or (
            is_list
            and (pa.types.is_list(found) or pa.types.is_large_list(found))
            and found.value_type == field.type.value_type
        )
        if not same:
            wanted = f"list<{field.type.value_type}>" if is_list else str(field.type)
            raise EventError(f"{path}: column {field.name} is {found}, it should be {wanted}")
    return [field.name for field in present]


def _row(event: Event) -> dict[str, NDArray[Any]]:
    row = dict(zip((f.name for f in _HITS), (*event.hits.T, event.hit_id, *event.modules.T), strict=True))
    if event.measurements is not None:
        values = (*event.measurements.local.T, *event.measurements.variance.T)
        row |= zip((f.name for f in _MEASUREMENTS), values, strict=True)
    if event.truth is not None:
        truth, p = event.truth, event.truth.particles
        row |= {"particle_id": truth.particle_id, "order": truth.order}
        values = (p.particle_id, p.charge, *p.vertex.T, *p.momentum.T, p.primary)
        row |= zip((f.name for f in _PARTICLES), values, strict=True)
        if truth.weight is not None:
            row["weight"] = truth.weight
    return row


def _list(values: NDArray[Any] | None, kind: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(1, kind)
    flat = pa.array(np.ascontiguousarray(values), kind.value_type)
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), flat, type=kind)


class _Row:
    """The columns of one row of a file, as arrays."""

    def __init__(self, batch: pa.RecordBatch, path: Path) -> None:
        if not batch.column("event_id")[0].is_valid:
            raise EventError(f"{path}: an event has no event_id")
        self.event_id = int(batch.column("event_id")[0].as_py())
        self.where = f"{path}: event {self.event_id}"
        self._batch = batch

    def has(self, name: str) -> bool:
        return name in self._batch.schema.names and bool(self._batch.column(name)[0].is_valid)

    def array(self, name: str) -> NDArray[Any]:
        if not self.has(name):
            raise EventError(f"{self.where}: column {name} is empty")
        values = self._batch.column(name)[0].values
        if values.null_count:
            raise EventError(f"{self.where}: column {name} has {values.null_count} missing values")
        array: NDArray[Any] = np.array(values.to_numpy(zero_copy_only=False))
        return array

    def stack(self, *names: str) -> NDArray[Any]:
        arrays = [self.array(name) for name in names]
        for name, array in zip(names, arrays, strict=True):
            if len(array) != len(arrays[0]):
                raise EventError(
                    f"{self.where}: column {name} has {len(array)} values, {names[0]} has {len(arrays[0])}"
                )
        return np.stack(arrays, axis=1)


def _event(batch: pa.RecordBatch, path: Path) -> Event:
    row = _Row(batch, path)
    measurements = truth = None
    if row.has("local_0"):
        measurements = Measurements(
            local=row.stack("local_0", "local_1"), variance=row.stack("variance_0", "variance_1")
        )
    if row.has("particle_id"):
        particles = Particles(
            particle_id=row.array("particles.particle_id"),
            charge=row.array("particles.charge"),
            vertex=row.stack("particles.vx", "particles.vy", "particles.vz"),
            momentum=row.stack("particles.px", "particles.py", "particles.pz"),
            primary=row.array("particles.primary"),
        )
        truth = Truth(
            particle_id=row.array("particle_id"),
            order=row.array("order"),
            particles=particles,
            weight=row.array("weight") if row.has("weight") else None,
        )
    hits = row.stack("x", "y", "z")
    n_hits = hits.shape[0]
    return Event(
        event_id=row.event_id,
        hits=hits,
        hit_id=row.array("hit_id") if row.has("hit_id") else np.arange(n_hits, dtype=np.int64),
        modules=row.stack("volume", "layer", "module")
        if row.has("volume")
        else np.zeros((n_hits, 3), dtype=np.int32),
        truth=truth,
        measurements=measurements,
    )
