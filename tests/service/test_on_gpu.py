"""A repository rendered for a GPU, in a real server, and the same checks on a CPU where that says something."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

psutil = pytest.importorskip("psutil")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.ensemble_repo.plan import Instances
from tritrack.ensemble_repo.render import render_repository
from tritrack.service.client import TrackFinder
from tritrack.service.errors import ServerStartError, UnavailableError
from tritrack.service.server import Server
from tritrack.stages.card import CARD_FILE, ENSEMBLE, FUSED, Limits, read_card
from tritrack.stages.engine import cuda_is_there
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.placement import find_device
from tritrack.stages.plan_file import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    HitsOf = Callable[..., np.ndarray]
    HostBytes = Callable[[Server], dict[str, int]]

ON_GPU = pytest.param("gpu", marks=pytest.mark.gpu)
SIZES = (3400, 1200, 0, 4700, 1, 2600, 3)
"""Hits of events without pile-up, and of events with next to nothing."""


@pytest.fixture(scope="module")
def roomy_engines(small_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_engines`` with limits that packs of such events keep."""
    folder = shutil.copytree(small_engines, tmp_path_factory.mktemp("roomy") / "engines")
    limits = Limits(max_hits=40_000, max_pairs=400_000, max_edges=400_000)
    (folder / CARD_FILE).write_bytes(replace(read_card(folder), limits=limits).to_json())
    return folder


def render(engines: Path, out: Path, device: Any) -> Path:
    """Write a repository whose fused models have two instances."""
    render_repository(
        engines=engines,
        out=out,
        server="embedded",
        device=device,
        threads=1,
        fused=True,
        instances=Instances(of={"chain": 2}),
    )
    return out


@pytest.fixture(scope="module", params=["cpu", ON_GPU])
def served(
    request: pytest.FixtureRequest, roomy_engines: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str | None]]:
    """A server, and where a chain in process computes as its does."""
    repository = render(roomy_engines, tmp_path_factory.mktemp("served") / "repository", request.param)
    models = [f"{model}{point}" for model in (ENSEMBLE, FUSED) for point in ("", "_fast")]
    with Server(repository, models=models) as running:
        yield running, find_device(request.param.upper(), 0)


@pytest.mark.parametrize("point", [None, "fast"])
@pytest.mark.parametrize("model", [ENSEMBLE, FUSED])
def test_packed_events_have_the_labels_that_they_have_alone(
    served: tuple[Server, str | None],
    roomy_engines: Path,
    hits_of: HitsOf,
    account_of: Callable[..., Any],
    model: str,
    point: Any,
) -> None:
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate(SIZES)]
    server, where = served
    chain = Pipeline.load(roomy_engines, threads=1, working_point=point, device=where)
    with TrackFinder(server.url, model=model, working_point=point, timeout=120.0) as finder:
        alone = [finder.find(hits) for hits in events]
        before = account_of(finder)[0].count
        packed = list(finder.find_many(events, pack_hits=5000))
        assert account_of(finder)[0].count - before == 3
        together = list(finder.find_many(events, pack_hits=20_000))
        assert account_of(finder)[0].count - before == 4
    for hits, *found in zip(events, alone, packed, together, strict=True):
        for labels in found:
            np.testing.assert_array_equal(labels, chain.find(hits))
    assert max(labels.max(initial=0) for labels in alone) > 10  # the comparison means something


STAND_IN = """
import tritrack.ensemble_repo.model as adapter

adapter.find_device = lambda kind, number: "cpu"
TritonPythonModel = adapter.TritonPythonModel
"""
"""A step's adapter, with torch's tensors on the CPU for those on a GPU."""


def test_the_adapter_hands_on_torchs_tensors(
    roomy_engines: Path, tmp_path: Path, hits_of: HitsOf, host_bytes: HostBytes
) -> None:
    """On the CPU as on a GPU: graph, cut and components run in torch and give DLPack to Triton's Python stub."""
    pytest.importorskip("torch")
    repository = render(roomy_engines, tmp_path / "repository", "cpu")
    for adapter in repository.glob("*/1/model.py"):
        adapter.write_text(STAND_IN)
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate(SIZES)]
    with Server(repository, models=[ENSEMBLE, f"{ENSEMBLE}_fast"]) as running:
        for point in (None, "fast"):
            chain = Pipeline.load(roomy_engines, threads=1, working_point=point)
            with TrackFinder(running.url, working_point=point, timeout=120.0) as finder:
                packed = list(finder.find_many(events, pack_hits=20_000))
                for hits, labels in zip(events, packed, strict=True):
                    np.testing.assert_array_equal(labels, chain.find(hits))
                    np.testing.assert_array_equal(finder.find(hits), labels)
            assert max(labels.max(initial=0) for labels in packed) > 10
        log = running.log()
        # The filter's network is one of the host's.
        assert {step for step, count in host_bytes(running).items() if count} == {
            "filter_fast",
            "filter_balanced",
        }
    for step in ("graph_fast", "filter_fast", "labelling_fast"):
        assert re.search(rf"{step}: loaded from .*, 1 threads, device cpu", log)


