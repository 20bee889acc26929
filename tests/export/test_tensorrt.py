from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tritrack.events.event import Event
from tritrack.export.cases import drawn_cases, drawn_hits
from tritrack.export.gates import gate_chain
from tritrack.export.onnx import clear_engines
from tritrack.export.tensorrt import check_onnx_folder, export_plans, fits, median_sizes, profile_of
from tritrack.stages.card import CARD_FILE, CardError, read_card
from tritrack.stages.contract import EDGE_INDEX, EMBEDDING_STAGE, FILTER_STAGE, GNN_STAGE, HITS
from tritrack.stages.filtering import PAIRS_AT_ONCE
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import Sizes, facts_file, plan_file, read_facts
from tritrack.stages.weights import load_weights

NAMES = ("embedding", "filter", "gnn")


def drawn_event(n_hits):
    return Event(
        event_id=n_hits,
        hits=drawn_hits(n_hits=n_hits, seed=1),
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), np.int32),
    )


def test_the_files_that_tensorrt_takes_run_in_onnx_runtime(scattered_engines, small_weights):
    """They passed their gates there, duplicate pairs included."""
    assert check_onnx_folder(scattered_engines, card=read_card(small_weights)) == "fp32"
    assert Pipeline.load(scattered_engines, threads=1).find(drawn_hits(n_hits=500, seed=3)).shape == (500,)


def test_files_for_onnx_runtime_are_refused(small_engines, small_weights):
    with pytest.raises(
        CardError,
        match=r"embedding\.onnx: sums over edges .*: tritrack export --engine onnx --edge-sum scatter$",
    ):
        check_onnx_folder(small_engines, card=read_card(small_weights))


def test_files_of_other_weights_are_refused(scattered_engines, small_weights, tmp_path):
    card = read_card(small_weights)
    with pytest.raises(CardError, match=r"these engines are of small, not of the weights given \(other\)"):
        check_onnx_folder(scattered_engines, card=replace(card, name="other"))
    folder = shutil.copytree(scattered_engines, tmp_path / "engines")
    (folder / CARD_FILE).write_bytes(replace(card, name="other").to_json())
    with pytest.raises(
        CardError, match=r"embedding\.onnx: was exported with another model card than the one"
    ):
        check_onnx_folder(folder, card=read_card(folder))


@pytest.mark.parametrize(
    ("content", "said"), [(None, r"filter\.onnx: no engine there"), (b"no", r"filter\.onnx: no ONNX file: ")]
)
def test_a_file_that_is_none(scattered_engines, small_weights, tmp_path, content, said):
    folder = shutil.copytree(scattered_engines, tmp_path / "engines")
    (folder / "filter.onnx").unlink()
    if content is not None:
        (folder / "filter.onnx").write_bytes(content)
    with pytest.raises(CardError, match=said):
        check_onnx_folder(folder, card=read_card(small_weights))


def test_files_of_two_precisions_are_refused(scattered_engines, small_weights, tmp_path):
    folder = shutil.copytree(scattered_engines, tmp_path / "engines")
    model = onnx.load(folder / "gnn.onnx")
    next(entry for entry in model.metadata_props if entry.key == "precision").value = "fp16"
    onnx.save(model, folder / "gnn.onnx")
    with pytest.raises(CardError, match=r"the files' precisions are \['fp16', 'fp32'\], one is wanted"):
        check_onnx_folder(folder, card=read_card(small_weights))


def test_profiles_reach_from_one_row_to_the_limits(small_weights):
    card = read_card(small_weights)
    typical = {"n_hits": 900, "n_pairs": 7000, "n_edges": 30_000}
    hits = Sizes(min=(1, 3), opt=(900, 3), max=(5000, 3))
    assert profile_of(EMBEDDING_STAGE, card=card, typical=typical) == {HITS.name: hits}
    assert profile_of(FILTER_STAGE, card=card, typical=typical) == {
        HITS.name: hits,
        EDGE_INDEX.name: Sizes(min=(2, 1), opt=(2, 7000), max=(2, 20_000)),
    }
    # The filter sees pairs in pieces, but for a container's own backend.
    roomy = replace(card, limits=replace(card.limits, max_pairs=16_000_000))
    profile = profile_of(FILTER_STAGE, card=roomy, typical=typical | {"n_pairs": 5_000_000})
    assert profile[EDGE_INDEX.name] == Sizes(min=(2, 1), opt=(2, PAIRS_AT_ONCE), max=(2, 16_000_000))
    # More edges than the limit, or none, are no shape to be fastest at.
    for n_edges, opt in ((30_000, 15_000), (0, 1)):
        profile = profile_of(GNN_STAGE, card=card, typical=typical | {"n_edges": n_edges})
        assert profile[EDGE_INDEX.name] == Sizes(min=(2, 1), opt=(2, opt), max=(2, 15_000))


def test_cases_over_a_small_models_limits_are_left_out(small_weights):
    card, cases = read_card(small_weights), drawn_cases()
    typical = {"n_hits": 900, "n_pairs": 7000, "n_edges": 3000}
    left = {}
    for spec in (EMBEDDING_STAGE, FILTER_STAGE, GNN_STAGE):
        profile = profile_of(spec, card=card, typical=typical)
        left[spec.name] = [case.name for case in cases if not fits(case, spec=spec, profile=profile)]
    assert left == {"embedding": [], "filter": [], "gnn": ["drawn, 3000 hits, 20000 edges"]}


def test_median_sizes_are_the_chains(small_weights):
    card, networks = load_weights(small_weights)
    events = [drawn_event(n_hits) for n_hits in (0, 1500, 2000)]
    sizes = median_sizes(card, networks, events)
    alone = median_sizes(card, networks, events[1:2])
    assert sizes == alone
    assert sizes["n_hits"] == 1500
    assert card.limits.max_pairs > sizes["n_pairs"] > sizes["n_edges"] > 0


def test_engines_of_either_kind_are_cleared(tmp_path):
    names = [*(plan_file(name) for name in NAMES), *(facts_file(plan_file(name)) for name in NAMES)]
    for name in [*names, *(f"{name}.onnx" for name in NAMES), "card.json", "gates.json", "timing.cache"]:
        (tmp_path / name).write_bytes(b"old")
    clear_engines(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["timing.cache"]


@pytest.mark.tensorrt
def test_engines_pass_their_gates(scattered_engines, small_weights, tmp_path):
    events = [drawn_event(1500)]
    results = export_plans(
        weights=small_weights, engines=scattered_engines, out=tmp_path, events=events, on_stage=None
    )
    assert all(result.passed for result in results)
    assert {result.stage for result in results} == {*NAMES, "graph", "labelling", "chain"}
    for name in NAMES:
        assert read_facts(tmp_path / plan_file(name)).precision == "fp32"
    # What was built loads again, by itself, and finds the tracks of the chain in ONNX Runtime.
    found, wanted = (Pipeline.load(folder, threads=1) for folder in (tmp_path, scattered_engines))
    (result,) = gate_chain(found, reference=wanted, events=[drawn_event(1000)])
    assert result.deviation < 0.05  # untrained: many scores lie at the cut
