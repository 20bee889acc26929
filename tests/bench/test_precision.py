from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tritrack.bench.precision import compare
from tritrack.stages.weights import load_weights


@pytest.mark.slow
def test_every_variant_is_judged(small_weights, small_event):
    card, networks = load_weights(small_weights)
    rows = list(compare(card, networks, [small_event], threads=1))
    assert [(row["precision"], row["library"]) for row in rows] == [
        ("fp32", "torch"), ("fp16", "onnx"), ("bf16", "torch")
    ]  # fmt: skip
    for row in rows[1:]:
        differences = [row[f"{name}_difference"] for name in ("efficiency", "fake_rate")]
        for name, difference in zip(("efficiency", "fake_rate"), differences, strict=True):
            found, wanted = row[name]["value"], rows[0][name]["value"]
            assert difference == (float("inf") if None in (found, wanted) else abs(found - wanted))
        assert row["may_be_default"] is (max(differences) <= 0.002)
