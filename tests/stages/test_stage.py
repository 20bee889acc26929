from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.stages.card import CARD_FILE, CardError, read_card
from tritrack.stages.contract import CUT_STEP, GNN_STAGE, SCORE_STEP, STAGES, TRACK_LABEL, ContractError
from tritrack.stages.engine import load_engine
from tritrack.stages.labelling import LABELLINGS
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.stage import load_stage

BY_NAME = {spec.name: spec for spec in STAGES}


def drawn_hits(n_hits):
    rng = np.random.default_rng(n_hits)
    phi, r = rng.uniform(-np.pi, np.pi, n_hits), rng.uniform(30.0, 1000.0, n_hits)
    z = rng.uniform(-3000.0, 3000.0, n_hits)
    return np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1).astype(np.float32)


def hits_with(value):
    hits = drawn_hits(20)
    hits[[3, 11], 1] = value
    return hits


@pytest.fixture(scope="module")
def chain(small_engines):
    return Pipeline.load(small_engines, threads=2)


@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 500, 4000])
def test_one_label_per_hit(chain, n_hits):
    labels = chain.find(drawn_hits(n_hits))
    assert labels.dtype == TRACK_LABEL.dtype
    assert labels.shape == (n_hits,)
    tracks = np.unique(labels[labels >= 0])
    assert tracks.tolist() == list(range(tracks.size))
    assert tracks.size > 0 or n_hits <= 3


def test_the_small_chain_passes_every_stage_some_edges(chain):
    sizes = {}
    chain.find(
        drawn_hits(4000),
        on_stage=lambda name, outputs, _: sizes.update({name: next(iter(outputs.values())).shape[-1]}),
    )
    assert list(sizes) == [spec.name for spec in STAGES]
    assert 0 < sizes["gnn"] == sizes["filter"] <= sizes["graph"]


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        (np.zeros((5, 3)), r"HITS: dtype is float64, the contract wants float32 \[n_hits, n_columns\]"),
        (np.zeros(5, np.float32), r"HITS: shape is \[5\]"),
        (np.zeros((5, 4), np.float32), r"HITS: axis 1 \(n_columns\) is 4 long, 3 wanted"),
        (hits_with(np.nan), "HITS: 2 of 20 rows hold NaN or infinity: rows 3, 11"),
        (
            hits_with(1.1e5),
            r"HITS: 2 of 20 rows lie more than 100000 mm away \(are they in mm\?\): rows 3, 11",
        ),
        (hits_with(-np.inf), "HITS: 2 of 20 rows hold NaN or infinity: rows 3, 11"),
        (np.zeros((5001, 3), np.float32), "HITS: 5001 hits, the model's limit max_hits is 5000"),
        (
            np.ones((1000, 3), np.float32),
            "graph has more pairs of hits than the model's limit max_pairs, 20000",
        ),
    ],
)
def test_what_a_client_sends_wrong(chain, hits, message):
    with pytest.raises(ContractError, match=message):
        chain.find(hits)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("graph", {"EMBEDDING": np.zeros((19, 4), np.float32)}, r"EMBEDDING: axis 0 \(n_hits\) is 19 long"),
        (
            "graph",
            {"EMBEDDING": np.zeros((20, 5), np.float32)},
            r"EMBEDDING: axis 1 \(d\) is 5 long, 4 wanted",
        ),
        ("graph", {"EMBEDDING": np.full((20, 4), np.inf, np.float32)}, "EMBEDDING: the network overflows"),
        ("labelling", {"EDGE_SCORE": np.full(4, np.nan, np.float32)}, "EDGE_SCORE: the network overflows"),
        ("filter", {"EDGE_INDEX": np.zeros((2, 4), np.int64)}, "EDGE_INDEX: dtype is int64"),
        ("filter", {"EDGE_INDEX": np.zeros((3, 4), np.int32)}, r"EDGE_INDEX: axis 0 is 3 long, 2 wanted"),
        (
            "gnn",
            {"EDGE_INDEX": np.full((2, 4), 20, np.int32)},
            "EDGE_INDEX: holds 20 to 20, but there are 20 hits",
        ),
        ("gnn", {"EDGE_INDEX": np.full((2, 4), -1, np.int32)}, "EDGE_INDEX: holds -1 to -1"),
        ("labelling", {"EDGE_SCORE": np.zeros(5, np.float32)}, r"EDGE_SCORE: axis 0 \(n_edges\) is 5 long"),
    ],
)
def test_what_breaks_the_contract_between_stages(small_engines, stage, change, message):
    tensors = {
        "HITS": drawn_hits(20),
        "EMBEDDING": np.zeros((20, 4), np.float32),
        "EDGE_INDEX": np.zeros((2, 4), np.int32),
        "EDGE_SCORE": np.zeros(4, np.float32),
    }
    with pytest.raises(ContractError, match=message):
        load_stage(BY_NAME[stage], small_engines, threads=1)(tensors | change)


