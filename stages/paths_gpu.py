"""Paths of links, and joins of groups of hits, that both sides choose: on tensors what `tritrack.stages.paths` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritrack.stages.helix import MIN_HELIX_HITS
from tritrack.stages.helix_gpu import are_one_helix, on_one_helix
from tritrack.stages.paths import MOST_JOINS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AT_ONCE = 1 << 22
"""Hits of steps, tracks or pairs of groups that are computed at once."""


def mutual_paths(low: Tensor, high: Tensor, gain: Tensor, points: Tensor) -> Tensor:
    """Return the innermost hit of each hit's path, as `tritrack.stages.paths.mutual_paths` does."""
    n_hits, n_links = points.shape[0], low.numel()
    link, before, step = _steps(low, high, gain, points)
    start = gain.clamp(min=0.0)
    path = start
    while True:
        good = path[before] > 0.0
        longer = start.scatter_reduce(0, link[good], (path[before] + step)[good], "amax")
        if torch.equal(longer, path):
            break
        path = longer
    rest = torch.zeros_like(start)
    while True:
        longer = torch.zeros_like(start).scatter_reduce(0, before, rest[link] + step, "amax")
        if torch.equal(longer, rest):
            break
        rest = longer
    over = torch.where(path > 0.0, path + rest, 0.0)
    best = torch.zeros(n_hits, dtype=over.dtype, device=low.device)
    best = best.scatter_reduce(0, high, over, "amax").scatter_reduce(0, low, over, "amax")

    def first_of(links: Tensor, at: Tensor, places: int) -> Tensor:
        none = torch.full((places,), n_links, device=low.device)
        return none.scatter_reduce(0, at, links, "amin")

    go_on = (path[before] > 0.0) & (path[before] + step + rest[link] == over[before])
    follows = first_of(link[go_on], before[go_on], n_links + 1)  # the next link of that path
    inwards, outwards = (((over > 0.0) & (over == best[end])).nonzero()[:, 0] for end in (high, low))
    into = first_of(inwards, high[inwards], n_hits)
    out = torch.where(into < n_links, follows[into], first_of(outwards, low[outwards], n_hits))
    number = torch.arange(n_links, device=low.device)
    both = (into[high] == number) & (out[low] == number)
    first = torch.arange(n_hits, device=low.device)
    first[high[both]] = low[both]
    return follow(first)


