from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from tritrack.bench.stages import CHAIN, StageTime
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.stages.contract import STAGES


def test_every_stage_is_timed_as_often_as_asked(small_engines, tmp_path):
    hits = drawn_hits(n_hits=400, seed=1)
    event = Event(event_id=100, hits=hits, hit_id=np.arange(400), modules=np.zeros((400, 3), dtype=np.int32))
    write_event(event, tmp_path / event_file(100))
    out = tmp_path / "bench" / "stages.json"
    command = [sys.executable, "-m", "tritrack.bench.stages", tmp_path, "--engines", small_engines]
    subprocess.run([*command, "--out", out, "--repeats", "3"], check=True)
    times = msgspec.convert(msgspec.json.decode(out.read_bytes())["stages"], list[StageTime])
    assert [time.stage for time in times] == [*(spec.name for spec in STAGES), CHAIN]
    assert all(len(time.seconds) == 3 and min(time.seconds) > 0 for time in times)
    # Each run is all of its stages.
    *stages, chain = times
    assert (np.sum([time.seconds for time in stages], axis=0) < chain.seconds).all()
    pairs = {time.stage: time.n_edges for time in times}
    assert pairs["graph"] >= pairs["filter"] > 0
    assert pairs["embedding"] is pairs["labelling"] is pairs[CHAIN] is None
