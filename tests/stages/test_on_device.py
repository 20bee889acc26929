"""A stage that computes on a device gives what it gives on the host, number for number, wherever its inputs lie."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.ensemble_repo.steps import load_step
from tritrack.export.cases import drawn_hits
from tritrack.stages.card import read_card
from tritrack.stages.contract import (
    CUT_STEP,
    FILTER_STAGE,
    GNN_STAGE,
    GRAPH_STAGE,
    LABELLING_STAGE,
    NATIVE_STEPS,
    STAGES,
    ContractError,
)
from tritrack.stages.engine import cuda_is_there, load_engine
from tritrack.stages.helix import resolution_along
from tritrack.stages.networks import run_network
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.placement import copied_to_host, find_device, to_device, to_host
from tritrack.stages.stage import load_stage
from tritrack.stages.weights import load_weights

POINTS = ("fast", "balanced")
"""Of the small card: both have a radius graph; fast labels components, balanced walks through."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return f"{request.param}:0" if request.param == "cuda" else request.param


@pytest.fixture
def engines(small_engines, scattered_engines, device):
    """Of the form that the device is given."""
    return small_engines if device == "cpu" else scattered_engines


def pack(n_hits):
    """The hits of some events, and where each begins."""
    events = [drawn_hits(n_hits=n, seed=n) for n in n_hits]
    offsets = np.cumsum([0, *n_hits], dtype=np.int64)
    return {"HITS": np.concatenate([np.empty((0, 3), np.float32), *events]), "EVENT_OFFSETS": offsets}


REQUESTS = {
    "an event": {"HITS": drawn_hits(n_hits=2000, seed=3)},
    "no hits": {"HITS": np.empty((0, 3), np.float32)},
    "one hit": {"HITS": drawn_hits(n_hits=1, seed=1)},
    "a pack": pack([1800, 0, 1500, 1, 600]),
    "a pack of empty events": pack([0, 0]),
    "a pack of none": pack([]),
}


def place(tensors, device, which):
    """Put every second tensor on the device, or all, or none."""
    on_device = {"all": lambda i: True, "none": lambda i: False, "some": lambda i: i % 2 == 1}[which]
    return {
        name: to_device(array, device) if on_device(i) else array
        for i, (name, array) in enumerate(tensors.items())
    }


def computes_there(spec, point, device):
    if spec.engine and spec is not FILTER_STAGE:
        return device != "cpu" and cuda_is_there()
    return spec in (GRAPH_STAGE, FILTER_STAGE, CUT_STEP) or (spec is LABELLING_STAGE and point == "fast")


