from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")

from tritrack.bench import machine
from tritrack.failures import UsageError
from tritrack.stages import engine
from tritrack.stages.plan_file import Gpu, plan_file


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is not there."""
    found = Gpu(name="Test", compute_capability="9.0")
    monkeypatch.setattr(machine, "find_gpu", lambda: found)
    monkeypatch.setattr(machine, "find_device", lambda kind, number: "cuda:0")
    return found


def test_networks_that_would_run_on_the_host_are_refused_for_a_gpu(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "cuda_is_there", lambda: False)
    with pytest.raises(
        UsageError, match=r"^--device gpu: the networks of .* would run on the host: .* no CUDA"
    ):
        machine.gpu_of("gpu", engines=tmp_path)
    assert machine.gpu_of("cpu", engines=tmp_path) is None
    (tmp_path / plan_file("gnn")).touch()
    assert machine.gpu_of("gpu", engines=tmp_path) == gpu


def test_onnx_files_run_on_a_gpu_where_onnx_runtime_has_cuda(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "cuda_is_there", lambda: True)
    assert machine.gpu_of("gpu", engines=tmp_path) == gpu
