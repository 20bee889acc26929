from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.bench.packing import Row
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits


def test_every_way_takes_its_turn(small_engines, tmp_path):
    (tmp_path / "drawn").mkdir()
    for number, n_hits in enumerate((300, 200, 400)):
        event = Event(
            event_id=number,
            hits=drawn_hits(n_hits=n_hits, seed=number),
            hit_id=np.arange(n_hits),
            modules=np.zeros((n_hits, 3), dtype=np.int32),
        )
        write_event(event, tmp_path / "drawn" / event_file(number))
    out = tmp_path / "bench" / "packing.json"
    command = [sys.executable, "-m", "tritrack.bench.packing", tmp_path / "drawn", "--engines", small_engines]
    options = ["--out", out, "--repeats", "2", "--pack-hits", "500", "--working-point", "fast"]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    rows = msgspec.convert(msgspec.json.decode(out.read_bytes())["ways"], list[Row])
    assert [(row.model, row.pack_hits, row.n_requests) for row in rows] == [
        ("track_finder_fast", None, 3),
        ("track_finder_fused_fast", None, 3),
        ("track_finder_fast", 500, 2),
        ("track_finder_fused_fast", 500, 2),
    ]
    assert rows[0].ratio == (1.0, 1.0)
    for row in rows:
        assert (row.events, row.n_events, row.n_hits) == ("drawn", 3, 900)
        np.testing.assert_allclose(row.ratio, np.array(rows[0].seconds) / row.seconds)
    assert len(done.stdout.splitlines()) == 4