@pytest.mark.parametrize("which", ["all", "none", "some"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("request_of", REQUESTS)
def test_each_step_gives_what_it_gives_on_the_host(engines, device, request_of, point, which):
    tensors = dict(REQUESTS[request_of])
    load = partial(load_stage, folder=engines, threads=1, working_point=point)
    for spec in (*NATIVE_STEPS[:2], FILTER_STAGE, *NATIVE_STEPS[2:]):
        ((name, wanted),) = load(spec)(tensors).items()
        stage = load(spec, device=device)
        ((given, found),) = stage(place(tensors, device, which)).items()
        assert given == name
        assert (stage.device == device) == computes_there(spec, point, device)
        if stage.device is None:
            assert isinstance(found, np.ndarray)
        else:
            assert str(found.device) == device
        found = to_host(found)
        assert found.dtype == wanted.dtype
        # A network in CUDA adds up in another order.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 if spec.engine and device != "cpu" else 0)
        if spec is not FILTER_STAGE:  # its two steps follow
            tensors[name] = wanted
    assert request_of not in ("an event", "a pack") or tensors["TRACK_LABEL"].max() > 5


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("request_of", REQUESTS)
def test_the_chain_gives_the_labels_of_the_host(small_engines, device, request_of, point):
    hits, offsets = REQUESTS[request_of]["HITS"], REQUESTS[request_of].get("EVENT_OFFSETS")
    networks = {spec.name: load_engine(spec, small_engines, threads=1) for spec in STAGES if spec.engine}
    card = read_card(small_engines)
    there, here = (
        Pipeline(card=card, engines=networks, working_point=point, device=where) for where in (device, None)
    )
    found = there.find(hits, event_offsets=offsets)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, here.find(hits, event_offsets=offsets))
    assert there.at("best").stages[1].device == device


class OnDevice:
    """A network of torch's that takes and gives tensors, as TensorRT's engine does."""

    on_device = True

    def __init__(self, network):
        self.network = network

    def __call__(self, *tensors):
        assert all(isinstance(tensor, torch.Tensor) and tensor.is_contiguous() for tensor in tensors)
        with torch.inference_mode():
            return self.network(*tensors).clone()


@pytest.mark.parametrize(("point", "crosses"), [("fast", ()), ("balanced", ("EDGE_INDEX", "EDGE_SCORE"))])
@pytest.mark.parametrize("request_of", REQUESTS)
def test_networks_on_the_device_leave_nothing_to_copy(small_weights, request_of, point, crosses):
    """But for the labels, and the inputs of a labelling of the host; the torch modules are the same here and there."""
    card, networks = load_weights(small_weights)
    hits, offsets = REQUESTS[request_of]["HITS"], REQUESTS[request_of].get("EVENT_OFFSETS")
    here = Pipeline(
        card=card,
        engines={name: partial(run_network, network) for name, network in networks.items()},
        working_point=point,
    )
    there = Pipeline(
        card=card,
        engines={name: OnDevice(network) for name, network in networks.items()},
        working_point=point,
        device="cpu",
    )
    sizes = {}
    wanted = here.find(
        hits,
        event_offsets=offsets,
        on_stage=lambda _, outputs, __: sizes.update({name: a.nbytes for name, a in outputs.items()}),
    )
    before = copied_to_host()
    np.testing.assert_array_equal(there.find(hits, event_offsets=offsets), wanted)
    expected = sum(sizes[name] for name in crosses or ("TRACK_LABEL",))
    assert copied_to_host() - before == expected


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"EMBEDDING": np.full((20, 4), np.inf, np.float32)}, GRAPH_STAGE),
        ({"EMBEDDING": np.full((20, 4), np.nan, np.float32)}, GRAPH_STAGE),
        ({"EMBEDDING": np.zeros((19, 4), np.float32)}, GRAPH_STAGE),
        ({"EMBEDDING": np.zeros((20, 4))}, GRAPH_STAGE),
        ({"HITS": np.ones((300, 3), np.float32), "EMBEDDING": np.ones((300, 4), np.float32)}, GRAPH_STAGE),
        ({"EDGE_INDEX": np.zeros((2, 4), np.int64)}, CUT_STEP),
        ({"EDGE_INDEX": np.zeros((3, 4), np.int32)}, CUT_STEP),
        (
            {"EDGE_INDEX": np.zeros((2, 15_001), np.int32), "PAIR_SCORE": np.ones(15_001, np.float32)},
            CUT_STEP,
        ),
        ({"EDGE_INDEX": np.full((2, 4), 20, np.int32)}, LABELLING_STAGE),
        ({"EDGE_INDEX": np.full((2, 4), -1, np.int32)}, LABELLING_STAGE),
        ({"EDGE_SCORE": np.zeros(5, np.float32)}, LABELLING_STAGE),
        (
            {"EVENT_OFFSETS": np.array([0, 20]), "EDGE_INDEX": np.array([[3, 1], [4, 2]], np.int32)}
            | {"EDGE_SCORE": np.ones(2, np.float32)},
            LABELLING_STAGE,
        ),
        ({"EVENT_OFFSETS": np.array([0, 10, 20]), "EDGE_INDEX": np.full((2, 4), 20, np.int32)}, CUT_STEP),
        (
            {
                "EVENT_OFFSETS": np.array([0, 2, 20]),
                "EDGE_INDEX": np.array([[0] * 4, [1, 1, 2, 2]], np.int32),
            },
            LABELLING_STAGE,
        ),
        ({"EVENT_OFFSETS": np.array([0, 15, 5, 20])}, GRAPH_STAGE),
    ],
)
def test_what_breaks_the_contract_is_refused_in_the_same_words(small_engines, device, change, step):
    tensors = {
        "HITS": drawn_hits(n_hits=20, seed=1),
        "EMBEDDING": np.zeros((20, 4), np.float32),
        "EDGE_INDEX": np.zeros((2, 4), np.int32),
        "PAIR_SCORE": np.ones(4, np.float32),
        "EDGE_SCORE": np.zeros(4, np.float32),
    } | change
    said = []
    for where in (None, device):
        stage = load_stage(step, small_engines, threads=1, working_point="fast", device=where)
        with pytest.raises(ContractError) as caught:
            stage(tensors if where is None else place(tensors, device, "all"))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_the_entry_checks_hits_wherever_they_lie(small_engines, device):
    enter = load_step("entry", small_engines, threads=1, device=device)
    for which in ("all", "none"):
        (hits,) = enter(place(REQUESTS["a pack"], device, which)).values()
        assert isinstance(hits, np.ndarray)
        np.testing.assert_array_equal(hits, REQUESTS["a pack"]["HITS"])
        with pytest.raises(ContractError, match="HITS: 2 of 2 rows hold NaN"):
            enter(place({"HITS": np.full((2, 3), np.nan, np.float32)}, device, which))


