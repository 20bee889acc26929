"""The curves of a training as files."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from tritrack.training.curves import draw_curves, write_curves
from tritrack.training.loop import CurvePoint


def points(n):
    return tuple(
        CurvePoint(
            step=i, minutes=i / 2, training_loss=1 / i, loss=1.1 / i, edge_efficiency=0.9, edge_purity=0.1 * i
        )
        for i in range(1, n + 1)
    )


def test_files(tmp_path):
    write_curves({"embedding": points(3), "gnn": points(4)}, folder=tmp_path / "new")
    read = json.loads((tmp_path / "new" / "training.json").read_text())
    assert [len(read[name]) for name in ("embedding", "gnn")] == [3, 4]
    assert read["gnn"][3] == {
        "step": 4,
        "minutes": 2.0,
        "training_loss": 0.25,
        "loss": 0.275,
        "edge_efficiency": 0.9,
        "edge_purity": 0.4,
    }
    assert (tmp_path / "new" / "training.png").stat().st_size > 10_000


def test_a_column_a_network():
    figure = draw_curves({"embedding": points(3), "filter": points(2)})
    assert [axes.get_title() for axes in figure.axes][:2] == ["embedding", "filter"]
    lines = {line.get_label(): line for line in figure.axes[3].get_lines()}
    assert lines["edge purity"].get_ydata().tolist() == pytest.approx([0.1, 0.2])
