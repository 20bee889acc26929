"""Around the filter's network: what it is fed, and the cut that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tritrack.stages.contract import check_edges

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PAIRS_AT_ONCE = 1 << 17
"""Pairs that the network sees at once: bounds the memory (a million pairs at once take 2 GB)."""


def score_pairs(
    network: Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.float32]],
    hits: NDArray[np.float32],
    edge_index: NDArray[np.int32],
) -> NDArray[np.float32]:
    """Run the filter's network on pieces of the pairs; each pair is scored on its own.

    Parameters
    ----------
    network
        HITS, EDGE_INDEX -> PAIR_SCORE.
    hits
        float32 [n_hits, 3], x, y, z in mm.
    edge_index
        int32 [2, n_edges].

    Returns
    -------
    ndarray
        PAIR_SCORE, float32 [n_edges].
    """
    pieces = [
        network(hits, np.ascontiguousarray(edge_index[:, start : start + PAIRS_AT_ONCE]))
        for start in range(0, edge_index.shape[1], PAIRS_AT_ONCE)
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.float32)


def select_edges(
    edge_index: NDArray[np.int32], pair_score: NDArray[np.float32], *, cut: float, max_edges: int
) -> NDArray[np.int32]:
    """Keep the pairs whose score reaches the cut.

    Parameters
    ----------
    edge_index
        int32 [2, n_edges].
    pair_score
        float32 [n_edges].
    cut
        Lowest score that is kept.
    max_edges
        The model's limit.

    Returns
    -------
    ndarray
        int32 [2, n_kept], in the order of the input.

    Raises
    ------
    ContractError
        Where more than ``max_edges`` are kept.
    """
    keep = pair_score >= np.float32(cut)
    check_edges(int(np.count_nonzero(keep)), max_edges=max_edges)
    return np.ascontiguousarray(edge_index[:, keep])
