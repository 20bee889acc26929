"""Files of fitted tracks: the helix of each track of each event, as Parquet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.events.event import EventError
from tritrack.events.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

FITTED_COLUMNS = ("pt", "phi", "eta", "d0", "z0", "charge", "chi2", "ndf")
"""Of the fit's result; pT in GeV, phi in radians, d0 and z0 in mm."""

_SUFFIX = ".parquet"


def check_fitted_file(path: Path) -> Path:
    """Check that a path can be a file of fitted tracks, before work is spent on it.

    Raises
    ------
    EventError
        On an unknown ending.
    """
    if path.suffix != _SUFFIX:
        raise EventError(f"{path}: a file of fitted tracks ends in {_SUFFIX}")
    return path


class FittedWriter:
    """Takes fits event by event; made by `write_fitted`."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file

    def add(self, event_id: int, fitted: NDArray[np.float32]) -> None:
        """Write the fits of one event.

        Parameters
        ----------
        event_id
            Number of the event.
        fitted
            float32 [n_tracks, 8], row t of label t, see ``FITTED_COLUMNS``.

        Raises
        ------
        EventError
            Where the fits have another dtype or shape.
        """
        if fitted.dtype != np.float32 or fitted.shape[1:] != (len(FITTED_COLUMNS),):
            raise EventError(
                f"{self._path}: event {event_id}: fits are {fitted.dtype} {list(fitted.shape)}, "
                f"wanted is float32 [n_tracks, {len(FITTED_COLUMNS)}]"
            )
        n_tracks = len(fitted)
        columns = [np.full(n_tracks, event_id), np.arange(n_tracks), *np.ascontiguousarray(fitted.T)]
        import pyarrow as pa

        self._file.write_table(pa.Table.from_arrays([pa.array(c) for c in columns], schema=_schema()))


@contextmanager
def write_fitted(path: Path) -> Iterator[FittedWriter]:
    """Open a file of fitted tracks for writing. It appears when all is written, and not at all after an error.

    Its columns are event_id and track_label (int64), and ``FITTED_COLUMNS`` (float32); one row a track.

    Parameters
    ----------
    path
        The file, ``.parquet``; its folder is made if missing.

    Yields
    ------
    FittedWriter
        Takes the events.

    Raises
    ------
    EventError
        On an unknown ending.
    """
    import pyarrow.parquet as pq

    check_fitted_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, _schema(), compression="zstd") as file,
    ):
        yield FittedWriter(path, file)


def _schema() -> Any:
    import pyarrow as pa  # here: the fit takes the names of its columns from this module, and writes no files

    keys = [pa.field(name, pa.int64(), nullable=False) for name in ("event_id", "track_label")]
    return pa.schema([*keys, *(pa.field(name, pa.float32(), nullable=False) for name in FITTED_COLUMNS)])
