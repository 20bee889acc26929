"""Files that no part of tritrack wrote, as text: their names, types and shapes are their own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnx_parser = pytest.importorskip("onnx.parser")

from tritrack.ensemble_repo.render import render_repository
from tritrack.events.event import Event
from tritrack.export.cases import drawn_cases, drawn_hits
from tritrack.export.foreign import Foreign, ForeignError, gate_foreign, join_networks, wrap_foreign
from tritrack.export.gates import GateError, require
from tritrack.export.onnx import export_engines
from tritrack.stages.card import ForeignStage, read_card
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.pipeline import Pipeline

NETWORKS = {spec.name: spec for spec in STAGES if spec.engine}
HEAD = '<ir_version: 8, opset_import: ["" : 18]>'

# How far apart two hits lie in metres, less the mean of that over the pairs of the outer hit.
BODY = """
    one = Constant <value_ints = [1]> ()
    first = Constant <value_int = 0> ()
    second = Constant <value_int = 1> ()
    metre = Constant <value_float = 0.001> ()
    inner = Gather <axis = 0> (pairs, first)
    outer = Gather <axis = 0> (pairs, second)
    a = Gather <axis = 0> (x, inner)
    b = Gather <axis = 0> (x, outer)
    d = Sub (a, b)
    square = Mul (d, d)
    apart = ReduceSum <keepdims = 0> (square, one)
    far = Sqrt (apart)
    near = Mul (far, metre)
    n = Shape <start = 0, end = 1> (x)
    zero = ConstantOfShape (n)
    total = ScatterElements <axis = 0, reduction = "add"> (zero, outer, near)
    of_outer = Gather <axis = 0> (total, outer)
    logits = Sub (near, of_outer)
