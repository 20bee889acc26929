from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

from tritrack.events.event import Event
from tritrack.export import onnx as export_onnx
from tritrack.export.cases import drawn_hits
from tritrack.export.foreign import Foreign
from tritrack.export.gates import GateError, GateResult
from tritrack.export.network import export_network
from tritrack.export.onnx import FolderError, export_engines
from tritrack.stages.card import CARD_FILE, CardError, read_card
from tritrack.stages.contract import STAGES, ContractError

FILES = {"card.json", "gates.json", "embedding.onnx", "filter.onnx", "gnn.onnx"}


def drawn_event(n_hits):
    return Event(
        event_id=42,
        hits=drawn_hits(n_hits=n_hits, seed=1),
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), np.int32),
    )


def test_a_folder_of_engines(small_weights, tmp_path):
    stages = []
    results = export_engines(
        weights=small_weights,
        out=tmp_path,
        threads=1,
        events=[drawn_event(1500)],
        on_stage=lambda stage, passed: stages.append((stage, len(passed))),
    )
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert (tmp_path / CARD_FILE).read_bytes() == (small_weights / CARD_FILE).read_bytes()
    assert [name for name, _ in stages] == [*(spec.name for spec in STAGES), "chain"]
    assert sum(n for _, n in stages) == len(results)
    assert all(result.passed for result in results)
    assert {r.stage for r in results if r.case.startswith("event 42, 1500 hits")} == {
        "embedding", "graph", "filter", "gnn", "chain"
    }  # fmt: skip
    assert msgspec.json.decode((tmp_path / "gates.json").read_bytes(), type=list[GateResult]) == results


def test_the_same_weights_are_the_same_bytes(small_weights, small_engines, tmp_path):
    export_engines(weights=small_weights, out=tmp_path, threads=2)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (small_engines / name).read_bytes()


@pytest.mark.parametrize("stage", ["embedding", "filter", "gnn"])
def test_an_engine_that_fails_its_gate_is_not_left(small_weights, tmp_path, monkeypatch, stage):
    def perturbed(network, *, spec, **how):
        model = export_network(network, spec=spec, **how)
        if spec.name == stage:
            weight = next(w for w in model.graph.initializer if len(w.dims) == 2)
            wrong = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
            weight.CopyFrom(onnx.numpy_helper.from_array(wrong, weight.name))
        return model

    for name in FILES:  # left from an export that passed
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(export_onnx, "export_network", perturbed)
    with pytest.raises(GateError, match=f"^{stage}: deviates by"):
        export_engines(weights=small_weights, out=tmp_path, threads=2)
    names = [spec.name for spec in STAGES if spec.engine]
    passed = {f"{name}.onnx" for name in names[: names.index(stage)]}
    assert {path.name for path in tmp_path.iterdir()} == passed


def test_no_weights(tmp_path):
    with pytest.raises(CardError, match="no model card there"):
        export_engines(weights=tmp_path, out=tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["weights", "file", "link"])
def test_what_is_read_is_not_cleared_away(small_weights, tmp_path, what):
    weights = tmp_path / "weights"
    shutil.copytree(small_weights, weights)
    file = weights / "gnn.onnx"
    file.write_text("the only one")
    there = {path.name: path.read_bytes() for path in weights.iterdir()}
    (tmp_path / "link").symlink_to(weights)
    foreign = Foreign(card=read_card(weights), files={"gnn": file}) if what == "file" else None
    out = tmp_path / "link" if what == "link" else weights
    read = tmp_path / "elsewhere" if what == "file" else weights
    with pytest.raises(FolderError, match=f"^export: {out} is to be filled anew and is read from"):
        export_engines(weights=read, out=out, threads=1, foreign=foreign)
    assert {path.name: path.read_bytes() for path in weights.iterdir()} == there


def test_an_event_over_the_limits(small_weights, tmp_path):
    event = drawn_event(1000)
    event.hits[:] = event.hits[0]
    (tmp_path / CARD_FILE).write_text("of engines that were there")
    with pytest.raises(ContractError, match="graph has more pairs of hits than"):
        export_engines(weights=small_weights, out=tmp_path, threads=1, events=[event])
    assert (tmp_path / CARD_FILE).exists()  # nothing was exported in their place
