from __future__ import annotations

import numpy as np
import pytest

from tritrack.stages.filtering import select_edges

PAIRS = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], dtype=np.int32)


@pytest.mark.parametrize(
    ("score", "cut", "kept"),
    [
        ([0.1, 0.9, 0.2, 0.8], 0.5, [1, 3]),
        ([0.1, 0.1, 0.1, 0.1], 0.1, [0, 1, 2, 3]),  # the cut itself is kept, as a float32
        ([0.1, 0.1, 0.1, 0.1], 0.2, []),
        ([0.0, 1.0, 0.0, 1.0], 0.0, [0, 1, 2, 3]),
    ],
)
def test_keeps_scores_that_reach_the_cut(score, cut, kept):
    selected = select_edges(PAIRS, np.array(score, dtype=np.float32), cut=cut)
    assert selected.dtype == np.int32
    assert selected.flags.c_contiguous
    assert selected.tolist() == PAIRS[:, kept].tolist()


def test_no_edges():
    none = select_edges(np.empty((2, 0), dtype=np.int32), np.empty(0, dtype=np.float32), cut=0.5)
    assert none.shape == (2, 0)
