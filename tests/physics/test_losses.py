"""Where lost particles were lost, on hand-made graphs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritrack.events.event import Event, Particles, Truth
from tritrack.physics.losses import count_losses, largest_groups
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.selection import COMPARISON, PhysicsError


def make_event(particle_id, pt=()):
    particle_id = np.array(particle_id, dtype=np.int64)
    ids = np.unique(particle_id[particle_id > 0])
    momentum = np.zeros((ids.size, 3), dtype=np.float32)
    momentum[:, 0] = pt if len(pt) else 2
    return Event(
        event_id=12,
        hits=np.zeros((particle_id.size, 3), dtype=np.float32),
        hit_id=np.arange(particle_id.size),
        modules=np.zeros((particle_id.size, 3), dtype=np.int32),
        truth=Truth(
            particle_id=particle_id,
            order=np.arange(particle_id.size, dtype=np.float32),
            particles=Particles(
                particle_id=ids,
                charge=np.ones(ids.size, dtype=np.float32),
                vertex=np.zeros((ids.size, 3), dtype=np.float32),
                momentum=momentum,
                primary=np.ones(ids.size, dtype=np.bool_),
            ),
        ),
    )


def graph(text):
    """Edges like "01 12", one character a hit."""
    edges = [(int(a, 16), int(b, 16)) for a, b in text.split()]
    return np.array(edges, dtype=np.int32).reshape(-1, 2).T


def tracks(text):
    """One character a hit: a letter is a track, "." none."""
    return pairs_from_labels(np.array([-1 if c == "." else ord(c) - ord("A") for c in text], dtype=np.int64))


SIX = make_event([100] * 6)
CHAIN = "01 12 23 34 45"
WITH_OTHERS = make_event([100, 101, 100, 0, 100, 100, 100])
TABLE = [
    # event, graph, filter, gnn, labels, lost in each
    pytest.param(make_event([]), "", "", "", "", (0, 0, 0, 0), id="empty event"),
    pytest.param(make_event([0, 0]), "01", "01", "01", "AA", (0, 0, 0, 0), id="noise alone"),
    pytest.param(make_event([100] * 4), "", "", "", "....", (0, 0, 0, 0), id="no target: 4 hits"),
    pytest.param(SIX, CHAIN, CHAIN, CHAIN, "AAAAAA", (0, 0, 0, 0), id="found"),
    pytest.param(SIX, "", "", "", "AAAAAA", (0, 0, 0, 0), id="found without any edge"),
    pytest.param(SIX, "", "", "", "......", (1, 0, 0, 0), id="no edge"),
    pytest.param(SIX, "01 12 34 45", CHAIN, CHAIN, "AAABBB", (1, 0, 0, 0), id="two halves: half is not more"),
    pytest.param(SIX, "01 12 23", "01 12", "01", "......", (0, 1, 0, 0), id="four of six, then the filter"),
    pytest.param(SIX, CHAIN, CHAIN, "01 12 34 45", "AAABBB", (0, 0, 1, 0), id="the GNN halves it"),
    pytest.param(SIX, CHAIN, CHAIN, CHAIN, "AAABBB", (0, 0, 0, 1), id="the labelling halves it"),
    pytest.param(SIX, "10 21 32", "02 13 23", "02 13 23", "...AAA", (0, 0, 0, 1), id="any order, any gap"),
    pytest.param(
        WITH_OTHERS, "01 12 23 34 45", "01 12", "", "......." , (1, 0, 0, 0), id="others do not join them"
    ),
    pytest.param(
        WITH_OTHERS, "02 24 45", "02 24 45", "02 24", "AAAA..." , (0, 0, 0, 1), id="three of five are enough"
    ),
    pytest.param(
        make_event([100] * 5 + [101] * 5 + [102] * 5, pt=[2, 2, 0.5]),
        "01 12 56 67",
        "01 56 67",
        "01 56 67",
        ".....ABCDE.....",
        (0, 1, 0, 1),
        id="two targets, and one of low pT that none asks for",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("event", "graph_", "filter_", "gnn", "labels", "wanted"), TABLE)
def test_the_first_graph_out_of_reach_is_to_blame(event, graph_, filter_, gnn, labels, wanted):
    graphs = {"graph": graph(graph_), "filter": graph(filter_), "gnn": graph(gnn)}
    counts = count_losses(event=event, graphs=graphs, pairs=tracks(labels))
    assert tuple(counts.lost.values()) == wanted
    assert list(counts.lost) == ["graph", "filter", "gnn", "labelling"]
    found = (counts + counts).to_json()
    assert (found["n_events"], found["n_lost"]) == (2, 2 * sum(wanted))
    json.dumps(found, allow_nan=False)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0, 100, 101, 205]), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20),
)
def test_groups_equal_a_walk(particle_id, edges):
    truth = make_event(particle_id).truth
    edges = [(a, b) for a, b in edges if max(a, b) < len(particle_id)]
    wanted = dict.fromkeys(truth.particles.particle_id.tolist(), 0)
    for start, particle in enumerate(particle_id):
        if particle == 0:
            continue
        group, before = {start}, set()
        while group != before:
            before = set(group)
            for a, b in edges:
                if particle_id[a] == particle_id[b] == particle and group & {a, b}:
                    group |= {a, b}
        wanted[particle] = max(wanted[particle], len(group))
    found = largest_groups(truth=truth, edge_index=np.array(edges, dtype=np.int64).reshape(-1, 2).T)
    assert found.tolist() == list(wanted.values())


def test_sums_of_different_things_are_refused():
    one = count_losses(event=SIX, graphs={"graph": graph("")}, pairs=tracks("......"))
    other = count_losses(event=SIX, graphs={"graph": graph("")}, pairs=tracks("......"), selection=COMPARISON)
    with pytest.raises(PhysicsError, match="losses of targets in graph, labelling and of comparison"):
        one + other
