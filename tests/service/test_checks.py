"""What is checked before a server starts, and what a client needs; no server runs here."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tritrack.service import installation, repository
from tritrack.service import shm as shared_memory
from tritrack.service.client import TrackFinder
from tritrack.service.errors import ServerStartError, ServiceError, UnavailableError
from tritrack.service.installation import Installation, find_installation
from tritrack.service.log import explain, port_taken
from tritrack.service.protocol import retry_delays
from tritrack.service.server import Ports, Server
from tritrack.stages.card import ENSEMBLE, Cuts, Limits, ModelCard, Networks, Windows, WorkingPoint
from tritrack.stages.contract import NATIVE_STEPS, STAGES
from tritrack.stages.plan_file import Gpu, PlanFacts


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Installation:
    """A folder laid out like the wheel's server."""
    (tmp_path / "tritonserver" / "python_backend_stubs").mkdir(parents=True)
    binary = executable(tmp_path / "tritonserver" / "bin" / "tritonserver")
    return Installation(binary=binary, source="a test")


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_wheel(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    named = executable(tmp_path / "named" / "bin" / "tritonserver")
    container = executable(tmp_path / "opt" / "bin" / "tritonserver")
    on_path = executable(tmp_path / "programs" / "tritonserver")
    monkeypatch.setattr(installation, "CONTAINER", tmp_path / "opt")
    monkeypatch.setenv("PATH", str(on_path.parent))
    for given in (named, named.parents[1]):
        assert find_installation(given) == Installation(binary=named, source="the path given")
    assert find_installation().binary == container
    container.unlink()
    assert find_installation() == Installation(binary=on_path, source="PATH")
    on_path.unlink()
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    with pytest.raises(ServerStartError, match=r"no tritonserver in .* pip install '\.\[server\]'"):
        find_installation()
    with pytest.raises(ServerStartError, match=r"nowhere: no tritonserver there"):
        find_installation(tmp_path / "nowhere")


def test_numpy_2_is_refused(wheel: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.2.6")
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    with pytest.raises(ServerStartError, match=r"NumPy 2\.2\.6 .* pip install 'numpy<2'"):
        wheel.check()


@pytest.mark.parametrize("library", ["glibc 2.34", "glibc 2.9", "", None])
def test_an_old_glibc_is_refused(
    wheel: Installation, monkeypatch: pytest.MonkeyPatch, library: str | None
) -> None:
    monkeypatch.setattr(os, "confstr", lambda _: library)
    with pytest.raises(ServerStartError, match=r"needs glibc 2\.35 .* container"):
        wheel.check()


def test_a_missing_libpython_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    with pytest.raises(ServerStartError, match=r"needs libpython3\.\d+\.so\.1\.0, .* apt install libpython3"):
        installation.find_libpython()


def test_another_server_brings_its_own_python(tmp_path: Path) -> None:
    other = Installation(binary=executable(tmp_path / "bin" / "tritonserver"), source="a test")
    other.check()
    assert other.arguments(tmp_path) == []
    environment = other.environment(tmp_path)
    assert environment.pop("ORT_DISABLE_TELEMETRY") == "1"
    assert environment.pop("GLIBC_TUNABLES") == installation.MALLOC
    assert environment.pop("OMP_WAIT_POLICY") == "PASSIVE"
    assert environment.items() <= os.environ.items()


PUT_TOGETHER = """
import pathlib, sys
from tritrack.service.installation import wheel_installation
wheel_installation().arguments(pathlib.Path(sys.argv[1]))
"""


def test_the_stub_finds_the_driver_by_the_name_that_it_asks_for(tmp_path: Path) -> None:
    """A library of the system stands for the driver's, in a folder that the loader looks into first."""
    pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next(path for line in maps if (path := Path(line[line.find("/") :])).name.startswith("libm.so"))
    driver = tmp_path / "driver" / installation.DRIVER
    driver.parent.mkdir()
    driver.write_bytes(library.read_bytes())
    subprocess.run(
        [sys.executable, "-c", PUT_TOGETHER, tmp_path / "work"],
        env=os.environ | {"LD_LIBRARY_PATH": str(driver.parent)},
        check=True,
    )
    assert (tmp_path / "work" / "lib" / "libcuda.so").resolve() == driver.resolve()


FREES_100_MB = """
import mmap, pathlib
filled = b"x" * 100_000_000
del filled
print(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE)
"""


@pytest.mark.parametrize(("tunables", "stays"), [(installation.MALLOC, True), ("", False)])
def test_what_a_step_frees_stays_for_its_next_event(tunables: str, stays: bool) -> None:
    environment = os.environ | {"GLIBC_TUNABLES": tunables}
    done = subprocess.run(
        [sys.executable, "-c", FREES_100_MB], env=environment, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 100_000_000) is stays


WINDOWS = Windows(max_z0=200.0, max_curvature=1.8e-3, overlap=15.0)
CUTS = Cuts(
    graph="radius", radius=0.5, windows=WINDOWS, k=50, filter_cut=0.1, gnn_cut=0.5, labelling="components"
)


def served_card(folder: Path, *, max_edges: int = 1_000_000) -> ModelCard:
    card = ModelCard(
        name="large",
        networks=Networks(embedding_dim=8),
        working_points={"fast": WorkingPoint(cuts=CUTS, metrics={})},
        default="fast",
        limits=Limits(max_hits=1000, max_pairs=1_000_000, max_edges=max_edges),
        sha256={},
    )
    for step, instances in (("embedding", 1), ("graph", 3)):
        (folder / step / "1").mkdir(parents=True)
        (folder / step / "1" / "card.json").write_bytes(card.to_json())
        (folder / step / "config.pbtxt").write_text(f"instance_group {{ count: {instances} }}")
    (folder / ENSEMBLE).mkdir()
    steps = " ".join(f'step {{ model_name: "{step}" }}' for step in ("embedding", "graph"))
    (folder / ENSEMBLE / "config.pbtxt").write_text(f"ensemble_scheduling {{ {steps} }}")
    return card


def test_shared_memory_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = served_card(tmp_path, max_edges=100_000)
    # Of the hits HITS (12 bytes) crosses five boundaries, EMBEDDING (32) two, TRACK_LABEL (8) one; of the pairs
    # EDGE_INDEX (8) two, and of the edges three, with EDGE_SCORE (4) two. Where the cut is a step of its own there is a
    # third for the pairs, and PAIR_SCORE (4) twice.
    of_hits, of_edges = 1000 * (5 * 12 + 2 * 32 + 8), 100_000 * (3 * 8 + 2 * 4)
    at_limits = of_hits + 1_000_000 * 2 * 8 + of_edges
    assert repository.shared_memory_at_limits(card, STAGES) == at_limits
    native = of_hits + 1_000_000 * (3 * 8 + 2 * 4) + of_edges
    assert repository.shared_memory_at_limits(card, NATIVE_STEPS) == native
    for free, complaints in ((1 << 30, 0), (20 << 20, 1)):
        caplog.clear()
        monkeypatch.setattr(repository, "free_bytes", lambda free=free: free)
        repository.check_repository(tmp_path)
        assert len(caplog.records) == complaints
    monkeypatch.setattr(repository, "free_bytes", lambda: 1 << 20)
    with pytest.raises(ServerStartError, match=r"1 MB are free, the server's steps take 4 MB; .*--shm-size"):
        repository.check_repository(tmp_path)


def test_shared_memory_is_checked_for_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served_card(tmp_path, max_edges=100_000)
    (tmp_path / "rule_finder" / "1").mkdir(parents=True)
    (tmp_path / "rule_finder" / "1" / "rules.json").touch()
    (tmp_path / "rule_finder" / "config.pbtxt").write_text("instance_group { count: 2 }")
    for models, needed in ((["rule_finder"], 2), (["graph"], 3), ([ENSEMBLE], 4), ([], 6)):
        caplog.clear()
        monkeypatch.setattr(repository, "free_bytes", lambda needed=needed: needed << 20)
        repository.check_repository(tmp_path, models=models)
        assert len(caplog.records) == (ENSEMBLE in models or not models)
        monkeypatch.setattr(repository, "free_bytes", lambda needed=needed: (needed << 20) - 1)
        with pytest.raises(ServerStartError, match=f"steps take {needed} MB"):
            repository.check_repository(tmp_path, models=models)
    (tmp_path / "graph" / "config.pbtxt").unlink()
    monkeypatch.setattr(repository, "free_bytes", lambda: 1 << 30)
    repository.check_repository(tmp_path, models=["rule_finder"])
    with pytest.raises(ServerStartError, match=r"graph/config\.pbtxt: missing"):
        repository.check_repository(tmp_path, models=["graph"])


def test_the_pool_of_gpu_memory_holds_what_is_in_flight(
    tmp_path: Path,
) -> None:
    card = served_card(tmp_path, max_edges=10_000)
    # HITS, EMBEDDING and TRACK_LABEL of a hit; EDGE_INDEX and a score of a pair, and again of an edge that is left.
    at_limits = 1000 * (12 + 32 + 8) + (1_000_000 + 10_000) * (8 + 4)
    assert repository.gpu_memory_at_limits(card) == at_limits
    assert repository.gpu_arguments(tmp_path, in_flight=3) == []
    config = tmp_path / "graph" / "config.pbtxt"
    config.write_text("instance_group { count: 1 kind: KIND_GPU }")
    wanted = [f"--cuda-memory-pool-byte-size=0:{3 * at_limits}", "--pinned-memory-pool-byte-size=0"]
    assert repository.gpu_arguments(tmp_path, in_flight=3) == wanted
    assert repository.gpu_arguments(tmp_path, models=["graph"], in_flight=3) == wanted
    assert repository.gpu_arguments(tmp_path, models=["embedding"], in_flight=3) == []


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="no model repository there"):
        repository.check_repository(tmp_path)
    served_card(tmp_path)
    (tmp_path / "embedding" / "1" / "card.json").write_text("{}")
    with pytest.raises(ServerStartError, match=r"card\.json"):
        repository.check_repository(tmp_path)


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    served_card(tmp_path)
    (tmp_path / "graph" / "config.pbtxt").write_text("instances: many")
    with pytest.raises(
        ServerStartError, match=r"graph/config\.pbtxt: no configuration of Triton's: .*instances"
    ):
        repository.check_repository(tmp_path)


def test_an_engine_of_another_machine_is_refused(tmp_path: Path) -> None:
    served_card(tmp_path)
    plan = tmp_path / "gnn" / "1" / "gnn.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"engine")
    facts = PlanFacts(
        tensorrt="99.1.0.2",
        gpu=Gpu(name="NVIDIA H100 PCIe", compute_capability="9.0"),
        precision="fp32",
        profile={},
        onnx_sha256="",
        card_sha256="",
    )
    plan.with_name("gnn.plan.json").write_bytes(facts.to_json())
    with pytest.raises(
        ServerStartError, match=r"gnn\.plan: built by TensorRT 99\.1\.0\.2, libnvinfer\.so\.99 is not"
    ):
        repository.check_repository(tmp_path)


def test_regions_of_the_living_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHM", tmp_path)
    living, dead = shared_memory.Regions(), shared_memory.Regions()
    for regions in (living, dead):
        (tmp_path / f"{regions.prefix}region").touch()
    (tmp_path / "tritrack_something_else").touch()
    fcntl.flock(dead.lock, fcntl.LOCK_UN)
    assert shared_memory.remove_leftovers() == [f"{dead.prefix}region"]
    assert len(list(tmp_path.iterdir())) == 3
    living.close()
    dead.close()
    assert [path.name for path in tmp_path.iterdir()] == ["tritrack_something_else"]


@pytest.mark.parametrize(
    ("log", "reasons", "taken"),
    [
        (
            (
                "E1123 08:31:11.498040 68 model_lifecycle.cc:642] \"failed to load 'gnn' version 1: Internal: "
                'CardError: gnn.onnx: no engine there\\n\\nAt:\\n  stage.py(155): load_stage\\n"\n'
                "error: creating server: Internal - failed to load all models\n"
            ),
            "step gnn: CardError: gnn.onnx: no engine there",
            False,
        ),
        (
            (
                'E1123 08:30:12.649198 63 main.cc:245] "failed to start GRPC service: Unavailable - '
                "Socket '127.0.0.1:1' already in use \"\n"
            ),
            "GRPC: Socket '127.0.0.1:1' already in use",
            True,
        ),
        (
            (
                'E1123 08:31:09.709093 68 server.cc:241] "CudaDriverHelper has not been initialized."\n'
                "error: creating server: Internal - failed to stat file\n"
            ),
            "creating server: Internal - failed to stat file",
            False,
        ),
        ("bash: line 1: stub: not found\n", "bash: line 1: stub: not found", False),
        ("", "its log is empty", False),
    ],
)
def test_logs_are_explained(log: str, reasons: str, taken: bool) -> None:
    assert explain(log) == reasons
    assert port_taken(log) == taken


def test_given_ports_are_kept_and_free_ones_differ() -> None:
    given = Ports().fill("127.0.0.1").grpc
    ports = Ports(grpc=given).fill("127.0.0.1")
    assert ports.grpc == given
    assert len({ports.http, ports.grpc, ports.metrics}) == 3


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_given_port_that_is_taken_is_named(tmp_path: Path, service: str) -> None:
    served_card(tmp_path)
    program = executable(tmp_path / "tritonserver")
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        sentence = rf"^--{service}-port {port}: .* 127\.0\.0\.1:{port}: Address already in use$"
        with pytest.raises(ServerStartError, match=sentence):
            Server(tmp_path, executable=program, ports=Ports(**{service: port})).start()
    assert not (tmp_path / "started").exists()


def test_a_port_that_a_server_has_just_left_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as left:
        address = left.getsockname()
        with socket.create_connection(address):
            left.accept()[0].close()  # first: so this end of the connection lingers
    assert Ports(http=address[1]).fill("127.0.0.1").http == address[1]


def test_a_program_that_is_no_server_is_reported(tmp_path: Path) -> None:
    served_card(tmp_path)
    program = executable(tmp_path / "tritonserver")
    program.write_text("#!/bin/sh\necho no libraries here >&2\nexit 3\n")
    with pytest.raises(ServerStartError, match="did not start: no libraries here"):
        Server(tmp_path, executable=program).start()


def test_a_server_that_never_gets_ready_is_reported(tmp_path: Path) -> None:
    served_card(tmp_path)
    program = executable(tmp_path / "tritonserver")
    program.write_text("#!/bin/sh\necho still thinking\nexec sleep 600\n")
    server = Server(tmp_path, executable=program, start_timeout=0.5)
    with pytest.raises(ServerStartError, match=r"not ready after 0\.5 s: still thinking"):
        server.start()


ANSWERS_FOR_ANOTHER = """\
#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{"name": "triton"}}')


port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--http-port="))
HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


def test_another_server_that_is_ready_on_the_port_is_not_taken_for_it(tmp_path: Path) -> None:
    served_card(tmp_path)
    program = executable(tmp_path / "tritonserver")
    program.write_text(ANSWERS_FOR_ANOTHER.format(python=sys.executable))
    with pytest.raises(ServerStartError, match=r"not ready after 3 s: .*GET /v2 "):
        Server(tmp_path, executable=program, start_timeout=3.0).start()


def test_delays_double_and_end() -> None:
    assert list(retry_delays(0)) == [None]
    assert list(retry_delays(6)) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, None]


def test_an_unreachable_server_is_reported() -> None:
    with socket.socket() as held:  # bound and not listening: nobody else can answer there
        held.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{held.getsockname()[1]}"
        with (
            TrackFinder(url, retries=1) as finder,
            pytest.raises(
                UnavailableError, match=rf"the event: {url} is not available after 2 attempts"
            ) as caught,
        ):
            finder.find(np.zeros((3, 3), dtype=np.float32))
    assert isinstance(caught.value, ServiceError)
    assert "is the server running" in str(caught.value)


def test_the_client_imports_neither_torch_nor_onnxruntime() -> None:
    program = (
        "import sys; import tritrack; print('grpc' in sys.modules); from tritrack import *; "
        "import tritrack.service.server; "
        "print([name for name in ('torch', 'onnxruntime', 'faiss', 'numba', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["False", "[]", ""]