"""


def gnn_text(
    *, pairs="int64[2, e]", hits="float[n, 3]", more="", gives="float[e] logits", body=BODY, head=HEAD
):
    return f"{head} theirs ({hits} x, {pairs} pairs{more}) => ({gives}) {{ {body} }}"


def gnn_stage(**change):
    return replace(ForeignStage(inputs=("x", "pairs"), output="logits", sigmoid=True), **change)


@pytest.fixture
def card(small_weights):
    return replace(read_card(small_weights), name="mixed", foreign={"gnn": gnn_stage()})


@pytest.fixture
def foreign(card, tmp_path):
    """``foreign(text, stage)``: a GNN from elsewhere."""

    def build(text=None, stage=None, *, name="gnn"):
        path = tmp_path / "theirs.onnx"
        onnx.save(onnx_parser.parse_model(text or gnn_text()), path)
        return Foreign(card=replace(card, foreign={name: stage or gnn_stage()}), files={name: path})

    return build


def load(given, tmp_path, *, name="gnn", threads=1):
    path = tmp_path / "wrapped.onnx"
    onnx.save(wrap_foreign(given, spec=NETWORKS[name], card=given.card), path)
    return OnnxEngine(path, spec=NETWORKS[name], threads=threads)


def expected(hits, pairs):
    near = np.linalg.norm(hits[pairs[0]].astype(np.float64) - hits[pairs[1]], axis=1) / 1000
    logits = near - np.bincount(pairs[1], weights=near, minlength=len(hits))[pairs[1]]
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


COLUMN = BODY + "two = Constant <value_ints = [-1, 1]> ()\n column = Reshape (logits, two)\n"
WIDE = BODY.replace("inner = Gather", "wide = Cast <to = 7> (pairs)\n inner = Gather").replace(
    "(pairs, ", "(wide, "
)
DOUBLE = (
    BODY.replace("metre = Constant", "hits = Cast <to = 1> (x)\n metre = Constant")
    .replace("(x, ", "(hits, ")
    .replace("logits = Sub", "single = Sub")
    + "logits = Cast <to = 11> (single)\n"
)
SIGMOID = BODY + "score = Sigmoid (logits)\n"


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (gnn_text(), gnn_stage()),
        (gnn_text(pairs="int32[2, e]", body=WIDE), gnn_stage()),
        (gnn_text(gives="float[e, 1] column", body=COLUMN), gnn_stage(output="column")),
        (gnn_text(hits="double[n, 3]", gives="double[e] logits", body=DOUBLE), gnn_stage()),
        (gnn_text(gives="float[e] score", body=SIGMOID), gnn_stage(output="score", sigmoid=False)),
        (gnn_text(gives="float[n] total, float[e] logits"), gnn_stage()),
        (gnn_text(hits="float[a, b]", pairs="int64[c, d]", gives="float[f] logits"), gnn_stage()),
    ],
    ids=["int64", "int32", "column", "double", "probabilities", "two outputs", "other axes"],
)
def test_what_fits_speaks_the_contract_and_passes(foreign, tmp_path, text, stage):
    given = foreign(text, stage)
    engine = load(given, tmp_path, threads=2)
    cases = drawn_cases()
    results = gate_foreign(engine, spec=NETWORKS["gnn"], card=given.card, cases=cases)
    require(results)
    assert len(results) == 4 * len(cases)
    for case in cases:
        found = engine(case.hits, case.edge_index["gnn"])
        np.testing.assert_allclose(found, expected(case.hits, case.edge_index["gnn"]), atol=1e-4)
    model = onnx.load(tmp_path / "wrapped.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["HITS", "EDGE_INDEX"]
    assert {entry.key: entry.value for entry in model.metadata_props}["card_hash"] == given.card.hash


@pytest.mark.parametrize("name", NETWORKS)
def test_own_files_taken_for_foreign_give_the_same(small_engines, card, tmp_path, name):
    spec = NETWORKS[name]
    stage = ForeignStage(inputs=tuple(tensor.name for tensor in spec.inputs), output=spec.engine[0].name)
    given = Foreign(card=replace(card, foreign={name: stage}), files={name: small_engines / f"{name}.onnx"})
    engine = load(given, tmp_path, name=name)
    require(gate_foreign(engine, spec=spec, card=given.card, cases=drawn_cases()))
    own = OnnxEngine(small_engines / f"{name}.onnx", spec=spec, threads=1)
    case = drawn_cases()[6]
    inputs = [case.hits, case.edge_index["gnn"]][: len(spec.inputs)]
    np.testing.assert_array_equal(engine(*inputs), own(*inputs))


@pytest.mark.parametrize(
    ("text", "stage", "sentence"),
    [
        (gnn_text(more=", float[e, 6] attributes"), None, "takes x, pairs, attributes, the stage gives 2: HITS, EDGE_INDEX"),
        (None, gnn_stage(inputs=("x", "edges")), "takes x, pairs, the card names x, edges for HITS, EDGE_INDEX"),
        (None, gnn_stage(output="score"), "gives logits, the card names score"),
        (gnn_text(hits="float[53, 3]"), None, r"x, which is HITS, has the shape \[53, 3\]: the axis n_hits is fixed to 53: it must be free"),
        (gnn_text(pairs="int64[2, 97]"), None, r"\[2, 97\]: the axis n_edges is fixed to 97"),
        (gnn_text(pairs="int64[e, 2]"), None, r"pairs, which is EDGE_INDEX, has the shape \[e, 2\]: the axis n_edges is fixed to 2"),
        (gnn_text(hits="float[n, 12]"), None, r"\[n, 12\]: the axis n_columns is fixed to 12, not to 3"),
        (gnn_text(hits="float[1, n, 3]"), None, r"has the shape \[1, n, 3\], wanted is \[n_hits, n_columns\]"),
        (gnn_text(gives="float[e, 2] logits"), None, r"has the shape \[e, 2\], wanted is \[n_edges\]"),
        (gnn_text(pairs="float[2, e]"), None, "pairs, which is EDGE_INDEX, is FLOAT, wanted is INT32 or INT64"),
        (gnn_text(head=HEAD.replace("18", "99")), None, "wants operator set 99, those up to .* are known here"),
        (gnn_text(body="logits = Unheard (x)"), None, "no valid ONNX file: No Op registered for Unheard"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_sentence(foreign, text, stage, sentence):
    given = foreign(text, stage)
    with pytest.raises(ForeignError, match=f"^gnn: .*theirs.onnx: .*{sentence}"):
        wrap_foreign(given, spec=NETWORKS["gnn"], card=given.card)


def test_what_is_no_onnx_file(foreign, tmp_path):
    given = foreign()
    (tmp_path / "theirs.onnx").write_bytes(b"\x00 a checkpoint")
    with pytest.raises(ForeignError, match=r"^gnn: .*theirs.onnx: no valid ONNX file: "):
        wrap_foreign(given, spec=NETWORKS["gnn"], card=given.card)


FIXED = BODY + "size = Constant <value_ints = [97]> ()\n fixed = Reshape (logits, size)\n"
ORDER = BODY + "zeroth = Constant <value_int = 0> ()\n upto = CumSum (logits, zeroth)\n"
NOISE = BODY + "noise = RandomNormalLike (logits)\n"
LOGARITHM = BODY + "log = Log (near)\n"
SHORT = BODY + "short = Concat <axis = 0> (logits, logits)\n"


@pytest.mark.parametrize(
    ("body", "output", "sigmoid", "error", "sentence"),
    [
        (BODY, "logits", False, ForeignError, "gives scores from .* which are no probabilities: for logits the card says sigmoid"),
        (FIXED, "fixed", True, ForeignError, "on 'drawn, 0 hits, 0 edges' it does not run: "),
        (LOGARITHM, "log", False, ForeignError, "values that are not finite|no probabilities"),
        (SHORT, "short", True, ForeignError, r"on 'drawn, 2 hits, 1 edges' it gives float32 \[2\], wanted is float32 \[1\]"),
        (ORDER, "upto", True, GateError, "deviates by .* from its reference on 'pairs in another order, "),
        (NOISE, "noise", True, GateError, "deviates by .* from its reference on 'the same again, "),
    ],
)  # fmt: skip
def test_gates_tell(foreign, tmp_path, body, output, sigmoid, error, sentence):
    given = foreign(
        gnn_text(gives=f"float[e] {output}", body=body), gnn_stage(output=output, sigmoid=sigmoid)
    )
    engine = load(given, tmp_path)
    with pytest.raises(error, match=f"^gnn: .*{sentence}"):
        require(gate_foreign(engine, spec=NETWORKS["gnn"], card=given.card, cases=drawn_cases()))


def test_hits_without_a_pair(foreign, tmp_path):
    """Scores that depend on the number of hits depend on those that the chain leaves out."""
    body = (
        BODY
        + "count = Cast <to = 1> (n)\n thousandth = Mul (count, metre)\n crowded = Add (logits, thousandth)\n"
    )
    given = foreign(gnn_text(gives="float[e] crowded", body=body), gnn_stage(output="crowded"))
    with pytest.raises(GateError, match="'hits without a pair left out, "):
        require(
            gate_foreign(load(given, tmp_path), spec=NETWORKS["gnn"], card=given.card, cases=drawn_cases())
        )


def test_a_filter_that_looks_at_other_pairs(foreign, tmp_path):
    given = foreign(name="filter")
    engine = load(given, tmp_path, name="filter")
    with pytest.raises(GateError, match=r"^filter: .*'half of the pairs, "):
        require(gate_foreign(engine, spec=NETWORKS["filter"], card=given.card, cases=drawn_cases()))


def test_hits_in_another_order(foreign, tmp_path):
    """Scores that grow with the number of the hit are found out by the hits' order, not by the pairs'."""
    body = BODY + "index = Cast <to = 1> (outer)\n thousandth = Mul (index, metre)\n"
    given = foreign(gnn_text(gives="float[e] thousandth", body=body), gnn_stage(output="thousandth"))
    with pytest.raises(GateError, match="'hits in another order, "):
        require(
            gate_foreign(load(given, tmp_path), spec=NETWORKS["gnn"], card=given.card, cases=drawn_cases())
        )


def test_the_cards_hash_covers_weights_beside_the_file(foreign, small_weights, tmp_path):
    given = foreign()
    path = given.files["gnn"]
    (alone,) = {join_networks(given, small_weights)[0].sha256["gnn.onnx"] for _ in range(2)}
    assert alone == hashlib.sha256(path.read_bytes()).hexdigest()
    hashes = set()
    for weight in (1.0, 2.0):
        model = onnx.load(path)
        weights = np.full(1000, weight, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
        onnx.save(model, tmp_path / "beside.onnx", save_as_external_data=True, location="beside.data")
        beside = replace(given, files={"gnn": tmp_path / "beside.onnx"})
        hashes.add(join_networks(beside, small_weights)[0].sha256["gnn.onnx"])
        (tmp_path / "beside.data").unlink()
    assert len(hashes) == 2
    with pytest.raises(ForeignError, match=r"beside\.data: missing, .*beside\.onnx has its weights there"):
        join_networks(beside, small_weights)


def test_a_chain_with_a_foreign_stage_is_served_like_any(foreign, small_weights, small_engines, tmp_path):
    given = foreign()
    hits = drawn_hits(n_hits=1500, seed=1)
    event = Event(event_id=42, hits=hits, hit_id=np.arange(1500), modules=np.zeros((1500, 3), np.int32))
    out = tmp_path / "engines"
    results = export_engines(weights=small_weights, out=out, threads=1, events=[event], foreign=given)
    assert [r.case for r in results if r.stage == "chain"] == ["hits in another order, event 42, 1500 hits"]
    card = read_card(out)
    assert card.foreign == given.card.foreign
    assert set(card.sha256) == {"embedding.safetensors", "filter.safetensors", "gnn.onnx"}
    for name in ("embedding", "filter"):  # the card's hash in them is another
        own, other = (onnx.load(folder / f"{name}.onnx").graph for folder in (small_engines, out))
        assert own == other
    labels = Pipeline.load(out, threads=1).find(hits)
    assert labels.max() > 0
    for server in ("embedded", "container"):
        texts = []
        for folder in (small_engines, out):
            repository = tmp_path / f"{server}-{folder.name}"
            render_repository(engines=folder, out=repository, server=server, device="cpu", threads=1)
            says = read_card(folder)
            texts.append(
                {
                    path.parent.name: path.read_text().replace(says.hash, "HASH").replace(says.name, "NAME")
                    for path in repository.glob("*/config.pbtxt")
                }
            )
        assert texts[0] == texts[1]
        assert list((repository / "gnn" / "1").glob("*.onnx"))


def test_nothing_of_tritracks_own(card, small_engines, tmp_path):
    stages = {
        name: ForeignStage(inputs=tuple(t.name for t in spec.inputs), output=spec.engine[0].name)
        for name, spec in NETWORKS.items()
    }
    files = {name: small_engines / f"{name}.onnx" for name in NETWORKS}
    given = Foreign(card=replace(card, foreign=stages), files=files)
    export_engines(weights=None, out=tmp_path / "engines", threads=1, foreign=given)
    hits = drawn_hits(n_hits=1500, seed=1)
    found, wanted = (
        Pipeline.load(folder, threads=1).find(hits) for folder in (tmp_path / "engines", small_engines)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "weights", "sentence"),
    [
        ({"foreign": {}}, True, "files are given for gnn, the card's foreign stages are none"),
        ({"sha256": {"filter.safetensors": "0"}}, True, r"filter.safetensors: not the file that the card of mixed was written for"),
        ({}, False, "weights are wanted for embedding, filter"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together(foreign, small_weights, tmp_path, change, weights, sentence):
    given = foreign()
    given = replace(given, card=replace(given.card, **change))
    with pytest.raises(ForeignError, match=sentence):
        export_engines(
            weights=small_weights if weights else None, out=tmp_path / "out", threads=1, foreign=given
        )
    assert not (tmp_path / "out").exists()


def test_a_file_that_fails_is_not_left(foreign, small_weights, tmp_path):
    given = foreign(gnn_text(gives="float[e] noise", body=NOISE), gnn_stage(output="noise"))
    with pytest.raises(GateError, match="the same again"):
        export_engines(weights=small_weights, out=tmp_path / "out", threads=1, foreign=given)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"embedding.onnx", "filter.onnx"}
