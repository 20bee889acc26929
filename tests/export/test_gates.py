from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tritrack.events.event import NOISE, Event
from tritrack.events.source import read_all
from tritrack.export import gates
from tritrack.export.cases import drawn_cases, drawn_hits, event_cases
from tritrack.export.gates import GateError, GateResult, gate_graph, gate_labelling, gate_network, require
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import TARGETS, kinematics
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.labelling import LABELLINGS
from tritrack.stages.networks import run_network
from tritrack.stages.weights import load_weights

ENGINES = [spec for spec in STAGES if spec.engine]
CASES = drawn_cases()
SAMPLES = Path(__file__).parents[2] / "events" / "samples"


def drawn_event(n_hits):
    return Event(
        event_id=7,
        hits=drawn_hits(n_hits=n_hits, seed=8),
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), np.int32),
    )


def test_cases_hold_the_awkward_ones():
    edges = [case.edge_index["gnn"] for case in CASES]
    assert {len(case.hits) for case in CASES} >= {0, 1}
    assert {pairs.shape[1] for pairs in edges} >= {0, 1}
    assert any(np.unique(pairs, axis=1).shape[1] < pairs.shape[1] for pairs in edges)


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_engine_passes_with_room(small_engines, small_weights, spec):
    card, networks = load_weights(small_weights)
    engine = OnnxEngine(small_engines / f"{spec.name}.onnx", spec=spec, threads=2)
    cases = [
        *CASES,
        *event_cases([drawn_event(2500)], networks=networks, cuts=card.point().cuts, limits=card.limits),
    ]
    results = gate_network(engine, spec=spec, network=networks[spec.name], cases=cases)
    assert [result.case for result in results] == [case.name for case in cases]
    assert all(0.0 <= result.deviation <= 0.25 * result.tolerance for result in results)


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_one_weight_off_fails(small_engines, small_weights, spec):
    _, networks = load_weights(small_weights)
    network = networks[spec.name]
    engine = OnnxEngine(small_engines / f"{spec.name}.onnx", spec=spec, threads=2)
    with torch.no_grad():
        next(network.parameters())[0, 0] += 0.01
    results = gate_network(engine, spec=spec, network=network, cases=CASES)
    assert not all(result.passed for result in results)
    with pytest.raises(GateError, match=rf"^{spec.name}: deviates by .* on '.*', .* is allowed$"):
        require(results)


@pytest.mark.parametrize(
    "output",
    [
        lambda wanted: np.full_like(wanted, np.nan),
        lambda wanted: np.full_like(wanted, np.inf),
        lambda wanted: np.append(wanted, np.float32(0.5)),
        lambda wanted: wanted[:, None],
        lambda wanted: wanted + np.float32(3 * gates.NETWORK_TOLERANCE["fp32"]["gnn"]),
    ],
    ids=["NaN", "infinity", "one too many", "another shape", "shifted"],
)
def test_a_broken_engine_fails(small_weights, output):
    _, networks = load_weights(small_weights)
    spec = STAGES[2]

    def engine(*inputs):
        return output(run_network(networks[spec.name], *inputs))

    case = next(case for case in CASES if case.edge_index[spec.name].shape[1] > 1)
    results = gate_network(engine, spec=spec, network=networks[spec.name], cases=[case])
    assert [result.passed for result in results] == [False]


@pytest.mark.parametrize("graph", ["radius", "knn"])
def test_graph_passes(small_weights, graph):
    card, networks = load_weights(small_weights)
    cases = [
        *CASES,
        *event_cases([drawn_event(2500)], networks=networks, cuts=card.point().cuts, limits=card.limits),
    ]
    require(
        gate_graph(
            embed=partial(run_network, networks["embedding"]),
            cuts=replace(card.point().cuts, graph=graph, k=4),
            cases=cases,
        )
    )


