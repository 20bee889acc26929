"""The pairs that a network is trained on: what the stages before it give, kept on disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tritrack.events.files import replacing
from tritrack.stages.filtering import score_pairs, select_edges
from tritrack.stages.graph import radius_graph
from tritrack.stages.networks import run_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.stages.card import Windows

    Pairs = NDArray[np.int32]

UNLIMITED = 1 << 40


def graph_pairs(network: nn.Module, hits: NDArray[np.float32], *, radius: float, windows: Windows) -> Pairs:
    """Return EDGE_INDEX of the graph stage, int32 [2, n_edges], from the torch module."""
    embedding = run_network(network, hits)
    return radius_graph(hits, embedding, radius=radius, windows=windows, max_pairs=UNLIMITED)


def pair_scores(network: nn.Module, hits: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """Return PAIR_SCORE of the filter network, float32 [n_edges], from the torch module."""
    return score_pairs(partial(run_network, network), hits, pairs)


def filtered_pairs(network: nn.Module, hits: NDArray[np.float32], pairs: Pairs, *, cut: float) -> Pairs:
    """Return EDGE_INDEX of the filter stage, int32 [2, n_edges], from the torch module."""
    return select_edges(pairs, pair_scores(network, hits, pairs), cut=cut, max_edges=UNLIMITED)


def kept(path: Path, make: Callable[[], Pairs]) -> Pairs:
    """Return the pairs of a file, making it first where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, make())
    pairs: Pairs = np.load(path)
    return pairs
