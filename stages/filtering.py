"""The filter's cut: the step that follows its network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def select_edges(
    edge_index: NDArray[np.int32], pair_score: NDArray[np.float32], *, cut: float
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

    Returns
    -------
    ndarray
        int32 [2, n_kept], in the order of the input.
    """
    return np.ascontiguousarray(edge_index[:, pair_score >= np.float32(cut)])
