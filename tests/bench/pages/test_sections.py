"""What the sections of the page say of results that are made up."""

from __future__ import annotations

import pytest

for library in ("torch", "onnxscript", "psutil", "matplotlib", "mplhep"):
    pytest.importorskip(library)

from tritrack.bench.costs.counts import Count
from tritrack.bench.costs.peak import Peak
from tritrack.bench.floors import Gap, Machine
from tritrack.bench.floors import Result as Floors
from tritrack.bench.floors import Row as FloorRow
from tritrack.bench.load_generator.figures import Errors, Latency, Load
from tritrack.bench.load_generator.wire import Failure
from tritrack.bench.memory import Memory, growth_of
from tritrack.bench.memory import Result as Memories
from tritrack.bench.memory import Row as MemoryRow
from tritrack.bench.pages.server_sections import memory, service, sweep, tail_latency
from tritrack.bench.pages.size_sections import floors, scaling
from tritrack.bench.result import Header
from tritrack.bench.scaling import Point, fit_points, largest_events
from tritrack.bench.scaling import Result as Scaling
from tritrack.bench.serving.service_cost import Cost, Figure, goal_of, throughput_of
from tritrack.bench.serving.service_cost import Result as Service
from tritrack.bench.sweep import Result as Sweep
from tritrack.bench.sweep import Row as SweepRow
from tritrack.bench.tail_latency import Point as TailPoint
from tritrack.bench.tail_latency import Result as TailLatencies
from tritrack.bench.tail_latency import Row as Tails

HEADER = Header(
    measurement="made up",
    cpu="a processor",
    cores=2,
    threads=1,
    versions={},
    model="small",
    card_sha256="0",
    working_point="best",
)


def test_service_names_samples_goals_and_what_is_missing():
    figure = Figure(n=40, p50=12.5, low=11.0, high=14.0)
    few = Figure(n=3, p50=None, low=None, high=None)
    costs = (
        Cost(events="dense", n_events=2, n_hits=500, model="finder", way="grpc", added_ms=figure, ratio=few),
        Cost(events="dense", n_events=2, n_hits=500, model="finder", way="cuda", missing="no <GPU> here"),
    )
    goals = (
        goal_of("adds little", events="dense", figure=figure, limit=20.0, below=True),
        goal_of("adds less", events="dense", figure=figure, limit=12.0, below=True),
    )
    kept = throughput_of([1.0] * 20, [0.5] * 20, events="dense", in_flight=4, n_requests=8)
    page = service(Service(header=HEADER, gpu=None, costs=costs, throughputs=(kept,), goals=goals))
    for words in ("12.5<small>11 to 14</small><small>n = 40</small>", "too few samples: 3", "no &lt;GPU&gt; here",
                  "<td>met</td>", "cannot be told", "2 events, 250 hits each", "0.5<small>"):  # fmt: skip
        assert words in page


def test_memory_is_drawn_and_its_growth_said():
    own = [100.0 + number for number in range(8)]
    series = [
        Memory(requests=10 * (number + 1), own=value, resident=0.0, shm=0.0)
        for number, value in enumerate(own)
    ]
    growth = growth_of(own, n_requests=80)
    row = MemoryRow(
        model="finder",
        n_found=75,
        n_refused=5,
        before=series[0],
        series=tuple(series),
        own=growth,
        resident=growth,
        shm=growth,
    )
    page = memory(Memories(header=HEADER, seed=1, rows=(row,)))
    assert f"{growth.per_1000_requests:+.1f}" in page
    assert "n = 80 requests, 5 refused" in page
    assert page.count("<img") == 1


def test_tails_stand_where_there_are_answers_enough(open_load):
    """200 answers are enough for a p95, 20 for a median."""
    lost = [Failure(kind="timeout", message="late")] * 3
    points = (
        TailPoint(share=0.3, load=open_load(rate=2.0, latencies=[0.041] * 20, queues=[0.002, 0.005])),
        TailPoint(
            share=0.9,
            load=open_load(rate=20.25, latencies=[0.123] * 200, failures=lost, cpu_seconds=8.0),
        ),
    )
    closed = load_of(4, events_per_s=22.5, p50=0.1)
    rows = (Tails(events="dense", n_hits=(100, 900), closed=closed, points=points),)
    page = tail_latency(TailLatencies(header=HEADER, model="finder", rows=rows))
    for words in ("dense: 2 events of 100 to 900 hits", "<td>throughput</td><td>4 clients<small>n = 20 in 2 s</small></td>",
                  "<td>0.3 of it</td><td>2 due in a second<small>n = 20 in 10 s</small></td><td>2.00</td>",
                  "<td>41</td><td></td><td></td><td></td><td>7</td>", "<td>123</td><td>123</td><td></td><td></td><td></td>",
                  "0.80<small>may have set the pace</small></td><td>3 timeout</td>"):  # fmt: skip
        assert words in page
    assert page.count("may have set the pace</small>") == 1
    assert page.count("<img") == 1


