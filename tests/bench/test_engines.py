from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tritrack.bench.candidates import (
    compile_network,
    compiled_candidate,
    cuda_candidate,
    load_candidate,
    tensorrt_candidate,
)
from tritrack.bench.engine_rows import COMPILED, EngineRow, Time
from tritrack.bench.engines import Result
from tritrack.bench.quantiles import quantile
from tritrack.bench.result import Header, read_result
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_cases
from tritrack.export.joined import joined_network
from tritrack.export.network import export_network
from tritrack.stages.card import CardError
from tritrack.stages.contract import STAGES
from tritrack.stages.device_engine import DeviceEngine
from tritrack.stages.networks import PairLinear, run_network
from tritrack.stages.weights import load_weights

NETWORKS = {spec.name: spec for spec in STAGES if spec.engine}
HEADER = Header(
    measurement="engines",
    cpu="a processor",
    cores=2,
    threads=1,
    versions={},
    model="small",
    card_sha256="0",
    working_point="best",
)


@pytest.mark.parametrize(
    ("n", "q", "given"), [(0, 0.5, False), (19, 0.5, False), (20, 0.5, True), (199, 0.95, False), (200, 0.95, True)]
)  # fmt: skip
def test_a_quantile_wants_enough_samples(n, q, given):
    samples = np.arange(n, dtype=np.float64)
    assert quantile(samples, q) == (pytest.approx(q * (n - 1)) if given else None)


@pytest.mark.parametrize("stage", NETWORKS)
def test_joined_layers_compute_the_same(small_weights, stage):
    card, networks = load_weights(small_weights)
    network = networks[stage]
    joined = joined_network(network, most_features=sys.maxsize)
    assert not any(isinstance(module, PairLinear) for module in joined.modules())
    case = drawn_cases()[6]
    inputs = [case.hits, case.edge_index["gnn"]][: len(NETWORKS[stage].inputs)]
    np.testing.assert_allclose(run_network(joined, *inputs), run_network(network, *inputs), atol=1e-5)
    model = export_network(joined, spec=NETWORKS[stage], card=card, rendering="scatter")
    operators = [node.op_type for node in model.graph.node]
    # Two sums a step, but nobody reads the last of two updates.
    assert operators.count("ScatterElements") == (2 if stage == "gnn" else 0)
    assert "CumSum" not in operators


def time_of(engine, cpu_seconds, *, seconds=None, event_id=100):
    return Time(
        events="dense",
        event_id=event_id,
        n_hits=7,
        engine=engine,
        stage="gnn",
        n_rows=9,
        first_seconds=1.0,
        seconds=tuple(seconds or [1.0] * len(cpu_seconds)),
        cpu_seconds=tuple(cpu_seconds),
    )


ROUNDS = np.arange(1.0, 11.0)
"""Seconds in ten rounds: a median wants two events of them."""


@pytest.mark.parametrize(
    ("n_events", "device", "wanted"),
    [
        (2, "cpu", {"onnx": 2.0, "onnx, plain export": 0.5, "onnx over onnx, plain export": 4.0}),
        (2, "gpu", {"onnx": 1.0, "onnx, plain export": 0.5, "onnx over onnx, plain export": 1.0}),
        (1, "cpu", {}),
    ],
)
def test_ratios_are_medians_of_rounds(n_events, device, wanted):
    times = [
        time_of(engine, factor * ROUNDS, event_id=event)
        for event in range(n_events)
        for engine, factor in (("torch", 2), ("onnx, plain export", 4), ("onnx", 1))
    ]
    engines = (
        EngineRow(engine="torch"),
        EngineRow(engine="onnx, plain export"),
        EngineRow(engine="onnx", device=device),
        EngineRow(engine="tensorrt", missing="not here"),
    )
    result = Result(header=HEADER, engines=engines, times=tuple(times))
    assert result.places() == [("dense", "gnn")]
    assert result.ratios() == pytest.approx({f"dense/gnn/{name}": value for name, value in wanted.items()})


@pytest.fixture
def run(small_weights, small_engines, small_event, tmp_path):
    """``run("--no-compile")`` -> what the bench wrote of one event, in two rounds."""
    (tmp_path / "few").mkdir()
    write_event(small_event, tmp_path / "few" / event_file(small_event.event_id))

    def bench(*options):
        out = tmp_path / "bench" / "engines.json"
        command = [
            sys.executable,
            "-m",
            "tritrack.bench.engines",
            tmp_path / "few",
            "--weights",
            small_weights,
        ]
        command += ["--engines", small_engines, "--out", out, "--rounds", "2", "--threads", "1", *options]
        subprocess.run(command, check=True)
        return read_result(out, Result)

    return bench


