"""The labellings on tensors, wherever they lie: what `tritrack.stages.labelling` gives, hit for hit, on a GPU.

Of `helix`, steps of paths, tracks and pairs of groups are computed all at once; only the best paths, the rounds of
joins, and what follows pointers to their end take turns, some tens of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK
from tritrack.stages.helix_gpu import measured
from tritrack.stages.labelling import JOINING_LINK, SCORE_STEPS, SURE
from tritrack.stages.paths_gpu import follow, join_mutually, lexsort, mutual_paths, without_strays

if TYPE_CHECKING:
    from collections.abc import Callable

    from tritrack.stages.card import LabellingMethod


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


def helix(hits: Tensor, edge_index: Tensor, edge_score: Tensor, *, cut: float) -> Tensor:
    """Label paths of links that both of their hits choose, kept to helices and joined, as on the host.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.
    edge_index
        int32 [2, n_edges], on the same device.
    edge_score
        float32 [n_edges], on that device.
    cut
        Lowest score of a path's link.

    Returns
    -------
    Tensor
        TRACK_LABEL, int64 [n_hits], on that device.
    """
    rank = _ranks(hits)
    points = torch.empty((rank.numel(), 5), dtype=torch.float64, device=hits.device)
    points[rank] = measured(hits)
    low, high, score = _links(rank, edge_index, edge_score, least=min(JOINING_LINK, cut))
    likely = score >= cut
    gain = _log_odds(score[likely]) - _log_odds(torch.tensor(cut, dtype=torch.float64, device=hits.device))
    tracks = number_by_first(mutual_paths(low[likely], high[likely], gain, points))
    tracks = torch.where(without_strays(points, tracks), tracks, NO_TRACK)
    tried = score >= JOINING_LINK
    group = join_mutually(points, _number_groups(tracks), low[tried], high[tried], score[tried])
    # A hit's group is known by its first hit in the order of the ranks; the numbers are by the first as sent.
    return number_by_first(_first_of(group[rank]))


def _ranks(hits: Tensor) -> Tensor:
    squares = hits[:, :3].double().square()
    distance = squares[:, 0] + squares[:, 1] + squares[:, 2]
    rank = torch.empty(hits.shape[0], dtype=torch.int64, device=hits.device)
    rank[lexsort([hits[:, 2], hits[:, 1], hits[:, 0], distance])] = torch.arange(
        hits.shape[0], device=hits.device
    )
    return rank


def _links(
    rank: Tensor, edge_index: Tensor, edge_score: Tensor, *, least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return edges by rank, each once, sorted by (outer, inner), with rounded scores."""
    counted = edge_score >= torch.tensor(least, dtype=torch.float32, device=edge_score.device)
    one, other = rank[edge_index[:, counted].long()]
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    score = torch.round(edge_score[counted] * float(SCORE_STEPS)).clamp(min=1.0) / float(SCORE_STEPS)
    order = lexsort([-score, low, high])
    low, high, score = low[order], high[order], score[order].double()
    new = low != high
    new[1:] &= (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return low[new], high[new], score[new]


def _log_odds(score: Tensor) -> Tensor:
    score = score.clamp(1.0 - SURE, SURE)
    return torch.round(torch.log(score / (1.0 - score)) * 256.0) / 256.0


def _number_groups(tracks: Tensor) -> Tensor:
    """Return a number for each track, and for each hit on none, from 0 by first hit."""
    alone = torch.where(
        tracks < 0, tracks.numel() + torch.arange(tracks.numel(), device=tracks.device), tracks
    )
    first = _first_of(alone)
    is_first = first == torch.arange(tracks.numel(), device=tracks.device)
    return (torch.cumsum(is_first, 0) - 1)[first]


def _first_of(group: Tensor) -> Tensor:
    """Return the first hit of each hit's group."""
    n_hits = group.numel()
    hit = torch.arange(n_hits, device=group.device)
    most = int(group.max()) + 1 if n_hits else 0
    first = torch.full((most,), n_hits, device=group.device).scatter_reduce(0, group, hit, "amin")
    return first[group]


def number_by_first(first: Tensor) -> Tensor:
    """Give components numbers by their first hits, and those of too few hits none."""
    is_track = torch.bincount(first, minlength=first.numel()) >= MIN_TRACK_HITS
    number = torch.where(is_track, torch.cumsum(is_track, 0) - 1, NO_TRACK)
    return number[first]


LABELLINGS: dict[LabellingMethod, Callable[..., Tensor]] = {"components": components, "helix": helix}
"""Those that a device has, by the name that a model card gives them."""
