"""What a step runs on before its first event: it loads what is compiled, and networks set up what they do at a first run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.stages.contract import EDGE_INDEX, EDGE_SCORE, EMBEDDING, HITS, PAIR_SCORE, TRACK_LABEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

BARREL = np.array([32.0, 72, 116, 172, 260, 360, 500, 660, 820, 1020])
"""Radii of the layers of a barrel, in mm."""

_N_TRACKS = 10
_CURVATURE_RADIUS = 4000.0  # mm


def small_event(*, n_columns: int, embedding_dim: int) -> dict[str, NDArray[Any]]:
    """Return the tensors of an event of ten tracks, by name, as every stage before a stage could have given them.

    Each track is on a helix through ten layers. The link in its middle is unlikely, so that a labelling which joins
    pieces has some to join.

    Parameters
    ----------
    n_columns
        Columns of HITS; those after x, y, z are 0.
    embedding_dim
        Dimensions of EMBEDDING, in which tracks are far apart and the hits of each at one place.

    Returns
    -------
    dict
        HITS, EMBEDDING, EDGE_INDEX, PAIR_SCORE, EDGE_SCORE and TRACK_LABEL, of 100 hits and 90 edges.
    """
    track = np.repeat(np.arange(_N_TRACKS), BARREL.size)
    r = np.tile(BARREL, _N_TRACKS)
    phi = 2 * np.pi * track / _N_TRACKS + np.arcsin(r / (2 * _CURVATURE_RADIUS))
    slope = np.linspace(-1.0, 1.0, _N_TRACKS)[track]
    hits = np.zeros((track.size, n_columns), dtype=HITS.dtype)
    hits[:, :3] = np.stack([r * np.cos(phi), r * np.sin(phi), slope * r], axis=1)
    embedding = np.zeros((track.size, embedding_dim), dtype=EMBEDDING.dtype)
    embedding[:, 0] = 100.0 * track
    inner = np.flatnonzero(r < BARREL[-1])
    edges = np.stack([inner, inner + 1]).astype(EDGE_INDEX.dtype)
    in_the_middle = r[inner] == BARREL[BARREL.size // 2 - 1]
    score = np.where(in_the_middle, 0.02, 0.999)
    return {
        HITS.name: hits,
        EMBEDDING.name: embedding,
        EDGE_INDEX.name: edges,
        PAIR_SCORE.name: np.full(inner.size, 0.999, dtype=PAIR_SCORE.dtype),
        EDGE_SCORE.name: score.astype(EDGE_SCORE.dtype),
        TRACK_LABEL.name: track.astype(TRACK_LABEL.dtype),
    }
