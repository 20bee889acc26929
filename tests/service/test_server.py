"""Start, failure and end of real servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

psutil = pytest.importorskip("psutil")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.service.client import TrackFinder
from tritrack.service.errors import RequestTimeoutError, ServerStartError, UnavailableError
from tritrack.service.server import Ports, Server
from tritrack.service.shm import SHM, remove_leftovers
from tritrack.stages.card import ENSEMBLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tritrack.stages.pipeline import Pipeline

    HitsOf = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def one_step(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of the labelling step alone, which starts sooner."""
    folder = tmp_path_factory.mktemp("one_step")
    shutil.copytree(repository / "labelling_fast", folder / "labelling_fast")
    return folder


def family(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def own_regions(pid: int) -> set[Path]:
    """Files in shared memory that a process has open."""
    return {Path(f.path) for f in psutil.Process(pid).open_files() if Path(f.path).parent == SHM}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_servers_at_once_and_a_clean_end(
    server: Server, make_server: Callable[[], Server], chain: Pipeline, hits_of: HitsOf
) -> None:
    hits = hits_of(500)
    with make_server() as second:
        assert len({server.url, second.url, second.http_url, second.metrics_url}) == 4
        for running in (server, second):
            with TrackFinder(running.url) as finder:
                np.testing.assert_array_equal(finder.find(hits), chain.find(hits))
        processes, regions = family(second.pid), own_regions(second.pid)
        assert len(processes) == 10  # the server and a stub for each step
        assert regions
        assert not regions & own_regions(server.pid)
    assert not any(process.is_running() for process in processes)
    assert not any(region.exists() for region in regions)
    with TrackFinder(server.url) as finder:  # the first one has not noticed
        np.testing.assert_array_equal(finder.find(hits), chain.find(hits))
    with pytest.raises(ServerStartError, match="does not run"):
        _ = second.pid


def test_a_server_that_dies_mid_request(make_server: Callable[[], Server], hits_of: HitsOf) -> None:
    with make_server() as server:
        processes, regions = family(server.pid), own_regions(server.pid)
        with (
            TrackFinder(server.url, timeout=60.0, retries=1) as finder,
            TrackFinder(server.url, timeout=0.5) as hasty,
        ):
            finder.find(hits_of(100))
            # Stopped, it takes the request and does not answer; then it dies with the request in its hands.
            os.kill(server.pid, signal.SIGSTOP)
            with pytest.raises(RequestTimeoutError, match=r"the event: no answer from .* within 0\.5 s"):
                hasty.find(hits_of(100))
            killer = threading.Timer(0.5, os.kill, (server.pid, signal.SIGKILL))
            killer.start()
            with pytest.raises(UnavailableError, match=rf"{server.url} is not available after 2 attempts"):
                finder.find(hits_of(100))
            killer.join()
    assert not any(process.is_running() for process in processes)
    assert not any(region.exists() for region in regions)


def test_a_client_waits_for_its_server(repository: Path, chain: Pipeline, hits_of: HitsOf) -> None:
    hits = hits_of(300)
    ports = Ports().fill("127.0.0.1")
    with (
        TrackFinder(f"127.0.0.1:{ports.grpc}", retries=100) as finder,
        ThreadPoolExecutor(1) as pool,
    ):
        labels = pool.submit(finder.find, hits)
        with Server(repository, ports=ports):
            np.testing.assert_array_equal(labels.result(timeout=60), chain.find(hits))


NO_MEMORY = """
import numpy as np
import torch
import tritrack.ensemble_repo.model as adapter


class TritonPythonModel(adapter.TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        label, failures = self.step, ["numpy", "torch", "ONNX Runtime"]

        def step(tensors):
            match failures.pop(0) if failures else None:
                case "numpy":
                    np.empty(1 << 50, np.uint8)
                case "torch":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB")
                case "ONNX Runtime":
                    raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")
            return label(tensors)

        self.step = step
"""
"""An adapter whose step has no memory for the first three events."""


def test_an_event_without_memory_may_come_again(
    repository: Path, tmp_path: Path, chain: Pipeline, hits_of: HitsOf
) -> None:
    pytest.importorskip("torch")
    hits, copy = hits_of(300), shutil.copytree(repository, tmp_path / "repository")
    (copy / "labelling_balanced" / "1" / "model.py").write_text(NO_MEMORY)
    with Server(copy, models=[ENSEMBLE]) as server:
        with (
            TrackFinder(server.url, retries=0) as finder,
            pytest.raises(UnavailableError, match=r"no memory is left for this event .* Unable to allocate"),
        ):
            finder.find(hits)
        assert "labelling_balanced: [request id: the event] Traceback" in server.log()
        with TrackFinder(server.url, retries=2) as finder:
            np.testing.assert_array_equal(finder.find(hits), chain.find(hits))


PROGRAM = """
import sys, time
from pathlib import Path
from tritrack.service.server import Server

server = Server(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def program_with_server(repository: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a program that starts a server; gives the program and the server's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(repository)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as program:
        try:
            assert program.stdout is not None
            yield program, int(program.stdout.readline())
        finally:
            program.kill()


def test_what_a_dead_program_left_is_removed(one_step: Path, tmp_path: Path) -> None:
    """Kill everything of a server at once, the program that started it too: nobody is left to clean up."""
    with program_with_server(one_step, tmp_path) as (program, pid):
        processes, regions = family(pid), own_regions(pid)
        os.killpg(pid, signal.SIGSTOP)
        program.kill()
        os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: not any(process.is_running() for process in processes))
    assert all(region.exists() for region in regions)
    remove_leftovers()
    assert not any(region.exists() for region in regions)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_the_server_ends_with_a_program_that_is_killed(one_step: Path, tmp_path: Path) -> None:
    with program_with_server(one_step, tmp_path) as (program, pid):
        processes = family(pid)
        program.kill()
    wait_until(lambda: not any(process.is_running() for process in processes))
    remove_leftovers()


def test_a_step_that_does_not_load_is_named(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(repository / "gnn", broken / "gnn")
    (broken / "gnn" / "1" / "gnn.onnx").unlink()
    with pytest.raises(
        ServerStartError, match=r"step gnn: CardError: .*gnn\.onnx: no engine there"
    ) as caught:
        Server(broken).start()
    assert "\n" not in str(caught.value)


def test_a_port_of_another_server_is_named(server: Server, one_step: Path) -> None:
    port = int(server.http_url.rpartition(":")[2])
    with pytest.raises(ServerStartError, match=rf"--http-port {port}: .* Address already in use"):
        Server(one_step, ports=Ports(http=port)).start()


def test_the_log_is_kept_where_it_is_wanted(one_step: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with Server(one_step, log=log, executable=_wheel_binary()) as server:
        assert server.installation.source == "the path given"
        assert "labelling_fast: loaded from" in server.log()
        with pytest.raises(ServerStartError, match="runs already"):
            server.start()
    assert "labelling_fast: loaded from" in log.read_text()


def test_a_log_that_cannot_be_written_leaves_nothing(
    one_step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(SHM.iterdir())
    with pytest.raises(
        ServerStartError, match=r"gone/server\.log: cannot be written: No such file or directory"
    ):
        Server(one_step, log=tmp_path / "gone" / "server.log").start()
    assert list(tmp_path.iterdir()) == []
    assert not [region for region in set(SHM.iterdir()) - before if "tritrack" in region.name]


def _wheel_binary() -> Path:
    import pytriton

    return Path(pytriton.__file__).parent / "tritonserver" / "bin" / "tritonserver"