def test_a_graph_of_other_neighbours_fails(small_weights, monkeypatch):
    whole = gates.search_on_host
    monkeypatch.setattr(gates, "search_on_host", lambda cuts: whole(replace(cuts, k=cuts.k + 1)))
    card, networks = load_weights(small_weights)
    results = gate_graph(
        embed=partial(run_network, networks["embedding"]),
        cuts=replace(card.point().cuts, graph="knn", k=4),
        cases=CASES,
    )
    with pytest.raises(GateError, match=r"^graph: deviates by \d+ from its reference"):
        require(results)


@pytest.mark.parametrize("graph", ["radius", "knn"])
def test_a_graph_that_loses_a_pair_fails(small_weights, monkeypatch, graph):
    whole = gates.search_on_host
    monkeypatch.setattr(gates, "search_on_host", lambda cuts: lambda *a, **k: whole(cuts)(*a, **k)[:, 1:])
    card, networks = load_weights(small_weights)
    results = gate_graph(
        embed=partial(run_network, networks["embedding"]),
        cuts=replace(card.point().cuts, graph=graph, k=4),
        cases=CASES,
    )
    with pytest.raises(GateError, match=r"^graph: deviates by 1 from its reference"):
        require(results)


def test_labelling_passes():
    results = gate_labelling(cut=0.4)
    require(results)
    assert {result.case.split(",")[0] for result in results} == set(LABELLINGS)


@pytest.mark.parametrize("method", sorted(LABELLINGS))
def test_a_labelling_that_loses_a_track_fails(monkeypatch, method):
    whole = getattr(gates, method)

    def without_the_first(*args, **kwargs):
        labels = whole(*args, **kwargs)
        return np.where(labels == 0, -1, labels)

    monkeypatch.setattr(gates, method, without_the_first)
    with pytest.raises(GateError, match=rf"^labelling: .* on '{method}, "):
        require(gate_labelling(cut=0.4))


@pytest.mark.parametrize(("deviation", "passed"), [(0.0, True), (0.1, True), (0.11, False), (np.nan, False)])
def test_result(deviation, passed):
    result = GateResult(stage="gnn", case="drawn", deviation=deviation, tolerance=0.1)
    assert result.passed is passed


@pytest.mark.parametrize(
    ("found", "wanted", "share"),
    [
        ([], [], 0.0),
        ([-1, -1], [-1, -1], 0.0),
        ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], 0.0),  # numbers do not matter
        ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, -1], 0.5),
        ([0, 0, 0, -1, -1, -1], [0, 0, 0, 1, 1, 1], 0.5),
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], 1.0),
        ([0, 0, 0], [-1, -1, -1], 1.0),
    ],
)
def test_share_of_tracks_that_are_other_sets_of_hits(found, wanted, share):
    deviation = gates.share_of_other_tracks(np.array(found, dtype=np.int64), np.array(wanted, dtype=np.int64))
    assert deviation == share


@pytest.mark.parametrize(("lost", "passed"), [(0, (True, True)), (1, (False, True)), (20, (False, True))])
def test_physics_may_differ_by_two_in_a_thousand(lost, passed):
    event = next(iter(read_all([SAMPLES])))
    particle_id = event.truth.particle_id
    targets = event.truth.particles.particle_id[TARGETS.passes(event.truth, kinematics(event.truth))]
    assert 200 < len(targets) < 500
    found, wanted = (
        count(
            event=event,
            pairs=pairs_from_labels(np.where(np.isin(particle_id, [*gone, NOISE]), -1, particle_id)),
            selection=TARGETS,
        ).report()
        for gone in (targets[:lost], [])
    )
    results = gates.compare_rates(found, wanted)
    assert tuple(result.passed for result in results) == passed
    assert results[0].case == "efficiency, 1 events"
    assert results[0].deviation == pytest.approx(lost / len(targets))


def test_a_share_of_nothing_passes_no_gate():
    event = next(iter(read_all([SAMPLES])))
    nothing = count(
        event=event, pairs=pairs_from_labels(np.full(event.n_hits, -1)), selection=TARGETS
    ).report()
    assert [result.passed for result in gates.compare_rates(nothing, nothing)] == [True, False]