@pytest.mark.parametrize("request_of", REQUESTS)
def test_helix_has_a_form_on_the_device(small_engines, device, request_of):
    card = read_card(small_engines)
    point = card.point("fast")
    point = replace(point, cuts=replace(point.cuts, labelling="helix"))
    card = replace(card, working_points={"fast": point}, default="fast")
    networks = {spec.name: load_engine(spec, small_engines, threads=1) for spec in STAGES if spec.engine}
    there, here = (Pipeline(card=card, engines=networks, device=where) for where in (device, None))
    assert there.stages[-1].device == device
    hits, offsets = REQUESTS[request_of]["HITS"], REQUESTS[request_of].get("EVENT_OFFSETS")
    found = there.find(hits, event_offsets=offsets)
    np.testing.assert_array_equal(found, here.find(hits, event_offsets=offsets))
    assert (
        request_of not in ("an event", "a pack") or found.max() > 0
    )  # of random scores few links follow a helix


def test_what_has_no_form_on_a_device_stays_on_the_host(small_engines):
    card = read_card(small_engines)
    assert card.point("balanced").cuts.labelling == "walkthrough"
    chain = Pipeline.load(small_engines, threads=1, device="cpu")
    assert [stage.device for stage in chain.stages] == [None, "cpu", "cpu", None, None]
    assert [stage.device for stage in chain.at("fast").stages] == [None, "cpu", "cpu", None, "cpu"]
    assert [stage.spec for stage in chain.stages] == list(STAGES)


def test_what_is_copied_to_the_host_is_counted(device):
    array = np.arange(6, dtype=np.float32)
    before = copied_to_host()
    assert to_host(array) is array
    assert copied_to_host() == before
    tensor = to_device(array, device)
    np.testing.assert_array_equal(to_host(tensor), array)
    assert copied_to_host() - before == 24
    assert to_device(tensor, device).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_any_array_of_the_host_gets_to_the_device(device, order):
    array = np.arange(12, dtype=np.int32).reshape(3, 4).transpose(order)[::-1]
    array.flags.writeable = False
    np.testing.assert_array_equal(to_device(array, device).cpu().numpy(), array)


def test_a_device_is_found_where_torch_sees_it(monkeypatch):
    assert find_device("CPU", 0) is None
    n_gpus = torch.cuda.device_count()
    assert find_device("GPU", n_gpus) is None
    assert [find_device("GPU", i) for i in range(n_gpus)] == [f"cuda:{i}" for i in range(n_gpus)]
    monkeypatch.setitem(sys.modules, "torch", None)
    assert find_device("GPU", 0) is None


def test_the_resolution_is_the_same_number():
    r = np.array([0.0, 199.99999, 200.0, 200.00001, 749.99999, 750.0, 1e4])
    found = resolution_along(torch.from_numpy(r))
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), resolution_along(r))
    np.testing.assert_array_equal(found.numpy(), [0.1, 0.1, 0.4, 0.4, 0.4, 3.0, 3.0])


def test_a_gnn_without_edges_answers_where_its_inputs_are(small_weights):
    card, networks = load_weights(small_weights)
    engines = {name: OnDevice(network) for name, network in networks.items()}
    chain = Pipeline(card=card, engines=engines, device="cpu")
    tensors = {"HITS": drawn_hits(n_hits=3, seed=1), "EDGE_INDEX": np.empty((2, 0), np.int32)}
    (score,) = chain.stages[3](tensors).values()
    assert chain.stages[3].spec is GNN_STAGE
    assert isinstance(score, torch.Tensor)
    assert (score.shape, score.dtype) == ((0,), torch.float32)
