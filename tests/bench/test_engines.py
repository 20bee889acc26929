from __future__ import annotations

import subprocess
import sys
from functools import partial

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tritrack.bench.candidates import compile_network, compiled_candidate, load_candidate
from tritrack.bench.engines import Time
from tritrack.bench.quantiles import quantile
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_cases
from tritrack.export.joined import joined_network
from tritrack.export.network import export_network
from tritrack.stages.contract import STAGES
from tritrack.stages.networks import PairLinear, run_network
from tritrack.stages.weights import load_weights

NETWORKS = {spec.name: spec for spec in STAGES if spec.engine}


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


@pytest.fixture
def run(small_weights, small_engines, small_event, tmp_path):
    """``run("--no-compile")`` -> what the bench wrote of one event, in two rounds."""
    write_event(small_event, tmp_path / event_file(small_event.event_id))

    def bench(*options):
        out = tmp_path / "bench" / "engines.json"
        command = [sys.executable, "-m", "tritrack.bench.engines", tmp_path, "--weights", small_weights]
        command += ["--engines", small_engines, "--out", out, "--rounds", "2", "--threads", "1", *options]
        subprocess.run(command, check=True)
        return msgspec.json.decode(out.read_bytes())

    return bench


@pytest.mark.slow
def test_every_engine_takes_its_turn(run, small_event):
    found = run("--no-compile")
    missing = {row["engine"]: row["missing"] for row in found["engines"]}
    assert missing["torch.compile"] == "left out: --no-compile"
    assert missing["tensorrt"]
    here = [name for name, reason in missing.items() if reason is None]
    assert here == ["torch", "onnx, plain export", "onnx", "onnx, fp16"]
    for row in found["engines"]:
        assert list(row["load_seconds"]) == (list(NETWORKS) if row["engine"] in here else [])
    times = msgspec.convert(found["times"], list[Time])
    stages = [*NETWORKS, "chain"]
    assert [(time.engine, time.stage) for time in times] == [
        (name, stage) for name in here for stage in stages
    ]
    torch_seconds = {time.stage: np.array(time.seconds) for time in times[:4]}
    for time in times:
        assert (time.event_id, time.n_hits) == (small_event.event_id, small_event.n_hits)
        assert min(time.n_rows, time.first_seconds, *time.seconds, *time.cpu_seconds) > 0
        np.testing.assert_allclose(time.ratio, torch_seconds[time.stage] / time.seconds)
        assert (time.p50, time.p95, time.ratio_p50) == (None, None, None)  # of two rounds
        if time.stage == "chain":
            assert time.deviation is None
            assert time.equal_labels >= 0.9 or time.engine == "onnx, fp16"
        else:
            assert (time.equal_labels, time.efficiency_change) == (None, None)
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
    row = compiled_candidate(load, ready=ready, wanted=True).to_json()
    assert row["missing"] == "RuntimeError: no compiler here"
    assert compiled_candidate(load, ready=ready, wanted=False).missing == "left out: --no-compile"


@pytest.mark.parametrize(
    ("change", "missing"), [(lambda out: out, False), (lambda out: out + np.float32(1e-3), True)]
)
def test_an_engine_that_fails_its_gates_is_not_measured(small_weights, change, missing):
    card, networks = load_weights(small_weights)

    def load(spec):
        return lambda *inputs: change(run_network(networks[spec.name], *inputs))

    ready = partial(load_candidate, networks=networks, card=card)
    candidate = compiled_candidate(load, ready=ready, wanted=True)
    assert (candidate.missing is not None) is missing
    assert list(candidate.gate) == ([] if missing else list(NETWORKS))


def test_engines_of_other_weights_are_refused(small_weights, tmp_path):
    (tmp_path / "card.json").write_bytes(
        (small_weights / "card.json").read_bytes().replace(b'"small"', b'"other"')
    )
    command = [sys.executable, "-m", "tritrack.bench.engines", tmp_path, "--engines", tmp_path]
    command += ["--weights", small_weights, "--out", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("these engines are of other, not of the weights given (small)\n")