def test_what_a_step_imports():
    """Each step of a server is a process: it loads no library that it does not compute with."""
    program = (
        "import sys; import tritrack.ensemble_repo.steps; "
        "print([n for n in ('faiss', 'numba', 'onnxruntime', 'scipy', 'tritonclient') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_engine(small_engines, tmp_path):
    folder = shutil.copytree(small_engines, tmp_path / "engines")
    (folder / "gnn.onnx").unlink()
    load_stage(SCORE_STEP, folder, threads=1)
    with pytest.raises(CardError, match=r"gnn\.onnx: no engine there"):
        load_stage(GNN_STAGE, folder, threads=1)


@pytest.mark.parametrize("graph", ["radius", "knn"])
@pytest.mark.parametrize("labelling", sorted(LABELLINGS))
def test_the_card_chooses_the_methods(small_engines, tmp_path, graph, labelling):
    folder = shutil.copytree(small_engines, tmp_path / "engines")
    card = read_card(folder)
    point = card.point()
    point = replace(point, cuts=replace(point.cuts, graph=graph, labelling=labelling))
    card = replace(card, working_points={"balanced": point})
    (folder / CARD_FILE).write_bytes(card.to_json())
    labels = Pipeline.load(folder, threads=1).find(drawn_hits(2000))
    assert labels.max() > 0


def test_the_filter_is_its_network_and_its_cut(small_engines, chain):
    tensors = {"HITS": drawn_hits(2000)}
    for stage in chain.stages[:2]:
        tensors |= stage(tensors)
    scored = tensors | load_stage(SCORE_STEP, small_engines, threads=2)(tensors)
    cut = load_stage(CUT_STEP, small_engines, threads=2)
    np.testing.assert_array_equal(cut(scored)["EDGE_INDEX"], chain.stages[2](tensors)["EDGE_INDEX"])
    with pytest.raises(ContractError, match=r"PAIR_SCORE: axis 0 \(n_edges\) is 3 long"):
        cut(scored | {"PAIR_SCORE": np.zeros(3, np.float32)})


def test_working_points_differ_and_share_their_networks(small_engines, chain):
    hits = drawn_hits(4000)
    assert chain.working_point == chain.card.default == "balanced"
    labels = {name: chain.at(name).find(hits) for name in chain.card.points}
    for name, found in labels.items():
        alone = Pipeline.load(small_engines, threads=2, working_point=name)
        assert alone.working_point == name
        np.testing.assert_array_equal(found, alone.find(hits))
    np.testing.assert_array_equal(labels["balanced"], chain.find(hits))
    assert len({found.tobytes() for found in labels.values()}) == 3


@pytest.mark.parametrize("n_linked", [0, 2, 40])
def test_hits_without_an_edge_change_no_score(small_engines, n_linked):
    hits = drawn_hits(100)
    rng = np.random.default_rng(n_linked)
    ends = rng.choice(100, n_linked, replace=False)
    edges = np.unique(np.sort(rng.choice(ends, (2, 60)), axis=0), axis=1) if n_linked else np.empty((2, 0))
    edges = edges.astype(np.int32)
    stage = load_stage(GNN_STAGE, small_engines, threads=1)
    (score,) = stage({"HITS": hits, "EDGE_INDEX": edges}).values()
    assert score.shape == (edges.shape[1],)
    if n_linked:
        engine = load_engine(GNN_STAGE, small_engines, threads=1)
        np.testing.assert_allclose(score, engine(hits, edges), rtol=0, atol=1e-6)
