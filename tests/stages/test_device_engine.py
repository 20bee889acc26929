"""ONNX Runtime on a device's tensors gives what it gives on the host's arrays; on the CPU here, on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.export.cases import drawn_edges, drawn_hits
from tritrack.export.gates import NETWORK_TOLERANCE, deviation_of
from tritrack.stages import engine
from tritrack.stages.card import CardError, engine_file
from tritrack.stages.contract import STAGES
from tritrack.stages.device_engine import SHRINKAGE, DeviceEngine, RunChoice
from tritrack.stages.engine import OnnxEngine, load_engine

NETWORKS = {spec.name: spec for spec in STAGES if spec.engine}


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request):
    if request.param != "cpu" and not engine.cuda_is_there():
        pytest.skip("this ONNX Runtime has no CUDA: needs onnxruntime-gpu")
    return request.param


def inputs_of(name, *, n_hits=500, n_edges=3000):
    hits = drawn_hits(n_hits=n_hits, seed=n_hits)
    return (hits,) if name == "embedding" else (hits, drawn_edges(n_hits=n_hits, n_edges=n_edges, seed=1))


@pytest.fixture(params=["small_engines", "scattered_engines"])
def engines(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_what_the_host_gives(engines, device, name):
    path, spec = engines / engine_file(name), NETWORKS[name]
    here = OnnxEngine(path, spec=spec, threads=1)
    there = DeviceEngine(path, spec=spec, threads=1, device=device)
    assert there.on_device
    for sizes in ({}, {"n_hits": 90, "n_edges": 1}, {"n_hits": 2000, "n_edges": 9000}):
        inputs = inputs_of(name, **sizes)
        wanted = here(*inputs)
        tensors = [torch.tensor(array, device=device) for array in inputs]
        found = there(*tensors)
        assert isinstance(found, torch.Tensor)
        assert str(found.device) == device
        of_arrays = there(*inputs)
        assert isinstance(of_arrays, np.ndarray)
        tolerance = 0.0 if device == "cpu" else NETWORK_TOLERANCE["fp32"][name]
        for answer in (found.cpu().numpy(), of_arrays):
            assert answer.dtype == wanted.dtype
            assert deviation_of(wanted, answer, relative=name == "embedding") <= tolerance


def test_loops_on_a_gpu_are_warned_of(small_engines, scattered_engines, device, caplog):
    for folder in (scattered_engines, small_engines):
        caplog.clear()
        DeviceEngine(folder / engine_file("gnn"), spec=NETWORKS["gnn"], threads=1, device=device)
        warned = any("slow on a GPU; export it" in record.message for record in caplog.records)
        assert warned == (device != "cpu" and folder == small_engines)


def test_rows_need_not_lie_one_after_the_other(small_engines, device):
    path, spec = small_engines / engine_file("filter"), NETWORKS["filter"]
    there = DeviceEngine(path, spec=spec, threads=1, device=device)
    hits, edges = (torch.tensor(array, device=device) for array in inputs_of("filter"))
    wanted = there(hits, edges)
    assert torch.equal(there(hits, edges.T.contiguous().T), wanted)


def test_memory_is_given_back_where_shapes_change():
    """Of inputs of these numbers of hits and pairs, one run after the other."""

    def gives_back(options):
        try:
            return options.get_run_config_entry(SHRINKAGE) == "gpu:1"
        except RuntimeError:  # there is no such entry
            return False

    choose = RunChoice(arena="gpu:1")
    runs = [(5, 7), (5, 7), (5, 7), (5, 8), (5, 7), (4, 7), (4, 7)]
    found = [gives_back(choose([(n, 3), torch.Size((2, m))])) for n, m in runs]
    assert found == [True, False, False, True, True, True, False]
    choose = RunChoice(arena=None)
    assert not any(gives_back(choose([(n, 3)])) for n in (5, 5, 4))


@pytest.mark.parametrize("device", [None, "cpu", "cuda:0"])
def test_without_cuda_in_it_the_network_runs_on_the_host(small_engines, monkeypatch, device):
    monkeypatch.setattr(engine, "cuda_is_there", lambda: False)
    found = load_engine(NETWORKS["embedding"], small_engines, threads=1, device=device)
    assert isinstance(found, OnnxEngine)


def test_where_cuda_does_not_start_it_says_so(small_engines, monkeypatch):
    """Neither goes on with the CPU: a slow success."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(engine, "cuda_is_there", lambda: True)
    with pytest.raises(CardError, match=r"embedding\.onnx: torch, .* uses no GPU here"):
        load_engine(NETWORKS["embedding"], small_engines, threads=1, device="cuda:0")
