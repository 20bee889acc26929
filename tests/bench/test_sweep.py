from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.bench.load_generator.figures import Errors, Latency, Load, StepTime
from tritrack.bench.load_generator.watch import ProcessUse
from tritrack.bench.result import make_header, read_result
from tritrack.bench.sweep import Result, Row, alternate, best_setting, heaviest_step, make_row
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.stages.card import read_card


def load_of(rate: float, *, steps: tuple[StepTime, ...] = (), cores: float | None = None) -> Load:
    return Load(
        loop="closed",
        n_clients=1,
        rate=None,
        seed=None,
        max_in_flight=None,
        n_held=None,
        seconds=1.0,
        n_sent=1,
        n_answered=1,
        n_hits=1,
        events_per_s=rate,
        hits_per_s=rate,
        latency=Latency(n=0, mean=None, max=None, p50=None, p95=None, p99=None, p999=None),
        errors=Errors(unavailable=0, timeout=0, refused=0, other=0, first=()),
        late_share=None,
        late_max=None,
        generator_cores=0.1,
        saturated=False,
        steps=steps,
        process=None if cores is None else ProcessUse(n_processes=1, cores=cores, peak_bytes=0),
        gpus=(),
        absent=(),
    )


def row(setting: str, n_clients: int, rates: tuple[float, ...], one: tuple[float, ...]) -> Row:
    return make_row(
        setting, n_clients, [load_of(rate) for rate in rates], ones=[load_of(rate) for rate in one]
    )


ONE = (10.0, 20.0, 10.0)


@pytest.mark.parametrize(
    ("others", "best", "gain"),
    [
        ({}, "1", 1.0),
        ({"2": (9.0, 25.0, 9.0)}, "1", 1.0),  # one round says nothing
        ({"2": (11.0, 22.0, 11.0), "gnn=2": (12.0, 24.0, 11.0)}, "gnn=2", 1.2),
        ({"2": (10.4, 25.0, 10.4)}, "1", 1.0),  # nor does a little
        ({"2": (12.0, 24.0, 13.0), "gnn=2": (30.0, 60.0, 9.0)}, "2", 1.2),  # a gain in every round
    ],
)
def test_the_best_setting_gains_in_every_round(small_engines, others, best, gain):
    rows = [row("1", 1, (5.0, 5.0, 5.0), (5.0, 5.0, 5.0)), row("1", 8, ONE, ONE)]
    rows += [row(name, 8, rates, ONE) for name, rates in others.items()]
    rows += [row(name, 64, (99.0,) * 3, ONE) for name in others]  # settings are compared at 8 clients
    assert best_setting(rows) == best
    header = make_header("sweep", card=read_card(small_engines), working_point=None, threads=1, packages=())
    result = Result(
        header=header, n_hits=(1,), heaviest="gnn", heaviest_share=0.6, rows=tuple(rows), best=best
    )
    assert result.ratios() == {
        "events_per_s, best instances over 1 each": pytest.approx(gain),
        "events_per_s, 8 clients over 1": 2.0,
    }


@pytest.mark.parametrize(
    ("cores", "cores_of_one", "cpu_ratio"),
    [
        ((2.0, 2.0), (1.0, 1.5), (1.0, 1.5)),  # twice the rate with twice the cores: the same work
        ((0.0, 2.0), (1.0, 1.0), ()),  # a load shorter than a tick of the clock
        ((2.0, 2.0), (1.0, 0.0), ()),
        ((None, None), (None, None), ()),
    ],
)
def test_processor_time_is_compared_where_it_was_told(cores, cores_of_one, cpu_ratio):
    loads = [load_of(20.0, cores=each) for each in cores]
    made = make_row("2", 8, loads, ones=[load_of(10.0, cores=each) for each in cores_of_one])
    assert made.ratio == (2.0, 2.0)
    assert made.cpu_ratio == pytest.approx(cpu_ratio)


@pytest.mark.parametrize(("sizes", "order"), [([], []), ([3], [3]), ([3, 1, 5, 4, 2], [1, 5, 2, 4, 3])])
def test_light_and_heavy_events_alternate(sizes, order):
    assert [len(hits) for hits in alternate([np.zeros((n, 3), np.float32) for n in sizes])] == order


def test_the_heaviest_step_takes_most_of_the_time(small_engines):
    steps = (
        StepTime(name="graph_fast", count=10, queue=9.0, compute=0.3),
        StepTime(name="gnn", count=10, queue=0.0, compute=0.2),
        StepTime(name="filter_balanced", count=0, queue=None, compute=None),
    )
    card = read_card(small_engines)
    heaviest, share = heaviest_step(load_of(1.0, steps=steps), card=card, point="balanced")
    assert (heaviest, share) == ("graph", pytest.approx(0.6))


@pytest.mark.slow
def test_settings_take_turns(small_engines, tmp_path):
    for number, n_hits in enumerate((300, 200)):
        event = Event(
            event_id=number,
            hits=drawn_hits(n_hits=n_hits, seed=number),
            hit_id=np.arange(n_hits),
            modules=np.zeros((n_hits, 3), dtype=np.int32),
        )
        write_event(event, tmp_path / event_file(number))
    out = tmp_path / "out" / "sweep.json"
    command = [sys.executable, "-m", "tritrack.bench.sweep", "--events", tmp_path, "--engines", small_engines]
    options = [
        "--out",
        out,
        "--most",
        "2",
        "--clients",
        "1",
        "--clients",
        "3",
        "--requests",
        "4",
        "--rounds",
        "2",
    ]
    subprocess.run(
        [*command, *options, "--working-point", "fast"], check=True, capture_output=True, text=True
    )
    result = read_result(out, Result)
    heaviest = result.heaviest
    assert 1 / 5 <= result.heaviest_share < 1
    assert [(row.setting, row.n_clients) for row in result.rows] == [
        (setting, n_clients) for setting in ("1", "2", f"{heaviest}=2") for n_clients in (1, 3)
    ]
    for row in result.rows:
        assert [load.n_answered for load in row.loads] == [4 * row.n_clients] * 2
        one = next(other for other in result.rows if (other.setting, other.n_clients) == ("1", row.n_clients))
        rates = [load.events_per_s for load in row.loads]
        np.testing.assert_allclose(row.ratio, np.array(rates) / [load.events_per_s for load in one.loads])
    assert result.n_hits == (200, 300)
    assert (result.header.threads, result.header.working_point) == (1, "fast")
    # A process for each instance of each of the five steps, and the server.
    processes = {row.setting: row.loads[0].process.n_processes for row in result.rows}
    assert processes["2"] == processes["1"] + 5
    assert processes[f"{heaviest}=2"] == processes["1"] + 1
    assert result.best in processes
