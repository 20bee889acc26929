"""The pairs that a network is trained on: what the stages before it give, kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tritrack.stages.filtering import select_edges
from tritrack.stages.graph import radius_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    Pairs = NDArray[np.int32]

UNLIMITED = 1 << 40
CHUNK_PAIRS = 1_000_000
"""Pairs scored at once: bounds the memory of dense events."""


def graph_pairs(network: nn.Module, hits: NDArray[np.float32], *, radius: float) -> Pairs:
    """Return EDGE_INDEX of the graph stage, int32 [2, n_edges], from the torch module."""
    with torch.inference_mode():
        embedding = network(_tensor(network, hits)).cpu().numpy()
    return radius_graph(hits, embedding, radius=radius, max_pairs=UNLIMITED)


def pair_scores(network: nn.Module, hits: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """Return PAIR_SCORE of the filter network, float32 [n_edges], from the torch module."""
    on_device = _tensor(network, hits)
    with torch.inference_mode():
        chunks = [
            network(on_device, _tensor(network, pairs[:, start : start + CHUNK_PAIRS])).cpu().numpy()
            for start in range(0, pairs.shape[1], CHUNK_PAIRS)
        ]
    return np.concatenate(chunks) if chunks else np.empty(0, dtype=np.float32)


def filtered_pairs(network: nn.Module, hits: NDArray[np.float32], pairs: Pairs, *, cut: float) -> Pairs:
    """Return EDGE_INDEX of the filter stage, int32 [2, n_edges], from the torch module."""
    return select_edges(pairs, pair_scores(network, hits, pairs), cut=cut, max_edges=UNLIMITED)


def edge_scores(network: nn.Module, hits: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """Return EDGE_SCORE of the GNN, float32 [n_edges], from the torch module."""
    with torch.inference_mode():
        scores: NDArray[np.float32] = network(_tensor(network, hits), _tensor(network, pairs)).cpu().numpy()
    return scores


def kept(path: Path, make: Callable[[], Pairs]) -> Pairs:
    """Return the pairs of a file, making it first where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make())
        partial.replace(path)
    pairs: Pairs = np.load(path)
    return pairs


def _tensor(network: nn.Module, array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(next(network.parameters()).device)