def test_a_tensor_that_had_no_room_on_the_gpu_is_refused(
    roomy_engines: Path, tmp_path: Path, hits_of: HitsOf
) -> None:
    """Torch's tensors on the CPU come to the next step as the host's, like those that overflow from a GPU."""
    pytest.importorskip("torch")
    repository = render(roomy_engines, tmp_path / "repository", "cpu")
    (repository / "filter_fast" / "1" / "model.py").write_text(STAND_IN)
    config = repository / "filter_fast" / "config.pbtxt"
    parameter = 'parameters { key: "on_gpu" value { string_value: "EDGE_INDEX" } }'
    config.write_text(f"{config.read_text()}\n{parameter}\n")
    with (
        Server(repository, models=[ENSEMBLE, f"{ENSEMBLE}_fast"]) as running,
        TrackFinder(running.url, working_point="fast", timeout=60.0, retries=0) as finder,
    ):
        assert finder.find(hits_of(1)).tolist() == [-1]  # no pairs: nothing that has no room
        with pytest.raises(
            UnavailableError, match=r"filter_fast: .*EDGE_INDEX came by the host.* --in-flight"
        ):
            finder.find(hits_of(1200))


@pytest.mark.gpu
def test_what_runs_on_the_gpu_takes_nothing_to_the_host(
    roomy_engines: Path, tmp_path: Path, hits_of: HitsOf, host_bytes: HostBytes
) -> None:
    """Networks in an ONNX Runtime without CUDA run on the host; what they and walkthrough copy is their inputs."""
    on_gpu = cuda_is_there()
    repository = render(roomy_engines, tmp_path / "repository", "gpu")
    sizes: dict[str, int] = {}
    hits = hits_of(3400)
    with Server(repository, models=[ENSEMBLE, f"{ENSEMBLE}_fast"]) as running:
        before = host_bytes(running)
        for point in (None, "fast"):
            with TrackFinder(running.url, working_point=point, timeout=120.0) as finder:
                finder.find(hits)
            Pipeline.load(roomy_engines, threads=1, working_point=point).find(
                hits, on_stage=lambda stage, out, _, p=point: sizes.update({f"{stage} {p}": sum_bytes(out)})
            )
        crossed = {step: count - before[step] for step, count in host_bytes(running).items()}
    assert {step: crossed[step] for step in ("graph_fast", "labelling_fast")} == {
        "graph_fast": 0,
        "labelling_fast": 0,
    }
    # Where Triton puts what a client or a step of the host gives is not promised: on the GPU it would be copied, too.
    graphs = 0 if on_gpu else 2 * sizes["graph fast"]
    filters = sum(count for step, count in crossed.items() if step.startswith("filter"))
    assert graphs <= filters <= graphs + 2 * hits.nbytes
    kept = 0 if on_gpu else sizes["filter None"] + sizes["filter fast"]
    assert kept <= crossed["gnn"] <= kept + 2 * hits.nbytes


def sum_bytes(tensors: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in tensors.values())


@pytest.mark.tensorrt
def test_with_tensorrt_nothing_crosses_between_the_steps(
    small_weights: Path, scattered_engines: Path, tmp_path: Path, hits_of: HitsOf, host_bytes: HostBytes
) -> None:
    from tritrack.events.event import Event
    from tritrack.export.tensorrt import export_plans

    hits = hits_of(1500)
    event = Event(
        event_id=0, hits=hits, hit_id=np.arange(len(hits)), modules=np.zeros((len(hits), 3), np.int32)
    )
    plans = tmp_path / "plans"
    export_plans(weights=small_weights, engines=scattered_engines, out=plans, events=[event], on_stage=None)
    repository = render(plans, tmp_path / "repository", "gpu")
    with (
        Server(repository, models=[ENSEMBLE, f"{ENSEMBLE}_fast"], start_timeout=300.0) as running,
        TrackFinder(running.url, working_point="fast", timeout=120.0) as finder,
    ):
        before = host_bytes(running)
        assert finder.find(hits).max() > 0
        crossed = {step: count - before[step] for step, count in host_bytes(running).items()}
    assert crossed.pop("embedding") in (
        0,
        hits.nbytes,
    )  # it checks the client's hits, wherever Triton puts them
    assert set(crossed.values()) == {0}


def compute_processes(nvml: Any) -> Counter[int]:
    """Return how often NVML lists each process with a CUDA context, over all GPUs."""
    devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    return Counter(
        process.pid for device in devices for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)
    )


@pytest.mark.gpu
def test_each_instance_of_the_fused_model_keeps_one_context(
    roomy_engines: Path, tmp_path: Path, hits_of: HitsOf
) -> None:
    """NVML lists the processes that have a CUDA context; each instance is a process of its own."""
    import torch

    nvml = pytest.importorskip("pynvml", reason="needs NVML's Python bindings (nvidia-ml-py)")
    nvml.nvmlInit()
    torch.zeros(1, device="cuda")
    if os.getpid() not in compute_processes(nvml):
        pytest.skip("NVML tells other process ids than this machine's (a container with its own)")
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate(SIZES)]
    repository = render(roomy_engines, tmp_path / "repository", "gpu")
    with (
        Server(repository, models=[FUSED]) as running,
        TrackFinder(running.url, model=FUSED, timeout=120.0) as finder,
        ThreadPoolExecutor(6) as pool,
    ):
        instances = {process.pid for process in psutil.Process(running.pid).children(recursive=True)}
        assert len(instances) == 2
        for _ in range(2):
            list(pool.map(finder.find, events))
            listed = compute_processes(nvml)
            assert {pid: listed[pid] for pid in instances} == dict.fromkeys(instances, 1)


@pytest.mark.parametrize("models", [(), (ENSEMBLE,), (f"{FUSED}_fast",)])
def test_without_a_gpu_the_server_says_so(
    roomy_engines: Path, tmp_path: Path, models: tuple[str, ...]
) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    repository = render(roomy_engines, tmp_path / "repository", "gpu")
    wanted = rf"^{re.escape(str(repository))}: \w+ wants a GPU, and there is none here; .* --device cpu$"
    with pytest.raises(ServerStartError, match=wanted):
        Server(repository, models=models).start()
