from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")
pytest.importorskip("psutil")

from tritrack.bench.load_generator.arrivals import poisson_arrivals
from tritrack.bench.result import make_header, read_result
from tritrack.bench.tail_latency import Point, Result, Row, requests_of_shares
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.failures import UsageError
from tritrack.stages.card import read_card


@pytest.mark.parametrize(
    ("shares", "requests", "found"),
    [
        ((0.3, 0.9), [50], [(0.3, 50), (0.9, 50)]),
        ((0.9, 0.3), [100, 20], [(0.3, 20), (0.9, 100)]),  # rising, each with its own number
        ((1.5,), [7], [(1.5, 7)]),  # overload is a load, too
    ],
)
def test_each_share_has_its_requests(shares, requests, found):
    assert list(requests_of_shares(shares, requests).items()) == found


@pytest.mark.parametrize(
    ("shares", "requests", "why"),
    [
        ((0.0, 0.5), [1], "--share: 0, 0.5 given, each above 0"),
        ((float("nan"),), [1], "--share: nan given"),
        ((0.5, 0.5), [1], "--share: 0.5, 0.5 given"),
        ((0.1, 0.2, 0.3), [1, 2], "--requests: 2 given for 3 shares, 1 or as many wanted"),
    ],
)
def test_shares_that_are_none_are_refused(shares, requests, why):
    with pytest.raises(UsageError, match=why):
        requests_of_shares(shares, requests)


def test_ratios_are_of_one_run_and_of_answers_enough(small_engines, open_load):
    """p95 wants 200 answers."""
    points = (
        Point(share=0.3, load=open_load(rate=20.0, latencies=[0.05] * 200)),
        Point(share=0.5, load=open_load(rate=40.0, latencies=[0.05] * 100)),
        Point(share=0.9, load=open_load(rate=40.0, latencies=[0.2] * 200)),
    )
    header = make_header(
        "tail_latency", card=read_card(small_engines), working_point=None, threads=1, packages=()
    )

    def ratios(*some):
        rows = (Row(events="few", n_hits=(3,), closed=points[0].load, points=some),)
        return Result(header=header, model="finder", rows=rows).ratios()

    # All answered in 10 s; they came within the time of the last arrival.
    of_rates = {
        f"few: events_per_s over rate at {point.share}": poisson_arrivals(rate, seed=1, n_requests=n)[-1] / 10
        for point, rate, n in zip(points, (20.0, 40.0, 40.0), (200, 100, 200), strict=True)
    }
    assert ratios(*points) == pytest.approx({**of_rates, "few: p95 at 0.3 over 0.9": 0.25})
    assert set(ratios(*points[:2])) == set(list(of_rates)[:2])
    assert set(ratios(points[0])) == set(list(of_rates)[:1])


def test_open_loops_come_at_shares_of_the_throughput(small_engines, tmp_path):
    (tmp_path / "drawn").mkdir()
    for number, n_hits in enumerate((200, 300)):
        event = Event(
            event_id=number,
            hits=drawn_hits(n_hits=n_hits, seed=number),
            hit_id=np.arange(n_hits),
            modules=np.zeros((n_hits, 3), dtype=np.int32),
        )
        write_event(event, tmp_path / "drawn" / event_file(number))
    out = tmp_path / "tail.json"
    command = [sys.executable, "-m", "tritrack.bench.tail_latency", tmp_path / "drawn", "--out", out]
    options = ["--engines", small_engines, "--closed-requests", "12", "--clients", "3"]
    shares = ["--share", "0.8", "--share", "0.4", "--requests", "20", "--requests", "10"]
    subprocess.run([*command, *options, *shares], check=True, capture_output=True)
    result = read_result(out, Result)
    (row,) = result.rows
    assert (result.model, row.events, row.n_hits) == ("track_finder", "drawn", (200, 300))
    assert (row.closed.loop, row.closed.n_clients, row.closed.n_answered) == ("closed", 3, 12)
    assert [(point.share, point.load.n_answered) for point in row.points] == [(0.4, 10), (0.8, 20)]
    for share, load in ((point.share, point.load) for point in row.points):
        assert load.rate == share * row.closed.events_per_s
        assert (load.loop, load.seed, load.errors.by_kind()) == ("open", 1, {})
        assert load.process.n_processes > 5  # the server and its steps
        assert {step.count for step in load.steps} == {load.n_answered}
        assert load.queue() == sum(step.queue for step in load.steps)
        assert load.latency.p95 is None  # of so few answers
    assert set(result.ratios()) == {f"drawn: events_per_s over rate at {share}" for share in (0.4, 0.8)}
