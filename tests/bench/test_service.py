from __future__ import annotations

import ctypes
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

import tritonclient.utils
from tritonclient.utils import InferenceServerException

from tritrack.bench.result import read_result
from tritrack.bench.serving.in_process import Answer, InProcess, InProcessError, digest
from tritrack.bench.serving.regions import DeviceRegion, HostRegion, NoRegionError
from tritrack.bench.serving.service_cost import (
    Cost,
    Figure,
    Result,
    Sample,
    cost_of,
    figure_of,
    goal_of,
    goals_of,
    throughput_of,
)
from tritrack.bench.serving.ways import CUDA, GRPC, HTTP, SYSTEM, ByHttp, ByMemory
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError
from tritrack.service.protocol import StepStatistics
from tritrack.service.server import Server
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import find_gpu

if TYPE_CHECKING:
    from pathlib import Path

MODELS = ("track_finder", "track_finder_fused")


def drawn_event(number: int, n_hits: int) -> Event:
    return Event(
        event_id=number,
        hits=drawn_hits(n_hits=n_hits, seed=number),
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), dtype=np.int32),
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two events, of 300 and 200 hits."""
    folder = tmp_path_factory.mktemp("drawn")
    for number, n_hits in enumerate((300, 200)):
        write_event(drawn_event(number, n_hits), folder / event_file(number))
    return folder


@pytest.fixture(scope="module")
def served(small_engines: Path, tmp_path_factory: pytest.TempPathFactory):
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    render_repository(engines=small_engines, out=repository, server="embedded", device="cpu", threads=1)
    with Server(repository, models=MODELS[:1]) as running:
        yield running


def step(name: str, queue: float, moved: float, compute: float) -> StepStatistics:
    """A step's account of one request, from ms."""
    return StepStatistics(
        name=name,
        count=1,
        queue_ns=round(queue * 1e6),
        compute_ns=round((moved + compute) * 1e6),
        moved_ns=round(moved * 1e6),
    )


def test_where_the_time_goes():
    """Two samples: 100 and 120 ms, of which the steps compute 70 and 84; in process it takes 80."""
    steps = [
        (step("graph_fast", 0.5, 2.0, 40.0), step("filter_fast", 1.5, 2.0, 30.0)),
        (step("graph_fast", 0.5, 2.0, 50.0), step("filter_fast", 1.5, 2.0, 34.0)),
    ]
    samples = [
        Sample(seconds=s, cpu_seconds=s + 0.01, encode_seconds=0.002, decode_seconds=0.001, steps=some)
        for s, some in zip((0.1, 0.12), steps, strict=True)
    ]
    answers = [Answer(labels="", seconds=0.08, cpu_seconds=0.08, stages={"graph": 0.045, "filter": 0.03})] * 2
    stages = {"graph_fast": "graph", "filter_fast": "filter"}
    cost = cost_of(
        samples,
        answers,
        events="drawn",
        n_events=2,
        n_hits=500,
        model="track_finder",
        way=GRPC,
        megabytes=0.5,
        stages=stages,
        n_other_labels=0,
    )
    assert [(row.step, row.compute_ms, row.in_process_ms) for row in cost.steps] == [
        ("graph_fast", pytest.approx(45), pytest.approx(45)),
        ("filter_fast", pytest.approx(32), pytest.approx(30)),
    ]
    parts = (cost.encode_ms, cost.decode_ms, cost.queue_ms, cost.moved_ms, cost.compute_ms, cost.transfer_ms)
    assert parts == pytest.approx((2, 1, 2, 4, 77, 110 - 86))
    assert (cost.in_process_ms, cost.in_process_seconds) == (pytest.approx(80), (0.08, 0.08))
    # Two samples have no median, and nothing is made of them.
    nothing = Figure(n=2, p50=None, low=None, high=None)
    assert (cost.added_ms, cost.cpu_added_ms, cost.outside_ms, cost.ratio) == (nothing,) * 4
    assert cost.added_ms_per_megabyte is None
    many = cost_of(
        samples * 20,
        answers * 20,
        events="drawn",
        n_events=2,
        n_hits=500,
        model="track_finder",
        way=GRPC,
        megabytes=0.5,
        stages=stages,
        n_other_labels=0,
    )
    medians = [figure.p50 for figure in (many.added_ms, many.cpu_added_ms, many.outside_ms, many.ratio)]
    assert medians == pytest.approx([30, 40, 33, (0.8 + 2 / 3) / 2])
    assert many.added_ms_per_megabyte == pytest.approx(60)


@pytest.mark.parametrize(
    ("samples", "p50", "low", "high"),
    [
        ([], None, None, None),
        ([1.0] * 5, None, None, None),
        (range(10), None, 1, 8),
        (range(101), 50, 40, 60),
        ([3.0] * 40, 3, 3, 3),
    ],
)
def test_the_middle_of_samples(samples, p50, low, high):
    """The binomial distribution leaves 2.1 % on either side of the second and the ninth of ten samples."""
    assert figure_of(list(samples)) == Figure(n=len(samples), p50=p50, low=low, high=high)


