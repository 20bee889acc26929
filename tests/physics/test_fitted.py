"""Files of fitted tracks."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tritrack.events.event import EventError
from tritrack.physics.fitted import FITTED_COLUMNS, check_fitted_file, write_fitted


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "fitted.parquet"
    fits = {100: np.arange(24, dtype=np.float32).reshape(3, 8), 7: np.empty((0, 8), np.float32)}
    fits[104] = np.full((1, 8), np.nan, np.float32)
    with write_fitted(path) as writer:
        for event_id, fitted in fits.items():
            writer.add(event_id, fitted)
    table = pq.read_table(path)
    assert table.schema.names == ["event_id", "track_label", *FITTED_COLUMNS]
    assert table.schema.types == [pa.int64()] * 2 + [pa.float32()] * 8
    assert table["event_id"].to_pylist() == [100, 100, 100, 104]
    assert table["track_label"].to_pylist() == [0, 1, 2, 0]
    values = np.stack([table[name].to_numpy() for name in FITTED_COLUMNS], axis=1)
    np.testing.assert_array_equal(values, np.concatenate(list(fits.values())))  # NaN where NaN was


@pytest.mark.parametrize("fitted", [np.zeros((2, 8)), np.zeros((2, 7), np.float32), np.zeros(8, np.float32)])
def test_other_arrays_are_named_and_leave_no_file(tmp_path, fitted):
    path = tmp_path / "fitted.parquet"
    sentence = f"event 100: fits are {fitted.dtype} {list(fitted.shape)}, wanted is float32 [n_tracks, 8]"
    with pytest.raises(EventError, match=re.escape(sentence)), write_fitted(path) as writer:
        writer.add(100, fitted)
    assert list(tmp_path.iterdir()) == []


def test_another_ending(tmp_path):
    with pytest.raises(EventError, match=r"f.csv: a file of fitted tracks ends in \.parquet"):
        check_fitted_file(tmp_path / "f.csv")