def load_of(n_clients, *, events_per_s, p50):
    return Load(
        loop="closed",
        n_clients=n_clients,
        rate=None,
        seed=None,
        max_in_flight=None,
        n_held=None,
        seconds=2.0,
        n_sent=20,
        n_answered=20,
        n_hits=2000,
        events_per_s=events_per_s,
        hits_per_s=1000.0,
        latency=Latency(n=20, mean=p50, max=p50, p50=p50, p95=None, p99=None, p999=None),
        errors=Errors(unavailable=0, timeout=0, refused=0, other=0, first=()),
        late_share=None,
        late_max=None,
        generator_cores=0.1,
        saturated=False,
        steps=(),
        process=None,
        gpus=(),
        absent=(),
    )


def test_instances_are_set_against_one_of_each():
    rows = [
        SweepRow(
            setting=setting,
            n_clients=clients,
            loads=(load_of(clients, events_per_s=rate, p50=clients / rate),),
            ratio=(rate / 10,),
            cpu_ratio=(1.0,),
        )
        for setting, rate in (("1", 10.0), ("2", 15.0))
        for clients in (1, 8)
    ]
    page = sweep(
        Sweep(
            header=HEADER, n_hits=(100, 900), heaviest="gnn", heaviest_share=0.625, rows=tuple(rows), best="2"
        )
    )
    for words in (
        "1.50<small>1.50 to 1.50, n = 1",
        "heaviest step is gnn (62 % of the time of all)",
        "100 to 900 hits",
        "533<small>n = 20",
        "<small>1 client</small>",
        "<small>8 clients</small>",
    ):
        assert words in page
    assert page.count("<img") == 2


@pytest.mark.parametrize("n_points", [2, 4])
def test_scaling_gives_exponents_where_there_are_laws(n_points):
    points = []
    for number in range(n_points):
        n_hits = 20_000 * 2**number
        points.append(
            Point(
                axes=("density",),
                turn=1.0,
                n_events=1,
                pileup=None,
                n_hits=n_hits,
                hits_sha256=str(number),
                memory=Peak(
                    base_bytes=10**8,
                    stage_bytes={"gnn": 1000 * n_hits},
                    chain_bytes=1000 * n_hits,
                    n_pairs=n_hits,
                    n_edges=n_hits,
                ),
                seconds={"gnn": (1e-6 * n_hits**1.5,), "chain": (1e-6 * n_hits**1.5,)},
                cpu_seconds={"gnn": (1.0,), "chain": (1.0,)},
            )
        )
    fits = fit_points(points)
    largest = largest_events(points, fits, max_hits=10**5)
    page = scaling(Scaling(header=HEADER, points=tuple(points), fits=tuple(fits), largest=tuple(largest)))
    assert ("1.50" in page) is (n_points > 2)
    assert ("over the model" in page) is (n_points > 2)
    assert page.count("<img") == 2


def test_floors_end_with_the_largest_gaps():
    row = FloorRow(
        event_id=100,
        n_hits=1000,
        n_pairs=5,
        n_edges=3,
        device="cpu",
        stage="gnn",
        count=Count(bytes=10),
        seconds=(0.2, 0.4),
        floor_seconds=(0.1, 0.1),
        unfused_seconds=(),
        bound="bytes",
        fraction=0.4,
        cpu_fraction=None,
    )
    machine = Machine(device="cpu", clock="wall", bandwidth=(2e9,), rates={"square": (3e9,)})
    gap = Gap(device="cpu", stage="gnn", seconds=0.25, factor=2.5)
    page = floors(Floors(header=HEADER, gpu=None, machines=(machine,), rows=(row,), gaps=(gap,)))
    assert "300<small>n = 2</small>" in page
    assert "40.0 %" in page
    assert page.endswith("<ol><li>gnn on cpu: 250 ms above its floor, 2.5 times as long</li></ol>")