@pytest.mark.parametrize(
    ("p50", "low", "high", "below", "met"),
    [
        (5.0, 4.0, 6.0, True, True),
        (5.0, 4.0, 20.0, True, None),
        (25.0, 20.0, 26.0, True, False),
        (25.0, 20.0, 26.0, False, True),
        (5.0, 4.0, 6.0, False, False),
        (5.0, 4.0, 26.0, False, None),
        (None, 4.0, 6.0, True, None),
        (None, None, None, True, None),
    ],
)
def test_a_goal_is_met_where_the_interval_says_so(p50, low, high, below, met):
    figure = Figure(n=30, p50=p50, low=low, high=high)
    assert goal_of("cost", events="drawn", figure=figure, limit=20.0, below=below).met is met


def test_what_is_watched_and_what_is_judged():
    """gRPC alone is judged; throughput is by requests in flight."""
    figure = Figure(n=40, p50=0.9, low=0.8, high=1.0)
    common = {"events": "drawn", "n_events": 1, "n_hits": 9, "ratio": figure, "added_ms": figure}
    costs = [Cost(model="track_finder", way=way, **common) for way in (GRPC, HTTP)]
    costs.append(Cost(events="drawn", n_events=1, n_hits=9, model="track_finder", way=CUDA, missing="no GPU"))
    rows = [throughput_of([2.0] * n, [1.0] * n, events="drawn", in_flight=n, n_requests=8) for n in (4, 24)]
    goals = goals_of(costs, rows, on_gpu=False)
    assert [goal.met for goal in goals] == [True, None, False]
    result = Result(header=None, costs=tuple(costs), throughputs=tuple(rows), goals=goals)
    assert result.ratios() == {
        "drawn, track_finder: in process by grpc": 0.9,
        "drawn, 24 in flight: ensemble by fused": 0.5,
    }


@pytest.mark.parametrize(
    ("way", "seconds", "met"),
    [(GRPC, 1.04, True), (GRPC, 1.06, False), (CUDA, 1.01, True), (SYSTEM, 1.03, False), (HTTP, 1.5, None)],
)
def test_on_a_gpu_a_share_of_the_event_is_judged(way, seconds, met):
    cost = Cost(
        events="drawn",
        n_events=1,
        n_hits=9,
        model="track_finder",
        way=way,
        seconds=(seconds,) * 20,
        in_process_seconds=(1.0,) * 20,
    )
    missing = Cost(events="drawn", n_events=1, n_hits=9, model="other", way=way, missing="not here")
    assert [goal.met for goal in goals_of([cost, missing], [], on_gpu=True)] == [met] * (way != HTTP)


def test_the_chain_in_its_process_gives_its_labels(drawn, small_engines, tmp_path):
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    chain = Pipeline.load(small_engines, threads=1, working_point="fast")
    with InProcess(
        [drawn],
        first=[2],
        engines=small_engines,
        device="cpu",
        threads=1,
        working_point="fast",
        environment=environment,
    ) as alone:
        for number, n_hits in ((1, 200), (0, 300)):
            answer = alone.find(number)
            assert answer.labels == digest(chain.find(drawn_event(number, n_hits).hits))
            assert 0 < sum(answer.stages.values()) <= answer.seconds
        with pytest.raises(InProcessError, match="ended with status 1"):
            alone.find(2)


@pytest.mark.parametrize("way", [HTTP, SYSTEM])
def test_a_way_gives_the_clients_labels(served, way):
    """Events of growing and falling size, so that what the one before left behind would show."""
    with TrackFinder(served.url) as finder:
        info = finder.server_info()
        by = (
            ByHttp(served.http_url, info=info, timeout=60)
            if way == HTTP
            else ByMemory(served.url, info=info, name=way, max_hits=500, timeout=60)
        )
        for number, n_hits in enumerate((100, 500, 3)):
            event = drawn_event(number, n_hits)
            labels = by.find(event)
            np.testing.assert_array_equal(labels, finder.find(event))
            assert min(by.client_seconds(event, labels)) > 0
        bad = drawn_event(1, 500)
        bad.hits[7] = np.nan
        with pytest.raises(EventRefusedError, match="rows 7"):
            by.find(bad)
        by.close()


def test_a_region_is_gone_when_it_is_closed(served):
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(served.url) as client:
        region = HostRegion(client, size=40)
        region.write(np.arange(5))
        np.testing.assert_array_equal(region.read((3,), np.dtype(np.int64)), [0, 1, 2])
        assert region.name in client.get_system_shared_memory_status().regions
        region.close()
        assert region.name not in client.get_system_shared_memory_status().regions
    with pytest.raises(FileNotFoundError):
        SharedMemory(region.name)


