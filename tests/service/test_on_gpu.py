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
from tritrack.service.errors import ServerStartError
from tritrack.service.server import Server
from tritrack.stages.card import CARD_FILE, ENSEMBLE, FUSED, Limits, read_card
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    HitsOf = Callable[..., np.ndarray]

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
) -> Iterator[Server]:
    repository = render(roomy_engines, tmp_path_factory.mktemp("served") / "repository", request.param)
    models = [f"{model}{point}" for model in (ENSEMBLE, FUSED) for point in ("", "_fast")]
    with Server(repository, models=models) as running:
        yield running


@pytest.mark.parametrize("point", [None, "fast"])
@pytest.mark.parametrize("model", [ENSEMBLE, FUSED])
def test_packed_events_have_the_labels_that_they_have_alone(
    served: Server, roomy_engines: Path, hits_of: HitsOf, model: str, point: Any
) -> None:
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate(SIZES)]
    chain = Pipeline.load(roomy_engines, threads=1, working_point=point)
    with TrackFinder(served.url, model=model, working_point=point, timeout=120.0) as finder:
        alone = [finder.find(hits) for hits in events]
        before = finder.statistics()[0].count
        packed = list(finder.find_many(events, pack_hits=5000))
        assert finder.statistics()[0].count - before == 3
        together = list(finder.find_many(events, pack_hits=20_000))
        assert finder.statistics()[0].count - before == 4
    for hits, *found in zip(events, alone, packed, together, strict=True):
        for labels in found:
            np.testing.assert_array_equal(labels, chain.find(hits))
    assert max(labels.max(initial=0) for labels in alone) > 10  # the comparison means something


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
