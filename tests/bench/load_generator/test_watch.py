from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

psutil = pytest.importorskip("psutil")

from tritrack.bench.load_generator.watch import Watch

# A child that computes and holds memory, and its parent that waits for it.
CHILD = (
    "import time; block = bytearray(60_000_000); print('ready', flush=True)\nwhile True: sum(range(10_000))"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_a_family_of_processes_is_watched():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        family = psutil.Process(process.pid).children(recursive=True)
        used = sum(child.cpu_times().user for child in family)
        with Watch(process.pid) as watch:
            while sum(child.cpu_times().user for child in family) < used + 0.2:
                time.sleep(0.02)
        use = watch.use.process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.communicate()
    assert use.n_processes == 2
    assert 0 < use.cores < 1.5
    assert 60e6 < use.peak_bytes < 200e6


def test_what_is_not_there_is_said():
    with Watch(None) as watch:
        pass
    assert watch.use.process is None
    assert watch.use.absent == ("the server's processor, memory and GPU: its process id was not given",)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with Watch(ended.pid) as watch:
        pass
    assert watch.use.process is None
    assert watch.use.absent[0] == f"the server's processor and memory: no process {ended.pid} on this machine"


def test_a_process_that_may_not_be_looked_at_any_more_is_said(monkeypatch):
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        with Watch(sleeping.pid) as watch:
            # As where a server changes its user: its root cannot be had here.
            monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    finally:
        sleeping.kill()
        sleeping.wait()
    assert watch.use.process is None
    (said,) = (sentence for sentence in watch.use.absent if "processor" in sentence)
    assert said.startswith("the server's processor and memory: AccessDenied: ")


def denied(process):
    raise psutil.AccessDenied(process.pid)


class NVMLError(Exception):
    """As `pynvml.NVMLError`."""


@pytest.mark.parametrize("failing", ["nvmlDeviceGetName", "nvmlDeviceGetUtilizationRates"])
def test_a_gpu_that_tells_nothing_is_said_and_nvml_is_ended(failing, monkeypatch):
    """Of a GPU in parts (MIG) NVML tells no utilisation; there is no such GPU here, nor its library."""
    ended = []

    def refuse(_):
        raise NVMLError("Not Supported")

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: ended.append(True),
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda _: "H200",
    )
    setattr(nvml, failing, refuse)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with Watch(psutil.Process().pid) as watch:
        pass
    assert watch.use.gpus == ()
    (said,) = (sentence for sentence in watch.use.absent if sentence.startswith("GPUs: "))
    assert said.endswith("Not Supported")
    assert ended == [True]
    assert watch.use.process is not None
