"""What the parity gates compare the engines on: events in several sizes, and the awkward ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tritrack.stages.contract import FILTER_STAGE, GNN_STAGE
from tritrack.stages.filtering import PAIRS_AT_ONCE, score_pairs, select_edges
from tritrack.stages.networks import run_network
from tritrack.stages.stage import search_on_host
from tritrack.stages.warm_up import BARREL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.events.event import Event
    from tritrack.stages.card import Cuts, Limits

_MAX_Z = 3000.0  # mm


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input of the gates.

    Attributes
    ----------
    name
        What it is.
    hits
        HITS, float32 [n_hits, 3], mm.
    edge_index
        By stage, the EDGE_INDEX that it takes, int32 [2, n_edges].
    """

    name: str
    hits: NDArray[np.float32]
    edge_index: Mapping[str, NDArray[np.int32]]


def drawn_hits(*, n_hits: int, seed: int) -> NDArray[np.float32]:
    """Draw hits on cylinders like those of a detector, float32 [n_hits, 3] in mm."""
    rng = np.random.default_rng(seed)
    r = rng.choice(BARREL, n_hits) + rng.normal(0.0, 2.0, n_hits)
    phi = rng.uniform(-np.pi, np.pi, n_hits)
    z = rng.uniform(-_MAX_Z, _MAX_Z, n_hits)
    hits: NDArray[np.float32] = np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1).astype(np.float32)
    return hits


def drawn_edges(*, n_hits: int, n_edges: int, seed: int) -> NDArray[np.int32]:
    """Draw pairs of hits, with repeats and in no order, int32 [2, n_edges]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_hits, (2, n_edges), dtype=np.int32)


def drawn_helices(*, n_tracks: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Draw hits along helices, and the pairs of these at most two steps apart, with as many of any two hits.

    Returns
    -------
    hits : ndarray
        float32 [10 * n_tracks, 3] in mm.
    edges : ndarray
        int32 [2, n_edges], in no order.
    """
    rng = np.random.default_rng(seed)
    r = BARREL
    radius = rng.uniform(1000.0, 5000.0, (n_tracks, 1)) * rng.choice([-1, 1], (n_tracks, 1))
    half_angle = np.arcsin(r / (2 * radius))
    phi = rng.uniform(-np.pi, np.pi, (n_tracks, 1)) + half_angle
    z = rng.uniform(-1.0, 1.0, (n_tracks, 1)) * 2 * radius * half_angle
    hits = np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=2).reshape(-1, 3)
    hits += rng.normal(0.0, 0.05, hits.shape)
    place = np.arange(hits.shape[0]).reshape(n_tracks, -1)
    steps = [np.stack([place[:, :-gap].ravel(), place[:, gap:].ravel()]) for gap in (1, 2)]
    pairs = np.concatenate(steps, axis=1)
    others = drawn_edges(n_hits=hits.shape[0], n_edges=pairs.shape[1], seed=seed) if n_tracks else pairs
    return hits.astype(np.float32), np.concatenate([pairs, others], axis=1).astype(np.int32)


def drawn_cases() -> list[Case]:
    """Return the cases that need no events: every size is another than the exporter's example."""
    sizes = [(0, 0), (1, 0), (2, 0), (2, 1), (40, 0), (40, 1), (300, 2000), (4000, 1500), (3000, 20_000)]
    cases = [
        _case(
            f"drawn, {n_hits} hits, {n_edges} edges",
            drawn_hits(n_hits=n_hits, seed=n_hits),
            drawn_edges(n_hits=n_hits, n_edges=n_edges, seed=n_edges),
        )
        for n_hits, n_edges in sizes
    ]
    hits = drawn_hits(n_hits=200, seed=1)
    one_pair = np.repeat(np.array([[3], [7]], dtype=np.int32), 500, axis=1)
    to_one_hit = np.stack([np.arange(200), np.full(200, 11)]).astype(np.int32)
    twice = np.repeat(drawn_edges(n_hits=200, n_edges=600, seed=2), 2, axis=1)
    same_place = np.repeat(hits[:1], 200, axis=0)
    on_beam_line = hits * np.array([0.0, 0.0, 1.0], dtype=np.float32)
    return [
        *cases,
        _case("one pair 500 times", hits, one_pair),
        _case("every hit to one", hits, to_one_hit),
        _case("every pair twice", hits, twice),
        _case("all hits at one place", same_place, twice),
        _case("all hits on the beam line", on_beam_line, twice),
    ]


def event_cases(
    events: Sequence[Event], *, networks: Mapping[str, nn.Module], cuts: Cuts, limits: Limits
) -> list[Case]:
    """Return one case an event, with the pairs that the chain finds in it when it runs in torch.

    Raises
    ------
    ContractError
        Where an event is over the limits.
    """
    cases = []
    for event in events:
        graph = search_on_host(cuts)(
            event.hits,
            run_network(networks["embedding"], event.hits),
            radius=cuts.radius,
            windows=cuts.windows,
            max_pairs=limits.max_pairs,
        )
        score = score_pairs(partial(run_network, networks["filter"]), event.hits, graph)
        kept = select_edges(graph, score, cut=cuts.filter_cut, max_edges=limits.max_edges)
        step = -(-graph.shape[1] // PAIRS_AT_ONCE)
        sample = np.ascontiguousarray(graph[:, :: max(step, 1)])  # what the network sees at once
        name = f"event {event.event_id}, {event.n_hits} hits"
        cases.append(
            Case(name=name, hits=event.hits, edge_index={FILTER_STAGE.name: sample, GNN_STAGE.name: kept})
        )
    return cases


def _case(name: str, hits: NDArray[np.float32], edge_index: NDArray[np.int32]) -> Case:
    return Case(name=name, hits=hits, edge_index={FILTER_STAGE.name: edge_index, GNN_STAGE.name: edge_index})