class Refusing:
    """A server that refuses a region, or to let go of one."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.name = ""

    def register_system_shared_memory(self, name: str, key: str, size: int) -> None:
        self.name = name
        self._answer("register")

    def register_cuda_shared_memory(self, name: str, handle: bytes, device: int, size: int) -> None:
        self._answer("register")

    def unregister_system_shared_memory(self, name: str) -> None:
        self._answer("unregister")

    def _answer(self, what: str) -> None:
        if what == self.refused:
            raise InferenceServerException(f"{what}: no")


@pytest.mark.parametrize("refused", ["register", "unregister"])
def test_no_region_stays_where_a_server_refuses(refused):
    client = Refusing(refused)
    with pytest.raises(InferenceServerException, match=f"{refused}: no"):
        HostRegion(client, size=40).close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(client.name)


class CudaSharedMemoryException(Exception):  # noqa: N818 (Triton's name)
    """Of the stand-in for Triton's module."""


def test_a_gpus_memory_that_cannot_be_shared_is_said(monkeypatch):
    """It, and a server that refuses it, stand in: there is no GPU. What was made before is removed."""
    removed = []

    def create(name, size, device):
        if size > 100:
            raise CudaSharedMemoryException("unable") from RuntimeError("out of memory")
        return name

    memory = SimpleNamespace(
        CudaSharedMemoryException=CudaSharedMemoryException,
        create_shared_memory_region=create,
        get_raw_handle=lambda handle: b"",
        destroy_shared_memory_region=removed.append,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(tritonclient.utils, "cuda_shared_memory", memory, raising=False)
    start = "memory of the GPU cannot be shared with the server: "
    with pytest.raises(NoRegionError, match=f"^{start}unable: out of memory$"):
        DeviceRegion(Refusing("register"), size=101)
    assert removed == []
    with pytest.raises(NoRegionError, match=f"^{start}register: no$"):
        DeviceRegion(Refusing("register"), size=100)
    assert len(removed) == 1


@pytest.mark.gpu
def test_hits_lie_in_a_gpus_memory(served):
    pytest.importorskip("cuda.bindings", reason="needs the package cuda-python")
    with TrackFinder(served.url) as finder:
        by = ByMemory(served.url, info=finder.server_info(), name=CUDA, max_hits=500, timeout=60)
        event = drawn_event(0, 500)
        np.testing.assert_array_equal(by.find(event), finder.find(event))
        by.close()


def command_of(*options: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "tritrack.bench.service", *options]


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so(drawn, small_engines, tmp_path):
    command = command_of(drawn, "--engines", small_engines, "--out", tmp_path / "no.json", "--device", "gpu")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "tritrack: --device gpu: there is no GPU here, or torch cannot use it\n"
    assert done.returncode == 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_every_way_takes_its_turn(drawn, small_engines, tmp_path, device):
    out = tmp_path / "service.json"
    command = command_of(drawn, "--engines", small_engines, "--out", out)
    options = ["--rounds", "3", "--in-flight", "2", "--working-point", "fast", "--device", device]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    result = read_result(out, Result)
    assert (result.gpu is None) == (device == "cpu")
    assert (result.header.measurement, result.header.working_point) == ("service", "fast")
    measured = [cost for cost in result.costs if cost.missing is None]
    models = [f"{model}_fast" for model in MODELS]
    ways = {(cost.model, cost.way) for cost in measured}
    assert ways >= {(model, way) for model in models for way in (GRPC, HTTP, SYSTEM)}
    assert {(cost.model, cost.way) for cost in result.costs} == ways | {(model, CUDA) for model in models}
    assert not any(cost.n_other_labels for cost in measured)
    for cost in measured:
        assert (cost.n_events, cost.n_hits, len(cost.seconds)) == (2, 500, 6)
        assert cost.megabytes == pytest.approx(250 * (12 + 8) / 1e6)
        assert len(cost.steps) == (5 if cost.model == models[0] else 1)
        parts = cost.encode_ms + cost.decode_ms + cost.queue_ms + cost.moved_ms + cost.compute_ms
        assert parts + cost.transfer_ms == pytest.approx(1e3 * np.mean(cost.seconds))
        assert min(cost.encode_ms, cost.decode_ms, cost.queue_ms, cost.moved_ms, cost.compute_ms) > 0
        assert cost.outside_ms is not None
        assert cost.outside_ms.low is not None
        assert cost.outside_ms.low > 0
    # The rows of one set share the chain's times.
    assert len({cost.in_process_seconds for cost in measured}) == 1
    (throughput,) = result.throughputs
    assert (throughput.in_flight, throughput.n_requests, len(throughput.fused_seconds)) == (2, 4, 3)
    assert "cannot be told" in done.stdout