def _steps(low: Tensor, high: Tensor, gain: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the steps that may be taken: a link, the one before it, and what the step gains."""
    n_hits = points.shape[0]
    ends_at = torch.searchsorted(high, torch.arange(n_hits + 1, device=high.device))
    count = ends_at[low + 1] - ends_at[low]
    until = torch.cumsum(count, 0)
    begins = until - count
    key = high * n_hits + low
    found = []
    first = 0
    while first < low.numel():
        upto = begins[first] + AT_ONCE // 3
        last = max(int(torch.searchsorted(until, upto, right=True)), first + 1)
        some = torch.arange(first, last, device=low.device)
        link = torch.repeat_interleave(some, count[first:last])
        place = torch.arange(link.numel(), device=low.device) + begins[first] - begins[link]
        before = ends_at[low[link]] + place
        wanted = high[link] * n_hits + low[before]
        skipping = torch.searchsorted(key, wanted).clamp(max=low.numel() - 1)
        step = gain[link] + 0.5 * torch.where(key[skipping] == wanted, gain[skipping], 0.0)
        good = step > 0.0
        link, before, step = link[good], before[good], step[good]
        three = points[torch.stack([low[before], low[link], high[link]], dim=1)]
        good = are_one_helix(three, torch.ones_like(three[..., 0], dtype=torch.bool))
        found.append((link[good], before[good], step[good]))
        first = last
    if not found:
        return low, low, gain
    links, before, steps = (torch.cat(part) for part in zip(*found, strict=True))
    return links, before, steps


def without_strays(points: Tensor, tracks: Tensor) -> Tensor:
    """Tell which hits stay on their tracks, bool [n_hits]: of a track of three hits, all."""
    keep = tracks >= 0
    members, starts, sizes = _members(tracks[keep], keep.nonzero()[:, 0], n_groups=0)
    long = (sizes >= MIN_HELIX_HITS).nonzero()[:, 0]
    for some in _of_like_size(sizes[long]):
        hits, there = _rows(members, starts[long[some]], sizes[long[some]])
        keep[hits[there]] = on_one_helix(points[hits], there)[there]
    return keep


def join_mutually(points: Tensor, group: Tensor, low: Tensor, high: Tensor, score: Tensor) -> Tensor:
    """Join groups that are each other's best partners, as `tritrack.stages.paths.join_mutually` does."""
    n_hits = group.numel()
    n_groups = int(group.max()) + 1 if n_hits else 0
    one, other = torch.minimum(group[low], group[high]), torch.maximum(group[low], group[high])
    known = torch.zeros_like(one, dtype=torch.bool)
    fits = torch.zeros_like(known)
    for _ in range(MOST_JOINS):
        one, other, score, known, fits = _each_pair_once(one, other, score, known, fits, n_groups)
        members, starts, sizes = _members(group, torch.arange(n_hits, device=group.device), n_groups=n_groups)
        untried = (~known & (torch.maximum(sizes[one], sizes[other]) >= MIN_HELIX_HITS)).nonzero()[:, 0]
        fits[untried] = _fit_together(points, members, starts, sizes, one[untried], other[untried])
        known[untried] = True
        fitting = fits.nonzero()[:, 0]
        order = fitting[lexsort([other[fitting], one[fitting], -score[fitting]])]
        place = torch.arange(order.numel(), device=order.device)
        best = torch.full((n_groups,), order.numel(), device=order.device)
        best = best.scatter_reduce(0, one[order], place, "amin").scatter_reduce(
            0, other[order], place, "amin"
        )
        chosen = order[(best[one[order]] == place) & (best[other[order]] == place)]
        if not chosen.numel():
            break
        into = torch.arange(n_groups, device=group.device)
        into[other[chosen]] = one[chosen]
        changed = torch.zeros(n_groups, dtype=torch.bool, device=group.device)
        changed[one[chosen]] = True
        group, one, other = into[group], into[one], into[other]
        one, other = torch.minimum(one, other), torch.maximum(one, other)
        anew = changed[one] | changed[other]
        known, fits = known & ~anew, fits & ~anew
    return group


def _each_pair_once(
    one: Tensor, other: Tensor, score: Tensor, known: Tensor, fits: Tensor, n_groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Add up the scores of each pair of groups; what one group has with itself is left out."""
    apart = one != other
    pair, number = torch.unique(one[apart] * n_groups + other[apart], return_inverse=True)
    total = torch.zeros(pair.numel(), dtype=score.dtype, device=score.device).index_add(
        0, number, score[apart]
    )
    # What is there more than once has changed: nothing is known of it.
    of_pair = [
        torch.zeros_like(pair, dtype=torch.bool).index_put((number,), some[apart]) for some in (known, fits)
    ]
    return pair // max(n_groups, 1), pair % max(n_groups, 1), total, of_pair[0], of_pair[1]


def _fit_together(
    points: Tensor, members: Tensor, starts: Tensor, sizes: Tensor, one: Tensor, other: Tensor
) -> Tensor:
    """Tell of pairs of groups whether one helix fits both, bool [n_pairs]."""
    fits = torch.zeros_like(one, dtype=torch.bool)
    together = sizes[one] + sizes[other]
    for some in _of_like_size(together):
        rows, there = zip(
            *(_rows(members, starts[side[some]], sizes[side[some]]) for side in (one, other)), strict=True
        )
        # Hits of the inside first, and what is no hit last.
        hits = (
            torch.where(torch.cat(there, dim=1), torch.cat(rows, dim=1), points.shape[0]).sort(dim=1).values
        )
        hits = hits[:, : int(together[some].max())]
        real = hits < points.shape[0]
        fits[some] = are_one_helix(points[hits.clamp(max=points.shape[0] - 1)], real)
    return fits


def _members(group: Tensor, hits: Tensor, *, n_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hits sorted by their groups, and where each group begins and how many it has."""
    members = hits[torch.argsort(group, stable=True)]
    sizes = torch.bincount(group, minlength=n_groups)
    return members, torch.cumsum(sizes, 0) - sizes, sizes


def _of_like_size(sizes: Tensor) -> Iterator[Tensor]:
    """Give what is computed at once: rows are as long as the longest of them."""
    by_size = torch.argsort(sizes)
    first = 0
    while first < sizes.numel():
        # The longest of as many as there would be room for if all were as long as the first.
        room = max(AT_ONCE // int(sizes[by_size[first]]), 1)
        longest = int(sizes[by_size[min(first + room, sizes.numel()) - 1]])
        last = first + max(AT_ONCE // longest, 1)
        yield by_size[first:last]
        first = last


def _rows(members: Tensor, starts: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hits of groups as rows, and where there are such; elsewhere stands some hit."""
    place = torch.arange(int(sizes.max()), device=members.device)
    there = place < sizes[:, None]
    at = (starts[:, None] + place).clamp(max=members.numel() - 1)
    return members[at], there


def lexsort(keys: Sequence[Tensor]) -> Tensor:
    """Return the order by several keys, the last one first, as NumPy's."""
    order = torch.argsort(keys[0], stable=True)
    for key in keys[1:]:
        order = order[torch.argsort(key[order], stable=True)]
    return order


def follow(first: Tensor) -> Tensor:
    """Follow pointers from hit to hit to their end (pointer jumping)."""
    while not torch.equal(further := first[first], first):
        first = further
    return first
