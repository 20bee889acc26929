from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")
pytest.importorskip("psutil")

from tritrack.bench.memory import LARGEST, SMALLEST, Growth, Result, draw_requests, growth_of
from tritrack.bench.result import read_result
from tritrack.bench.serving.processes import family, processor_seconds
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits


@pytest.mark.parametrize(
    ("values", "growth"),
    [
        # Of the first quarter nothing is made: there the server finds its size.
        ([1, 9, 9, 9], Growth(peak=9, second_quarter=9, last_quarter=9, growth=0, per_1000_requests=0)),
        ([1, 9, 5, 7], Growth(peak=9, second_quarter=9, last_quarter=7, growth=-2, per_1000_requests=-2)),
        (
            [0, 50, 10, 20, 60, 15, 20, 40],
            Growth(peak=60, second_quarter=15, last_quarter=30, growth=15, per_1000_requests=15),
        ),
    ],
)
def test_growth_is_from_the_second_quarter_to_the_last(values, growth):
    assert growth_of(values, n_requests=2000) == growth


def test_requests_are_mixed_and_the_same_for_a_seed():
    events = [drawn_hits(n_hits=n_hits, seed=1) for n_hits in (200, 5000)]
    draw = {"n_requests": 400, "max_hits": 9000}
    requests = list(draw_requests(events, seed=3, **draw))
    again = list(draw_requests(events, seed=3, **draw))
    assert all(np.array_equal(a, b, equal_nan=True) for (a, _), (b, _) in zip(requests, again, strict=True))
    good = [len(hits) for hits, bad in requests if not bad]
    assert min(good) >= SMALLEST
    assert LARGEST / 2 < max(good) <= LARGEST
    assert len(set(good)) > 100
    bad = [hits for hits, bad in requests if bad]
    assert sorted({len(hits) > 9000 or bool(np.isnan(hits).any()) for hits in bad}) == [True]
    assert [len(hits) for hits in bad].count(9001) == 2
    assert len(bad) == 22
    assert all(np.isfinite(hits).all() for hits, bad in requests if not bad)
    assert not any(np.isnan(hits).any() for hits in events)


def test_processor_time_is_that_of_all_threads():
    """Of another process, which works until it has had 50 ms of processor time, and then waits."""
    work = (
        "import time\nwhile time.process_time() < 0.05: pass\nprint(time.process_time(), flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        said = float(process.stdout.readline())
        seconds = processor_seconds([one.pid for one in family(process.pid)])
        process.communicate("\n")
    assert said <= seconds < said + 0.05
    with pytest.raises(OSError, match=f"process {process.pid} has no clock"):
        processor_seconds([process.pid])


def test_the_bench_tells_growth(small_engines, tmp_path):
    (tmp_path / "drawn").mkdir()
    event = Event(
        event_id=1,
        hits=drawn_hits(n_hits=300, seed=1),
        hit_id=np.arange(300),
        modules=np.zeros((300, 3), dtype=np.int32),
    )
    write_event(event, tmp_path / "drawn" / event_file(1))
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "tritrack.bench.memory", "--events", tmp_path / "drawn", "--out", out]
    options = ["--engines", small_engines, "--requests", "24", "--every", "3"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    result = read_result(out, Result)
    assert [row.model for row in result.rows] == ["track_finder", "track_finder_fused"]
    for row in result.rows:
        assert (row.n_found, row.n_refused) == (21, 3)
        assert [memory.requests for memory in row.series] == list(range(3, 25, 3))
        for memory in (row.before, *row.series):
            assert 0 < memory.shm < memory.own < memory.resident
        assert row.own == growth_of([memory.own for memory in row.series], n_requests=24)
    assert set(result.ratios()) == {"track_finder: flat", "track_finder_fused: flat"}
    refused = subprocess.run([*command, "--requests", "10"], capture_output=True, text=True, check=False)
    assert (refused.returncode, "four equal quarters" in refused.stderr) == (2, True)
