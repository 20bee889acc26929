"""A network from elsewhere, behind a real server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
parser = pytest.importorskip("onnx.parser")
pytest.importorskip("onnxscript")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.ensemble_repo.render import render_repository
from tritrack.export.foreign import Foreign
from tritrack.export.onnx import export_engines
from tritrack.service.client import TrackFinder
from tritrack.service.server import Server
from tritrack.stages.card import ForeignStage, read_card
from tritrack.stages.pipeline import Pipeline

# Hits that are near in z go together: logits of one metre less ten times the distance.
GNN = """<ir_version: 8, opset_import: ["" : 18]>
    near (float[n, 3] x, int64[2, e] pairs) => (float[e] logits) {
        inner, outer = Split <axis = 0, num_outputs = 2> (pairs)
        a = Gather <axis = 0> (x, inner)
        b = Gather <axis = 0> (x, outer)
        d = Sub (a, b)
        two = Constant <value_int = 2> ()
        z = Gather <axis = 2> (d, two)
        far = Abs (z)
        tenth = Constant <value_float = 0.01> ()
        metres = Mul (far, tenth)
        one = Constant <value_float = 1.0> ()
        left = Sub (one, metres)
        zeroth = Constant <value_ints = [0]> ()
        logits = Squeeze (left, zeroth)
    }"""


@pytest.mark.slow
def test_a_foreign_stage_gives_the_labels_that_it_gives_in_process(small_weights, hits_of, tmp_path):
    onnx.save(parser.parse_model(GNN), tmp_path / "theirs.onnx")
    stage = ForeignStage(inputs=("x", "pairs"), output="logits", sigmoid=True)
    card = replace(read_card(small_weights), name="mixed", foreign={"gnn": stage})
    engines, repository = tmp_path / "engines", tmp_path / "model_repository"
    foreign = Foreign(card=card, files={"gnn": tmp_path / "theirs.onnx"})
    export_engines(weights=small_weights, out=engines, threads=1, foreign=foreign)
    render_repository(engines=engines, out=repository, server="embedded", device="cpu", threads=1)
    chain = Pipeline.load(engines, threads=1)
    with Server(repository) as server, TrackFinder(server.url) as finder:
        for n_hits in (0, 1, 1500):
            hits = hits_of(n_hits)
            labels = finder.find(hits)
            np.testing.assert_array_equal(labels, chain.find(hits))
    assert labels.max() > 0
