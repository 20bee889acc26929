from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.bench.packing import Result, time_set
from tritrack.bench.result import read_result
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.stages.plan_file import find_gpu


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_every_way_takes_its_turn(small_engines, tmp_path, device):
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
    options = ["--repeats", "2", "--pack-hits", "500", "--working-point", "fast", "--device", device]
    done = subprocess.run([*command, "--out", out, *options], check=True, capture_output=True, text=True)
    result = read_result(out, Result)
    assert (result.header.measurement, result.header.threads) == ("packing", 2)
    assert result.device == device
    assert (result.gpu is None) == (device == "cpu")
    rows = result.ways
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


class Finder:
    """Answers at once, and counts how often it is asked."""

    model = "counted"

    def __init__(self):
        self.asked = 0

    def find_many(self, events, *, in_flight, pack_hits):
        self.asked += 1
        return events


@pytest.mark.parametrize(("at_most", "rounds"), [(np.inf, 3), (0.0, 1)])
def test_rounds_end_with_the_time(at_most, rounds):
    finder = Finder()
    (row,) = time_set("none", [], finders=[finder], pack_hits=[], in_flight=1, repeats=3, at_most=at_most)
    assert len(row.seconds) == len(row.ratio) == rounds
    assert finder.asked == rounds + 1


def test_without_a_gpu_it_says_so(small_engines, tmp_path):
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    out = tmp_path / "packing.json"
    command = [
        sys.executable,
        "-m",
        "tritrack.bench.packing",
        tmp_path,
        "--engines",
        small_engines,
        "--out",
        out,
    ]
    done = subprocess.run([*command, "--device", "gpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tritrack: --device gpu: there is no GPU here, or torch cannot use it\n"
    assert not out.exists()
