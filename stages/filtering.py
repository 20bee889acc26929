"""Around the filter's network: what it is fed, and the cut that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tritrack.stages.contract import PAIR_SCORE, check_edges, check_finite
from tritrack.stages.placement import Array, contiguous, namespace

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS_AT_ONCE = 1 << 17
"""Pairs that the network sees at once: bounds the memory (a million pairs at once take 2 GB)."""


def score_pairs(network: Callable[[Array, Array], Array], hits: Array, edge_index: Array) -> Array:
    """Run the filter's network on pieces of the pairs; each pair is scored on its own.

    Parameters
    ----------
    network
        HITS, EDGE_INDEX -> PAIR_SCORE.
    hits
        float32 [n_hits, 3], x, y, z in mm.
    edge_index
        int32 [2, n_edges], where the hits are: on the host, or a tensor on a device.

    Returns
    -------
    ndarray or Tensor
        PAIR_SCORE, float32 [n_edges], there.
    """
    pieces: list[Array] = [
        network(hits, contiguous(edge_index[:, start : start + PAIRS_AT_ONCE]))
        for start in range(0, edge_index.shape[1], PAIRS_AT_ONCE)
    ]
    none = hits[:0, 0]  # float32, and where the hits are
    score: Array = namespace(hits).concatenate([none, *pieces])
    return score


def select_edges(edge_index: Array, pair_score: Array, *, cut: float, max_edges: int) -> Array:
    """Keep the pairs whose score reaches the cut.

    Parameters
    ----------
    edge_index
        int32 [2, n_edges].
    pair_score
        float32 [n_edges], where the pairs are: on the host, or a tensor on a device.
    cut
        Lowest score that is kept.
    max_edges
        The model's limit.

    Returns
    -------
    ndarray or Tensor
        int32 [2, n_kept], in the order of the input, there.

    Raises
    ------
    ContractError
        Where a score is not finite, or more than ``max_edges`` are kept.
    """
    check_finite(pair_score, PAIR_SCORE)
    keep = pair_score >= np.float32(cut)
    check_edges(int(namespace(keep).count_nonzero(keep)), max_edges=max_edges)
    return contiguous(edge_index[:, keep])
