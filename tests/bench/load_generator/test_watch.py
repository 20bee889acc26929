from __future__ import annotations

import subprocess
import sys
import time

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
