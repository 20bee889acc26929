"""The curves of a training, as JSON and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tritrack.training.loop import CurvePoint

CURVES_FILE = "training.json"
PICTURE_FILE = "training.png"


def write_curves(curves: Mapping[str, Sequence[CurvePoint]], *, folder: Path) -> None:
    """Write ``training.json`` and ``training.png``.

    Parameters
    ----------
    curves
        Points by network, in the order of the stages.
    folder
        Where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CURVES_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(curves), indent=2) + b"\n")
    draw_curves(curves).savefig(folder / PICTURE_FILE, dpi=110)


def draw_curves(curves: Mapping[str, Sequence[CurvePoint]]) -> Figure:
    """Draw a column a network: the losses above, edge efficiency and purity below."""
    figure = Figure(figsize=(5 * len(curves), 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(curves), squeeze=False)
    for column, (name, points) in enumerate(curves.items()):
        minutes = [point.minutes for point in points]
        losses, shares = panels[0, column], panels[1, column]
        losses.plot(minutes, [point.training_loss for point in points], "o-", ms=3, label="training")
        losses.plot(minutes, [point.loss for point in points], "o-", ms=3, label="validation")
        shares.plot(minutes, [point.edge_efficiency for point in points], "o-", ms=3, label="edge efficiency")
        shares.plot(minutes, [point.edge_purity for point in points], "o-", ms=3, label="edge purity")
        losses.set_title(name)
        losses.set_yscale("log")
        losses.set_ylabel("loss")
        shares.set_ylabel("share")
        shares.set_ylim(0, 1.02)
        shares.set_xlabel("minutes of training")
        losses.legend()
        shares.legend(loc="center right")
    return figure
