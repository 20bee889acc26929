"""Connected components on tensors, wherever they lie: what the labelling `components` gives, hit for hit."""

from __future__ import annotations

import torch
from torch import Tensor

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK


def components(hits: Tensor, edge_index: Tensor, edge_score: Tensor, *, cut: float) -> Tensor:
    """Label the connected components of the edges whose score reaches the cut.

    Every hit points to a hit of its component, at first to itself. Each round, the hits that two joined hits
    point to take the lower of both (hooking), and then all pointers are followed to their end (pointer jumping;
    Shiloach and Vishkin, J. Algorithms 3, 57, 1982). The lower of two is the same whichever thread is first, so
    the result does not depend on the order, and every hit ends at the first hit of its component.

    Parameters
    ----------
    hits
        [n_hits, ...]; only its number of rows is used.
    edge_index
        int32 [2, n_edges], on the same device.
    edge_score
        float32 [n_edges], on that device.
    cut
        Lowest score that joins two hits.

    Returns
    -------
    Tensor
        TRACK_LABEL, int64 [n_hits], on that device.
    """
    joins = edge_score >= torch.tensor(cut, dtype=torch.float32, device=edge_score.device)
    inner, outer = edge_index[:, joins].long()
    first = torch.arange(hits.shape[0], device=edge_index.device)
    while True:
        a, b = first[inner], first[outer]
        hooked = first.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        if torch.equal(hooked, first):
            return number_by_first(first)
        first = follow(hooked)


def follow(first: Tensor) -> Tensor:
    """Follow pointers from hit to hit to their end (pointer jumping)."""
    while not torch.equal(further := first[first], first):
        first = further
    return first


def number_by_first(first: Tensor) -> Tensor:
    """Give components numbers by their first hits, and those of too few hits none."""
    is_track = torch.bincount(first, minlength=first.numel()) >= MIN_TRACK_HITS
    number = torch.where(is_track, torch.cumsum(is_track, 0) - 1, NO_TRACK)
    return number[first]
