"""Events of the TrackML challenge (arXiv:1904.06778), from its CSV files, plain or gzip.

An event is ``eventNNN-hits.csv`` and, where they lie beside it, ``eventNNN-truth.csv`` and
``eventNNN-particles.csv``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tritrack.events.checks import check_event
from tritrack.events.event import NOISE, Event, EventError, Particles, Truth

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PRIMARY_RADIUS = 5.0
"""TrackML does not say which particles are primary: those made within this distance (mm) of the beam line are
taken as such. The beam pipe lies outside of it, most decays of K0S and Lambda too."""

_HITS_FILE = re.compile(r"event(\d+)-hits\.csv(\.gz)?")
_HITS = {
    "hit_id": pa.int64(),
    **dict.fromkeys("xyz", pa.float32()),
    **dict.fromkeys(("volume_id", "layer_id", "module_id"), pa.int32()),
}
_TRUTH = {
    "hit_id": pa.int64(),
    "particle_id": pa.int64(),
    **dict.fromkeys(("tx", "ty", "tz"), pa.float64()),
    "weight": pa.float32(),
}
_PARTICLES = {
    "particle_id": pa.int64(),
    **dict.fromkeys(("vx", "vy", "vz"), pa.float64()),
    **dict.fromkeys(("px", "py", "pz", "q"), pa.float32()),
}


def is_hits_file(path: Path) -> bool:
    """Whether the name is that of a TrackML hits file."""
    return _HITS_FILE.fullmatch(path.name) is not None


def hits_file_number(path: Path) -> int:
    """Return the event's number in the name of its hits file (raises EventError where the name is another)."""
    name = _HITS_FILE.fullmatch(path.name)
    if name is None:
        raise EventError(f"{path}: not named like a TrackML hits file, eventNNN-hits.csv or .csv.gz")
    return int(name[1])


def read_trackml(path: Path, *, truth: bool = True) -> Event:
    """Read one event.

    Parameters
    ----------
    path
        The hits file, ``eventNNN-hits.csv`` or ``.csv.gz``.
    truth
        Whether truth is wanted, where it lies beside the hits.

    Returns
    -------
    Event
        Without truth where no truth file lies beside the hits, or none is wanted. The order of a particle's hits is the distance
        of their true positions from its production vertex, in mm.

    Raises
    ------
    EventError
        Where the name is another, a column is missing or does not parse, the truth has other hits than the
        hits file, or there is truth without particles.
    """
    event_id = hits_file_number(path)
    hits = _read(path, _HITS)
    truth_path = _beside(path, "truth") if truth else None
    event = Event(
        event_id=event_id,
        hits=_stack(hits, "x", "y", "z"),
        hit_id=hits["hit_id"],
        modules=_stack(hits, "volume_id", "layer_id", "module_id"),
        truth=None if truth_path is None else _truth(hits["hit_id"], path, truth_path),
    )
    return check_event(event, where=str(path))


def _truth(hit_id: NDArray[np.int64], hits_path: Path, truth_path: Path) -> Truth:
    particles_path = _beside(hits_path, "particles")
    if particles_path is None:
        raise EventError(f"{truth_path}: there is truth but no particles file beside it")
    truth = _align(_read(truth_path, _TRUTH), hit_id, truth_path)
    table = _read(particles_path, _PARTICLES)
    vertex = _stack(table, "vx", "vy", "vz")
    order = np.zeros(len(hit_id))
    if len(vertex):
        by_id = np.argsort(table["particle_id"], kind="stable")
        place = np.searchsorted(table["particle_id"], truth["particle_id"], sorter=by_id)
        of_hit = by_id[np.minimum(place, len(by_id) - 1)]
        order = np.linalg.norm(_stack(truth, "tx", "ty", "tz") - vertex[of_hit], axis=1)
    order[truth["particle_id"] == NOISE] = 0
    return Truth(
        particle_id=truth["particle_id"],
        order=order.astype(np.float32),
        particles=Particles(
            particle_id=table["particle_id"],
            charge=table["q"],
            vertex=vertex.astype(np.float32),
            momentum=_stack(table, "px", "py", "pz"),
            primary=np.hypot(vertex[:, 0], vertex[:, 1]) < PRIMARY_RADIUS,
        ),
        weight=truth["weight"],
    )


def _align(table: dict[str, NDArray[Any]], hit_id: NDArray[np.int64], path: Path) -> dict[str, NDArray[Any]]:
    """Bring the rows of a table into the order of the hits."""
    by_id = np.argsort(table["hit_id"], kind="stable")
    if not np.array_equal(table["hit_id"][by_id], np.sort(hit_id)):
        raise EventError(
            f"{path}: its hit_id are not those of the hits file ({len(by_id)} rows, {len(hit_id)} hits)"
        )
    rows = by_id[np.argsort(np.argsort(hit_id, kind="stable"), kind="stable")]
    return {name: column[rows] for name, column in table.items()}


def _beside(hits_path: Path, what: str) -> Path | None:
    """Find the event's file of another kind; its compression need not be the same."""
    stem = hits_path.name.split("-hits.csv")[0]
    for ending in (".csv", ".csv.gz"):
        path = hits_path.with_name(f"{stem}-{what}{ending}")
        if path.exists():
            return path
    return None


def _read(path: Path, columns: dict[str, pa.DataType]) -> dict[str, NDArray[Any]]:
    try:
        table = pa.csv.read_csv(
            str(path),
            convert_options=pa.csv.ConvertOptions(column_types=columns, include_columns=list(columns)),
        )
    except FileNotFoundError:
        raise EventError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise EventError(f"{path}: cannot be read as a TrackML file: {error}") from None
    for name in columns:
        if table[name].null_count:
            raise EventError(f"{path}: column {name} has {table[name].null_count} missing values")
    return {name: np.array(table[name].to_numpy()) for name in columns}


def _stack(table: dict[str, NDArray[Any]], *names: str) -> NDArray[Any]:
    return np.stack([table[name] for name in names], axis=1)
