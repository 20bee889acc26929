"""A container's repository in a real server with the native ONNX Runtime backend.

``TRITRACK_NATIVE_SERVER`` names its folder: ``/opt/tritonserver`` in NVIDIA's image, or a copy of the wheel's server with
the backend among its ``backends``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError
from tritrack.stages.contract import EDGE_INDEX, EMBEDDING, NO_TRACK, STAGES, StageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from tritrack.service.server import Server
    from tritrack.stages.card import WorkingPointName
    from tritrack.stages.pipeline import Pipeline

    HitsOf = Callable[..., np.ndarray]

VARIABLE = "TRITRACK_NATIVE_SERVER"
NETWORKS = tuple(spec for spec in STAGES if spec.engine)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def native_folder() -> Path:
    if not (folder := os.environ.get(VARIABLE)):
        pytest.skip(f"needs a tritonserver with native backends; {VARIABLE} names its folder")
    return Path(folder)


@pytest.fixture(scope="module")
def native(
    small_engines: Path, native_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Return a server that runs the networks in its own backend."""
    from tritrack.ensemble_repo.render import render_repository
    from tritrack.service.server import Server

    repository = tmp_path_factory.mktemp("container") / "model_repository"
    render_repository(engines=small_engines, out=repository, server="container", device="cpu", threads=2)
    with Server(repository, executable=native_folder, start_timeout=300.0) as running:
        yield running


@pytest.mark.parametrize("point", [None, "fast", "balanced", "best"])
def test_tracks_are_the_chains(
    native: Server, chain: Pipeline, hits_of: HitsOf, point: WorkingPointName | None
) -> None:
    """Engine files are the same, their library is another: the design's gate between engines."""
    pytest.importorskip("torch")
    from tritrack.export.gates import TRACK_TOLERANCE, share_of_other_tracks

    with TrackFinder(native.url, working_point=point, timeout=60.0) as finder:
        for n_hits in (0, 1, 2, 3, 100, 1000, 2000):
            hits = hits_of(n_hits, seed=n_hits)
            found, expected = finder.find(hits), chain.at(point).find(hits)
            assert share_of_other_tracks(found, expected) <= TRACK_TOLERANCE
            assert found.shape == (n_hits,)
            if n_hits < 3:
                assert found.tolist() == [NO_TRACK] * n_hits
            if n_hits >= 1000:
                assert expected.max() > 10  # the comparison means something


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(("n_hits", "n_edges"), [(0, 0), (1, 0), (50, 0), (50, 1), (900, 4000)])
def test_networks_give_the_same_on_the_same(
    native: Server, small_engines: Path, spec: StageSpec, n_hits: int, n_edges: int
) -> None:
    pytest.importorskip("torch")
    from tritrack.export.gates import NETWORK_TOLERANCE
    from tritrack.stages.engine import load_engine

    rng = np.random.default_rng(n_edges)
    hits = rng.uniform(-1000, 1000, (n_hits, 3)).astype(np.float32)
    edges = rng.integers(0, max(n_hits, 1), (2, n_edges)).astype(np.int32)  # duplicates among them
    inputs = [edges if tensor is EDGE_INDEX else hits for tensor in spec.inputs]
    found, expected = infer(native, spec, inputs), load_engine(spec, small_engines, threads=2)(*inputs)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    scale = np.abs(expected).max(initial=1e-9) if EMBEDDING in spec.engine else 1.0
    assert np.abs(found - expected).max(initial=0.0) <= NETWORK_TOLERANCE["fp32"][spec.name] * scale


def test_what_breaks_the_contract_is_refused(native: Server, hits_of: HitsOf) -> None:
    with TrackFinder(native.url, timeout=60.0) as finder:
        with pytest.raises(EventRefusedError, match="rows 1"):
            finder.find(np.array([[1, 2, 3], [np.nan, 0, 0]], dtype=np.float32))
        assert finder.find(hits_of(100, seed=1)).shape == (100,)


@pytest.mark.gpu
def test_nothing_crosses_between_the_steps(
    scattered_engines: Path,
    tmp_path: Path,
    hits_of: HitsOf,
    host_bytes: Callable[[Server], dict[str, int]],
    native_folder: Path,
) -> None:
    """But for the hits that the entry checks, where Triton puts them on the GPU; ``fast`` labels components."""
    from tritrack.ensemble_repo.render import render_repository
    from tritrack.service.server import Server

    repository = tmp_path / "model_repository"
    render_repository(engines=scattered_engines, out=repository, server="container", device="gpu", threads=2)
    hits = hits_of(2000, seed=1)
    with (
        Server(repository, executable=native_folder, start_timeout=300.0) as running,
        TrackFinder(running.url, working_point="fast", timeout=60.0) as finder,
    ):
        before = host_bytes(running)
        assert finder.find(hits).max() > 10
        crossed = {step: count - before[step] for step, count in host_bytes(running).items()}
    assert crossed.pop("entry") in (0, hits.nbytes)
    assert set(crossed.values()) == {0}


def test_nothing_went_wrong_in_the_log(native: Server) -> None:
    log = native.log()
    assert "warmup" not in log.lower()  # Triton writes of one that failed
    assert "TRITONBACKEND_Initialize: onnxruntime" in log


def infer(server: Server, spec: StageSpec, arrays: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Ask a network alone."""
    inputs = []
    for tensor, array in zip(spec.inputs, arrays, strict=True):
        wanted = InferInput(tensor.name, list(array.shape), np_to_triton_dtype(array.dtype))
        wanted.set_data_from_numpy(array)
        inputs.append(wanted)
    with InferenceServerClient(server.url) as client:
        answer: NDArray[np.float32] = client.infer(spec.name, inputs).as_numpy(spec.engine[0].name)
    return answer
