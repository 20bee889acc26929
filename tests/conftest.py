"""Folders that tests of several packages use: small random weights, and the engines made of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.events.layers import Layers
    from tritrack.rules.windows import Rules

# Rich reads it when a console is made, which is when a module of commands is imported.
os.environ["COLUMNS"] = "200"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU or TensorRT where there is none, and say what is missing."""
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device that torch can use")
    if item.get_closest_marker("tensorrt") is not None:
        pytest.importorskip("onnxscript")
        from tritrack.export.tensorrt import NoTensorRTError, find_tensorrt

        try:
            find_tensorrt()
        except NoTensorRTError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of tiny networks whose graph has some edges (limits: 5000 hits, 20,000 edges)."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("faiss")
    pytest.importorskip("numba")
    from tritrack.export.cases import drawn_hits
    from tritrack.stages.card import Cuts, Limits, ModelCard, Networks, Windows, WorkingPoint
    from tritrack.stages.networks import build_networks, run_network
    from tritrack.stages.weights import save_weights
    from tritrack.training.graphs import filtered_pairs, graph_pairs, pair_scores

    sizes = Networks(
        embedding_width=16,
        embedding_layers=2,
        embedding_dim=4,
        filter_widths=(16, 8),
        gnn_width=8,
        gnn_steps=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = build_networks(sizes)
    # The cuts keep half of the pairs, whatever the scores of untrained networks are.
    radius, hits = 0.01, drawn_hits(n_hits=2000, seed=1)
    windows = Windows(max_z0=1e9, max_curvature=1e9, overlap=15.0)
    pairs = graph_pairs(networks["embedding"], hits, radius=radius, windows=windows)
    filter_cut = float(np.median(pair_scores(networks["filter"], hits, pairs)))
    pairs = filtered_pairs(networks["filter"], hits, pairs, cut=filter_cut)
    gnn_cut = float(np.median(run_network(networks["gnn"], hits, pairs)))
    balanced = Cuts(
        graph="radius",
        radius=radius,
        windows=windows,
        k=10,
        filter_cut=filter_cut,
        gnn_cut=gnn_cut,
        labelling="walkthrough",
    )
    # fast has the graph of balanced, best its filter's cut.
    points = {
        "fast": replace(balanced, filter_cut=filter_cut + 0.01, labelling="components"),
        "balanced": balanced,
        "best": replace(balanced, radius=1.2 * radius, gnn_cut=gnn_cut - 0.01),
    }
    metrics = {"drawn": {"efficiency": 0.5}}
    card = ModelCard(
        name="small",
        networks=sizes,
        working_points={name: WorkingPoint(cuts=cuts, metrics=metrics) for name, cuts in points.items()},
        default="balanced",
        limits=Limits(max_hits=5000, max_pairs=20_000, max_edges=15_000),
        sha256={},
    )
    folder = tmp_path_factory.mktemp("weights")
    save_weights(networks, card=card, folder=folder)
    return folder


@pytest.fixture(scope="session")
def small_engines(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of ``small_weights``, for 2 threads."""
    pytest.importorskip("onnxscript")
    from tritrack.export.onnx import export_engines

    folder = tmp_path_factory.mktemp("engines")
    export_engines(weights=small_weights, out=folder, threads=2)
    return folder


@pytest.fixture(scope="session")
def scattered_engines(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of ``small_weights`` for a GPU and TensorRT."""
    pytest.importorskip("onnxscript")
    from tritrack.export.onnx import export_engines

    folder = tmp_path_factory.mktemp("scattered")
    export_engines(weights=small_weights, out=folder, threads=1, edge_sum="scatter")
    return folder


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Helices from near the beam line and their hits on every layer of a barrel, shuffled.

    Attributes
    ----------
    hits, particle
        float32 [n_hits, 3], mm, and int64 [n_hits], the helix of each.
    true
        float64 [n_helices, 6]: pT, phi, eta, d0, z0, charge.
    """

    hits: NDArray[np.float32]
    particle: NDArray[np.int64]
    true: NDArray[np.float64]


@pytest.fixture(scope="session")
def barrel() -> Layers:
    """Ten layers of a barrel, four of them of pixels."""
    from tritrack.events.layers import Layers

    radius = np.array([32.0, 72, 116, 172, 260, 360, 500, 660, 820, 1020])
    pixel = radius < 200
    reach = np.where(pixel, 490.0, 1080.0)
    return Layers(
        disk=np.zeros(10, dtype=np.bool_),
        r_low=radius - 2,
        r_high=radius + 2,
        z_low=-reach,
        z_high=reach,
        across=np.where(pixel, 0.015, 0.025),
        along=np.where(pixel, 0.015, 0.35),
        scattering=np.full(10, 2.5),
    )


@pytest.fixture(scope="session")
def draw_helices(barrel: Layers) -> Callable[..., Drawn]:
    """``draw_helices(n=100, pt=2.0, seed=1, scattering=True)``: smeared by the resolution, and scattered."""

    def draw(*, n: int, pt: float, seed: int, scattering: bool) -> Drawn:
        rng = np.random.default_rng(seed)
        charge, phi = rng.choice([-1.0, 1.0], n), rng.uniform(-np.pi, np.pi, n)
        d0, z, slope = rng.normal(0, 0.05, n), rng.normal(0, 50, n), rng.uniform(-0.3, 0.3, n)
        true = np.stack([np.full(n, pt), phi, np.arcsinh(slope), d0, z, charge], axis=1)
        curvature = -charge * 0.00059958 / pt  # of 2 T, positive to the left
        x, y, angle, slope = -d0 * np.sin(phi), d0 * np.cos(phi), phi.copy(), slope.copy()
        hits = []
        for layer, radius in enumerate((barrel.r_low + barrel.r_high) / 2):
            low, high = np.zeros(n), np.full(n, 2 * radius)
            for _ in range(60):  # the way to the layer, by halving
                way = (low + high) / 2
                far_x = x + (np.sin(angle + curvature * way) - np.sin(angle)) / curvature
                far_y = y - (np.cos(angle + curvature * way) - np.cos(angle)) / curvature
                inside = np.hypot(far_x, far_y) < radius
                low, high = np.where(inside, way, low), np.where(inside, high, way)
            x, y, z, angle = far_x, far_y, z + slope * way, angle + curvature * way
            there, off = np.arctan2(y, x), rng.normal(0, barrel.across[layer], n)
            off_z = rng.normal(0, barrel.along[layer], n)
            hits.append(np.stack([x - off * np.sin(there), y + off * np.cos(there), z + off_z], axis=1))
            if scattering:
                spread = barrel.scattering[layer] * np.abs(curvature) * (1 + slope**2) ** 0.25
                angle += rng.normal(0, spread)
                slope += rng.normal(0, spread * np.sqrt(1 + slope**2))
        order = rng.permutation(10 * n)
        return Drawn(
            hits=np.concatenate(hits).astype(np.float32)[order],
            particle=np.tile(np.arange(n), 10)[order],
            true=true,
        )

    return draw


@pytest.fixture(scope="session")
def barrel_rules(barrel: Layers) -> Rules:
    """Rules for ``barrel``."""
    pytest.importorskip("numba")
    from tritrack.rules.windows import Rules, Windows

    inner = np.arange(barrel.n)
    steps = [(a, b) for a in inner for b in (a + 1, a + 2) if b < barrel.n]
    windows = Windows(
        max_curvature=8e-4,
        max_z0=200.0,
        max_d0=0.4,
        join=6.0,
        follow=30.0,
        min_layers=4,
        long=7,
        max_chi2=2.0,
        max_holes=2,
        max_shared=2,
    )
    return Rules(
        name="barrel",
        layers=barrel,
        field=2.0,
        steps=np.array(steps, dtype=np.int64),
        windows=windows,
        max_hits=5000,
        metrics={"drawn": {"efficiency_targets": 0.5}},
    )


@pytest.fixture(scope="session")
def rules_folder(barrel_rules: Rules, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``barrel_rules``."""
    from tritrack.rules.windows import write_rules

    return write_rules(barrel_rules, tmp_path_factory.mktemp("rules")).parent


NO_MEMORY, TOO_LONG, GONE, SILENT = 70_001.0, 70_002.0, 70_003.0, 70_004.0
"""x in mm: what a hit there has `MoodyServer` do."""


class _Moods(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.end, self.gone, self.silent = threading.Event(), False, False

    def ServerMetadata(self, request, context):  # noqa: N802 (the service's names)
        self._be_there(context)
        return service_pb2.ServerMetadataResponse(name="triton", version="0")

    def ModelConfig(self, request, context):  # noqa: N802
        from tritrack.stages.contract import CONTRACT_VERSION

        self._be_there(context)
        values = {
            "contract_version": CONTRACT_VERSION, "card_name": "moody", "card_sha256": "0" * 64, "metrics": "{}",
            "max_hits": 5000, "max_pairs": 9, "max_edges": 9, "working_point": "fast", "working_points": "fast",
        }  # fmt: skip
        config = model_config_pb2.ModelConfig(
            name=request.name,
            input=[{"name": "HITS", "dims": [-1, 3]}],
            output=[{"name": "TRACK_LABEL", "dims": [-1]}],
            parameters={key: {"string_value": str(value)} for key, value in values.items()},
        )
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request, context):  # noqa: N802
        self._be_there(context)
        hits = np.frombuffer(request.raw_input_contents[0], dtype=np.float32).reshape(-1, 3)
        self.gone, self.silent = GONE in hits, SILENT in hits
        self._be_there(context)
        if TOO_LONG in hits:
            self.end.wait()
        if NO_MEMORY in hits:
            context.abort(
                grpc.StatusCode.UNAVAILABLE, "gnn: no memory is left for this event beside all else"
            )
        output = service_pb2.ModelInferResponse.InferOutputTensor(
            name="TRACK_LABEL", datatype="INT64", shape=[len(hits)]
        )
        labels = np.zeros(len(hits), np.int64).tobytes()
        return service_pb2.ModelInferResponse(outputs=[output], raw_output_contents=[labels])

    def _be_there(self, context):
        if self.silent:
            self.end.wait()
        if self.gone:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is going down")


@dataclass(frozen=True, kw_only=True)
class MoodyServer:
    """Speaks the protocol without Triton: one track an event, and trouble with the events that are spoilt.

    Attributes
    ----------
    url
        HOST:PORT.
    """

    url: str

    def spoil(self, hits: NDArray[np.float32], how: str) -> NDArray[np.float32]:
        """Have "no memory" be left for an event, or it take "too long", or the server be "gone" or "silent" from it on."""
        x = {"no memory": NO_MEMORY, "too long": TOO_LONG, "gone": GONE, "silent": SILENT}[how]
        return np.concatenate([np.array([[x, 0, 0]], dtype=np.float32), hits[1:]])


@pytest.fixture
def moody_server() -> Iterator[MoodyServer]:
    server, moods = grpc.server(ThreadPoolExecutor(32)), _Moods()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(moods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield MoodyServer(url=f"127.0.0.1:{port}")
    moods.end.set()
    server.stop(None).wait()


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as it came to a :class:`SmallServer`: its name, the model and id of its request, its headers."""

    name: str
    model: str
    request_id: str
    headers: dict[str, str]


class SmallServer:
    """A gRPC server in this process that speaks as much of KServe v2 as the clients ask, and finds no tracks.

    Parameters
    ----------
    models
        Names of those of the repository of a small card, with rules, that are loaded.
    lacks
        With what sentence events find no room; None where they do.
    certificate
        For a server that speaks TLS alone; its key lies beside it as ``key.pem``.
    """

    def __init__(
        self,
        models: Sequence[str],
        *,
        configs: dict[str, Any],
        lacks: str | None = None,
        certificate: Path | None = None,
    ) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        self.calls: list[Call] = []
        self._loaded = {name: configs[name] for name in models}
        self._lacks = lacks
        self._server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        if certificate is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            pair = (certificate.with_name("key.pem").read_bytes(), certificate.read_bytes())
            port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self.url = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def __getattr__(self, name: str) -> Any:
        """What the service has besides is not implemented, as of any other server."""
        from tritonclient.grpc import service_pb2_grpc

        return getattr(service_pb2_grpc.GRPCInferenceServiceServicer(), name)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's names)
        from tritonclient.grpc import service_pb2

        self._note("ServerMetadata", context)
        return service_pb2.ServerMetadataResponse(name="small", version="1")

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        from tritonclient.grpc import service_pb2

        self._note("ModelConfig", context, model=request.name)
        return service_pb2.ModelConfigResponse(config=self._config(request.name, context))

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        from tritonclient.grpc import service_pb2

        self._note("ModelStatistics", context)
        return service_pb2.ModelStatisticsResponse()

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        from tritonclient.grpc import service_pb2

        self._note("RepositoryIndex", context)
        index = service_pb2.RepositoryIndexResponse()
        for name in self._loaded:
            index.models.add(name=name, version="1", state="READY")
        index.models.add(name="kept_out", state="UNAVAILABLE", reason="unloaded")
        return index

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        import grpc
        from tritonclient.grpc import service_pb2

        self._note("ModelInfer", context, model=request.model_name, request_id=request.id)
        config = self._config(request.model_name, context)
        if self._lacks is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, self._lacks)
        n_hits = request.inputs[0].shape[0]
        answer = service_pb2.ModelInferResponse()
        if config.output[0].name == "FITTED":
            answer.outputs.add(name="FITTED", datatype="FP32", shape=[0, 8])
            answer.raw_output_contents.append(b"")
        else:
            answer.outputs.add(name="TRACK_LABEL", datatype="INT64", shape=[n_hits])
            answer.raw_output_contents.append(np.full(n_hits, -1, dtype=np.int64).tobytes())
        return answer

    def _config(self, name: str, context: Any) -> Any:
        import grpc

        if name not in self._loaded:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return self._loaded[name]

    def _note(self, name: str, context: Any, *, model: str = "", request_id: str = "") -> None:
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.calls.append(Call(name=name, model=model, request_id=request_id, headers=headers))


@pytest.fixture
def small_server(barrel_rules: Rules) -> Iterator[Callable[..., SmallServer]]:
    """``small_server("track_finder_fast", lacks=..., certificate=...)``: runs until the test ends."""
    from tritrack.ensemble_repo.config import model_configs
    from tritrack.stages.card import Cuts, Limits, ModelCard, Networks, Windows, WorkingPoint

    windows = Windows(max_z0=200.0, max_curvature=1.8e-3, overlap=15.0)
    cuts = Cuts(
        graph="radius", radius=0.5, windows=windows, k=50, filter_cut=0.1, gnn_cut=0.5, labelling="components"
    )
    card = ModelCard(
        name="small",
        networks=Networks(),
        working_points={name: WorkingPoint(cuts=cuts, metrics={}) for name in ("fast", "balanced", "best")},
        default="balanced",
        limits=Limits(max_hits=5000, max_pairs=20_000, max_edges=15_000),
        sha256={},
    )
    configs = model_configs(
        card=card, server="embedded", device="cpu", threads=1, fused=True, rules=barrel_rules
    )
    with ExitStack() as stack:

        def start(*models: str, **options: Any) -> SmallServer:
            server = SmallServer(models, configs=configs, **options)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that has signed itself; its key lies beside it as ``key.pem``."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=small "
        "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out ca.pem".split(),
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return folder / "ca.pem"