@pytest.mark.slow
def test_every_engine_takes_its_turn(run, small_event):
    found = run("--no-compile")
    missing = {row.engine: row.missing for row in found.engines}
    assert missing[COMPILED] == "left out: --no-compile"
    assert all(missing[name] for name in ("tensorrt", "tensorrt, fp16"))
    if not torch.cuda.is_available():
        assert missing["onnx, CUDA"] == missing["onnx, CUDA, fp16"]
    here = [name for name, reason in missing.items() if reason is None]
    assert here[:4] == ["torch", "onnx, plain export", "onnx", "onnx, fp16"]
    for row in found.engines:
        stages = list(NETWORKS) if row.engine in here else []
        assert list(row.load_seconds) == list(row.warm_up_seconds) == list(row.gate_deviation) == stages
        assert list(row.efficiency_change) == list(row.fake_rate_change) == (["few"] if stages else [])
    stages = [*NETWORKS, "chain"]
    assert [(time.engine, time.stage) for time in found.times] == [
        (name, stage) for name in here for stage in stages
    ]
    assert found.ratios() == {}  # of two rounds
    for time in found.times:
        assert (time.events, time.event_id, time.n_hits) == ("few", small_event.event_id, small_event.n_hits)
        assert min(time.n_rows, time.first_seconds, *time.seconds, *time.cpu_seconds) > 0
        assert len(time.seconds) == len(time.cpu_seconds) == 2
        if time.stage == "chain":
            assert time.deviation is None
            assert time.equal_labels >= 0.9 or time.engine == "onnx, fp16"
        else:
            assert (time.equal_labels, time.other_tracks) == (None, None)
            assert (time.deviation == 0) is (time.engine == "torch")
            assert time.deviation < (1e-2 if time.engine == "onnx, fp16" else 1e-4)
        if time.engine == "torch" and time.stage == "chain":
            assert (time.equal_labels, time.other_tracks) == (1.0, 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.:DeprecationWarning"
)  # torch's compiler imports what torch deprecates
def test_a_compiled_network_is_the_network(small_weights):
    _, networks = load_weights(small_weights)
    hits = drawn_cases()[6].hits
    wanted = run_network(networks["embedding"], hits)
    np.testing.assert_allclose(compile_network(networks["embedding"])(hits), wanted, atol=1e-5)


def test_a_compiler_that_fails_is_a_row_that_says_why(small_weights):
    card, networks = load_weights(small_weights)

    def load(spec):
        raise RuntimeError("no compiler here\nat all")

    ready = partial(load_candidate, networks=networks, card=card)
    failed = compiled_candidate(load, ready=ready, wanted=True)
    assert failed.row.missing == "RuntimeError: no compiler here"
    assert compiled_candidate(load, ready=ready, wanted=False).row.missing == "left out: --no-compile"


def test_engines_of_a_gpu_are_rows_that_say_why(small_weights, small_engines):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    card, networks = load_weights(small_weights)
    ready = partial(load_candidate, networks=networks, card=card)

    def load(spec):
        return DeviceEngine(small_engines / f"{spec.name}.onnx", spec=spec, threads=1, device="cuda")

    for precision, name in (("fp32", "onnx, CUDA"), ("fp16", "onnx, CUDA, fp16")):
        row = cuda_candidate(precision, load, ready=ready).row
        assert (row.engine, row.device, row.precision) == (name, "gpu", precision)
        assert "CPUExecutionProvider" in row.missing
    row = tensorrt_candidate("fp16", [], ready=ready, card=card, threads=1).row
    assert row.engine == "tensorrt, fp16"
    assert row.missing
    with pytest.raises(CardError, match=r"embedding\.onnx"):
        load(NETWORKS["embedding"])


@pytest.mark.parametrize(
    ("change", "missing"), [(lambda out: out, False), (lambda out: out + np.float32(1e-3), True)]
)
def test_an_engine_that_fails_its_gates_is_not_measured(small_weights, change, missing):
    card, networks = load_weights(small_weights)

    def load(spec):
        return lambda *inputs: change(run_network(networks[spec.name], *inputs))

    ready = partial(load_candidate, networks=networks, card=card)
    candidate = compiled_candidate(load, ready=ready, wanted=True)
    assert (candidate.row.missing is not None) is missing
    assert (
        list(candidate.row.gate_deviation) == list(candidate.networks) == ([] if missing else list(NETWORKS))
    )


def test_engines_of_other_weights_are_refused(small_weights, tmp_path):
    (tmp_path / "card.json").write_bytes(
        (small_weights / "card.json").read_bytes().replace(b'"small"', b'"other"')
    )
    command = [sys.executable, "-m", "tritrack.bench.engines", tmp_path, "--engines", tmp_path]
    command += ["--weights", small_weights, "--out", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("these engines are of other, not of the weights given (small)\n")
