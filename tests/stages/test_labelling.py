from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from tritrack.stages.contract import MIN_TRACK_HITS, NO_TRACK
from tritrack.stages.helix import JOIN_FIELD, fit_circle, measured, misfit, on_one_helix
from tritrack.stages.labelling import LABELLINGS, components, helix, number_tracks, walkthrough
from tritrack.stages.pair_order import orient_pairs
from tritrack.stages.paths import MOST_JOINS
from tritrack.stages.reference import component_labels, helix_labels, path_labels

CUT = 0.5


def hits_at(*distance):
    """Hits along x, so that their order from inside to outside is that of the distances."""
    return np.array([[d, 0, 0] for d in distance], dtype=np.float32).reshape(-1, 3)


def edges_of(*edges):
    rows = np.array(edges, dtype=np.float64).reshape(-1, 3)
    return rows[:, :2].T.astype(np.int32), rows[:, 2].astype(np.float32)


HAND_MADE = {
    # name: (distances, (inner, outer, score)..., components, walk-through)
    "no hits": ([], [], [], []),
    "one hit": ([1], [], [-1], [-1]),
    "isolated hits": ([1, 2, 3], [], [-1] * 3, [-1] * 3),
    "two hits are no track": ([1, 2, 3], [(0, 1, 0.9)], [-1] * 3, [-1] * 3),
    "one track": ([1, 2, 3], [(0, 1, 0.9), (1, 2, 0.9)], [0] * 3, [0] * 3),
    "the cut itself joins": ([1, 2, 3], [(0, 1, 0.5), (1, 2, 0.5)], [0] * 3, [0] * 3),
    "below the cut": ([1, 2, 3], [(0, 1, 0.9), (1, 2, 0.49)], [-1] * 3, [-1] * 3),
    "numbered by first hit": (
        [3, 1, 1, 2, 2, 3],
        [(2, 3, 0.9), (3, 5, 0.9), (1, 4, 0.6), (4, 0, 0.6)],
        [0, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 0, 1],
    ),
    # 0-1-2, then two ways on: 3-4 (better) and 5-6-7.
    "a branch": (
        [1, 2, 3, 4, 5, 4.5, 5.5, 6.5],
        [(0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.9), (3, 4, 0.9), (2, 5, 0.51), (5, 6, 0.6), (6, 7, 0.6)],
        [0] * 8,
        [0, 0, 0, 0, 0, 1, 1, 1],
    ),
    # Two tracks that cross in hit 2: the better goes through, what is left of the other is too short.
    "a crossing": (
        [1, 1.5, 2, 3, 3.5],
        [(0, 2, 0.9), (2, 3, 0.9), (1, 2, 0.6), (2, 4, 0.6)],
        [0] * 5,
        [0, -1, 0, 0, -1],
    ),
    "a skipped layer": ([1, 2, 3], [(0, 1, 0.8), (1, 2, 0.8), (0, 2, 0.9)], [0] * 3, [0] * 3),
    # Equal sums: the inner of the two goes with the track.
    "a tie": (
        [1, 2.5, 2, 3, 4],
        [(0, 1, 0.8), (0, 2, 0.8), (1, 3, 0.8), (2, 3, 0.8), (3, 4, 0.8)],
        [0] * 5,
        [0, -1, 0, 0, 0],
    ),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_hand_made(case):
    distance, edges, as_components, as_paths = HAND_MADE[case]
    hits = hits_at(*distance)
    assert components(hits, *edges_of(*edges), cut=CUT).tolist() == as_components
    labels = walkthrough(hits, *edges_of(*edges), cut=CUT)
    assert labels.dtype == np.int64
    assert labels.tolist() == as_paths


@st.composite
def graphs(draw, *, tied_scores):
    n_hits = draw(st.integers(0, 40))
    n_edges = draw(st.integers(0, 2 * n_hits)) if n_hits > 1 else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hits = rng.normal(0.0, 500.0, (n_hits, 3)).astype(np.float32)
    distance = np.square(hits.astype(np.float64)).sum(axis=1)
    edges = rng.integers(0, max(n_hits, 1), (2, n_edges), dtype=np.int32)
    edges = np.where(distance[edges[0]] <= distance[edges[1]], edges, edges[::-1])
    edges = np.unique(edges[:, edges[0] != edges[1]], axis=1)
    score = rng.choice([0.4, 0.5, 0.75, 1.0], edges.shape[1]) if tied_scores else rng.random(edges.shape[1])
    return hits, edges, score.astype(np.float32)


def check_labels(labels):
    tracks, first, counts = np.unique(labels[labels != NO_TRACK], return_index=True, return_counts=True)
    assert tracks.tolist() == list(range(tracks.size))
    assert (np.diff(first) > 0).all()
    assert (counts >= MIN_TRACK_HITS).all()


@settings(deadline=None, max_examples=150)
@given(st.booleans().flatmap(lambda tied: graphs(tied_scores=tied)))
def test_same_as_the_plain_ones(graph):
    hits, edges, score = graph
    assert np.array_equal(
        components(hits, edges, score, cut=CUT), component_labels(len(hits), edges, score, cut=CUT)
    )
    assert np.array_equal(walkthrough(hits, edges, score, cut=CUT), path_labels(hits, edges, score, cut=CUT))


def as_sets(labels):
    return {
        frozenset(np.flatnonzero(labels == track).tolist()) for track in set(labels.tolist()) - {NO_TRACK}
    }


@settings(deadline=None, max_examples=100)
@given(graphs(tied_scores=True), st.randoms(use_true_random=False))
@pytest.mark.parametrize("method", sorted(LABELLINGS))
def test_permuted_hits_give_the_same_tracks(method, graph, random):
    hits, edges, score = graph
    order = np.array(random.sample(range(len(hits)), len(hits)), dtype=np.int64)
    new_index = np.argsort(order)
    permuted = new_index[edges].astype(np.int32)
    by_pair = np.lexsort((permuted[1], permuted[0]))
    labels = LABELLINGS[method](hits, edges, score, cut=CUT)
    again = LABELLINGS[method](hits[order], permuted[:, by_pair], score[by_pair], cut=CUT)
    check_labels(labels)
    check_labels(again)
    assert as_sets(labels) == as_sets(again[new_index])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 30), st.integers(0, 80), st.integers(0, 2**32 - 1))
def test_a_walk_through_follows_edges_whatever_they_are(n_hits, n_edges, seed):
    """Pairs of any order, twice, of a hit with itself; hits at one distance."""
    rng = np.random.default_rng(seed)
    hits = hits_at(*rng.integers(1, 6, n_hits))
    edges = rng.integers(0, n_hits, (2, n_edges), dtype=np.int32)
    score = rng.choice([0.4, 0.5, 0.9], n_edges).astype(np.float32)
    labels = walkthrough(hits, edges, score, cut=CUT)
    check_labels(labels)
    joined = {frozenset(pair) for pair in edges[:, score >= CUT].T.tolist()}
    for track in as_sets(labels):
        neighbours = {hit: sum({hit, other} in joined for other in track - {hit}) for hit in track}
        assert min(neighbours.values()) >= 1


@pytest.mark.parametrize(
    ("group", "labels"),
    [
        ([], []),
        ([7, 7, 7], [0, 0, 0]),
        ([9, 2, 9, 2, 9, 2], [0, 1, 0, 1, 0, 1]),
        ([-1, -1, -1, -1], [-1] * 4),
        ([5, -1, 5, 1, 5, 1], [0, -1, 0, -1, 0, -1]),
    ],
)
def test_number_tracks(group, labels):
    assert number_tracks(np.array(group, dtype=np.int64)).tolist() == labels


LAYERS = (32.0, 72.0, 116.0, 172.0, 260.0, 360.0, 500.0, 660.0)


def along_helix(*, radius=3000.0, phi=0.3, slope=0.2, layers=LAYERS):
    """Hits of a particle from the origin, float64 [n, 3] in mm; a negative radius bends the other way."""
    r = np.array(layers)
    half_angle = np.arcsin(r / (2 * radius))
    arc = 2 * radius * half_angle
    return np.stack([r * np.cos(phi + half_angle), r * np.sin(phi + half_angle), slope * arc], axis=1)


def links(*chains, score=0.9):
    """Edges between neighbours, and neighbours but one, of chains of hits."""
    return [
        (chain[i], chain[i + gap], score)
        for chain in chains
        for gap in (1, 2)
        for i in range(len(chain) - gap)
    ]


def find(hits, edges):
    """Return labels along helices."""
    labels = helix(np.asarray(hits, dtype=np.float32), *edges_of(*edges), cut=0.5)
    check_labels(labels)
    return labels.tolist()


def test_a_track_is_found():
    assert find(along_helix(), links(range(8))) == [0] * 8


def test_a_straight_line_is_a_helix():
    hits = np.outer(LAYERS, [1.0, 0.0, 0.5])
    assert find(hits, links(range(8))) == [0] * 8


def test_an_interloper_with_good_links_is_dropped_and_a_hit_without_is_fetched():
    hits = np.concatenate([along_helix(), along_helix(phi=0.33, layers=[210.0])])
    edges = [edge for edge in links(range(8)) if 5 not in edge[:2]]
    edges += [(3, 8, 0.99), (8, 4, 0.99), (4, 5, 0.05)]
    assert find(hits, edges) == [0] * 8 + [-1]


def test_two_tracks_that_a_link_chains_stay_two_where_no_helix_follows_it():
    inner, outer = along_helix(layers=LAYERS[:4]), along_helix(phi=0.4, layers=LAYERS[4:])
    outer[:, 2] += 60.0
    edges = [*links(range(4), range(4, 8)), (3, 4, 0.99), (2, 4, 0.99), (3, 5, 0.99)]
    assert find(np.concatenate([inner, outer]), edges) == [0] * 4 + [1] * 4


def test_links_that_no_helix_follows_are_no_track():
    hits = [(32.0, 0.0, 0.0), (72.0, 0.0, 0.0), (116.0, 0.0, 50.0)]
    assert find(hits, [(0, 1, 0.9), (1, 2, 0.9)]) == [NO_TRACK] * 3
    # Nor do they cost a track of three that begins there.
    hits = np.concatenate([along_helix(layers=LAYERS[1:4]), [(20.0, 20.0, 60.0)]])
    assert find(hits, [*links(range(3)), (3, 0, 0.6)]) == [0] * 3 + [NO_TRACK]


@pytest.mark.parametrize(("score", "labels"), [(0.05, [0] * 8), (0.001, [0] * 4 + [1] * 4)])
def test_two_parts_of_a_track_are_joined_by_a_poor_link(score, labels):
    assert find(along_helix(), [*links(range(4), range(4, 8)), (3, 4, score)]) == labels


def test_two_parts_that_one_helix_does_not_fit_are_not_joined():
    parts = along_helix(layers=LAYERS[:4]), along_helix(phi=0.34, layers=LAYERS[4:])
    edges = [*links(range(4), range(4, 8)), (3, 4, 0.4), (2, 4, 0.4)]
    assert find(np.concatenate(parts), edges) == [0] * 4 + [1] * 4


def test_two_hits_on_a_layer_are_one_track_where_modules_overlap_and_not_on_one_module():
    layers = (*LAYERS[:4], 174.0, *LAYERS[4:])
    assert find(along_helix(layers=layers), links(range(9))) == [0] * 9
    hits = along_helix(layers=(*LAYERS[:4], 172.1, *LAYERS[4:]))
    # The better linked of the two is on the track.
    edges = [*links((0, 1, 2, 3, 5, 6, 7, 8)), (2, 4, 0.6), (4, 5, 0.6)]
    assert find(hits, edges) == [0, 0, 0, 0, -1, 0, 0, 0, 0]


def test_a_lost_hit_is_skipped():
    edges = [edge for edge in links(range(8)) if 4 not in edge[:2]]
    assert find(along_helix(), edges) == [0, 0, 0, 0, -1, 0, 0, 0]


def test_the_better_of_two_crossing_tracks_has_the_hit():
    hits = np.concatenate([along_helix(), along_helix(radius=-3000.0, phi=0.35)])
    edges = [*links(range(8), range(8, 16)), (3, 12, 0.6), (12, 5, 0.6)]
    assert find(hits, edges) == [0] * 8 + [1] * 8


def test_joins_end():
    """A track takes one hit a round: where as good as endlessly many wait, not all of them."""
    hits = np.outer(np.arange(30.0, 1000.0, 20.0), [1.0, 0.0, 0.5])
    edges = [*links(range(4)), *((0, hit, 0.05) for hit in range(4, len(hits)))]
    labels = find(hits, edges)
    assert labels.count(0) == 4 + MOST_JOINS
    plain = helix_labels(hits.astype(np.float32), *edges_of(*edges), cut=0.5)
    assert plain.tolist() == labels


@st.composite
def events(draw):
    """Tracks along helices with strays, links of any quality between their hits, and some between any two."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tracks = [
        along_helix(
            radius=rng.uniform(300.0, 6000.0) * rng.choice([-1, 1]) + 0.0,
            phi=rng.uniform(0.0, 0.5),
            slope=rng.uniform(-1.0, 1.0),
            layers=[r for r in LAYERS if r < 500 and rng.random() < 0.9],
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    hits = np.concatenate([*tracks, rng.uniform(-300.0, 300.0, (8, 3))])
    hits = (hits + rng.normal(0.0, 0.05, hits.shape)).astype(np.float32)
    track = np.concatenate([np.full(len(t), i) for i, t in enumerate(tracks)] + [np.full(8, -1)])
    inner, outer = np.triu_indices(len(hits), 1)
    same = (track[inner] == track[outer]) & (track[inner] >= 0)
    linked = rng.random(inner.size) < np.where(same, 0.6, 0.08)
    score = np.where(same, rng.beta(3, 1, inner.size), rng.beta(1, 3, inner.size))[linked]
    if draw(st.booleans()):
        score = np.round(score * 4) / 4  # ties
    return hits, np.stack([inner, outer])[:, linked].astype(np.int32), score.astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(event=events())
def test_along_helices_it_is_the_plain_one(event):
    hits, edges, score = event
    assert np.array_equal(helix(hits, edges, score, cut=0.3), helix_labels(hits, edges, score, cut=0.3))


@settings(deadline=None, max_examples=40)
@given(event=events(), random=st.randoms(use_true_random=False))
def test_permuted_hits_give_the_same_helices(event, random):
    hits, edges, score = event
    order = np.array(random.sample(range(len(hits)), len(hits)), dtype=np.int64)
    new_index = np.argsort(order)
    shuffled = np.array(random.sample(range(len(score)), len(score)), dtype=np.int64)
    again = helix(hits[order], new_index[edges[:, shuffled]].astype(np.int32), score[shuffled], cut=0.3)
    assert as_sets(helix(hits, edges, score, cut=0.3)) == as_sets(again[new_index])


@settings(deadline=None, max_examples=20)
@given(event=events(), seed=st.integers(0, 2**32 - 1))
def test_what_a_hit_measures_besides_its_place_makes_no_other_track(event, seed):
    torch = pytest.importorskip("torch")
    from tritrack.stages import labelling_gpu

    hits, edges, score = event
    more = np.random.default_rng(seed).uniform(0.0, 1e4, (len(hits), 1)).astype(np.float32)
    wider = np.hstack([hits, more])
    assert np.array_equal(orient_pairs(wider, edges), orient_pairs(hits, edges))
    assert np.array_equal(helix_labels(wider, edges, score, cut=0.3), helix(hits, edges, score, cut=0.3))
    for name, labelling in LABELLINGS.items():
        labels = labelling(hits, edges, score, cut=0.3)
        assert np.array_equal(labelling(wider, edges, score, cut=0.3), labels)
        if name in labelling_gpu.LABELLINGS:
            on_device = labelling_gpu.LABELLINGS[name](*map(torch.from_numpy, (wider, edges, score)), cut=0.3)
            assert np.array_equal(on_device.numpy(), labels)


@settings(deadline=None, max_examples=60)
@given(n_hits=st.integers(0, 30), n_edges=st.integers(0, 80), seed=st.integers(0, 2**32 - 1))
def test_along_helices_it_takes_whatever_edges(n_hits, n_edges, seed):
    """Pairs of any order, twice, of a hit with itself; hits at one place, on the beam line, far away."""
    rng = np.random.default_rng(seed)
    hits = rng.choice([-1e5, -30.0, 0.0, 1.0, 30.0, 500.0], (n_hits, 3)).astype(np.float32)
    edges = rng.integers(0, max(n_hits, 1), (2, n_edges if n_hits else 0), dtype=np.int32)
    score = rng.random(edges.shape[1], dtype=np.float32)
    labels = helix(hits, edges, score, cut=CUT)
    check_labels(labels)
    order = rng.permutation(score.size)
    assert np.array_equal(labels, helix(hits, edges[::-1, order], score[order], cut=CUT))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@settings(deadline=None, max_examples=40)
@given(event=events(), wild=st.booleans())
def test_on_a_device_helix_is_the_compiled_one(device, event, wild):
    torch = pytest.importorskip("torch")
    from tritrack.stages import labelling_gpu

    hits, edges, score = event
    if wild:  # pairs of any order, twice, of a hit with itself; hits at one place
        hits = hits[np.arange(len(hits)) // 2 * 2]
        edges = np.concatenate([edges, edges[::-1], edges[:, :3] * 0], axis=1)
        score = np.concatenate([score, score[::-1], score[:3]])
    for cut in (0.001, 0.3):
        tensors = (torch.tensor(array, device=device) for array in (hits, edges, score))
        found = labelling_gpu.helix(*tensors, cut=cut)
        assert found.device.type == device
        np.testing.assert_array_equal(found.cpu().numpy(), helix(hits, edges, score, cut=cut))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_a_device_long_tracks_in_many_turns_are_the_compiled_ones(device, monkeypatch):
    torch = pytest.importorskip("torch")
    from tritrack.stages import labelling_gpu, paths, paths_gpu

    rng = np.random.default_rng(1)
    tracks = [
        along_helix(phi=phi, slope=slope, layers=np.arange(30.0, 1000.0, 50.0))
        for phi, slope in rng.uniform([0.0, -1.0], [6.0, 1.0], (12, 2))
    ]
    for track in tracks:
        track[rng.choice(np.arange(1, 20, 4), 2, replace=False), :2] += rng.uniform(
            10.0, 40.0, 2
        )  # which z does not tell
    chains = np.arange(240).reshape(12, 20)
    inputs = (np.concatenate(tracks).astype(np.float32), *edges_of(*links(*chains.tolist())))
    labels = helix(*inputs, cut=0.5)
    assert np.bincount(labels[labels >= 0]).tolist() == [18] * 12
    for module in (paths, paths_gpu):
        monkeypatch.setattr(module, "AT_ONCE", 64)
    np.testing.assert_array_equal(helix(*inputs, cut=0.5), labels)
    found = labelling_gpu.helix(*(torch.tensor(array, device=device) for array in inputs), cut=0.5)
    np.testing.assert_array_equal(found.cpu().numpy(), labels)


@pytest.mark.parametrize(("n_hits", "n_edges"), [(0, 0), (1, 0), (5, 0), (2, 1)])
def test_on_a_device_next_to_nothing_has_no_tracks(n_hits, n_edges):
    torch = pytest.importorskip("torch")
    from tritrack.stages import labelling_gpu

    edges = torch.tensor([[0], [1]], dtype=torch.int32)[:, :n_edges]
    labels = labelling_gpu.helix(torch.rand(n_hits, 3) * 100, edges, torch.ones(n_edges), cut=0.5)
    assert labels.tolist() == [NO_TRACK] * n_hits


@pytest.mark.parametrize("radius", [200.0, -1500.0, 1e5])
def test_a_circle_is_found(radius):
    hits = along_helix(radius=radius, layers=LAYERS[:6])
    x, y, found = fit_circle(hits, np.ones(6, dtype=np.bool_))
    assert found == pytest.approx(abs(radius), rel=1e-5)
    assert np.hypot(x, y) == pytest.approx(found, rel=1e-5)


def test_misfit_is_in_tolerances():
    hits = along_helix()
    hits[4, 2] += 4.0
    off = misfit(measured(hits.astype(np.float32)), np.arange(8) != 4, JOIN_FIELD)
    assert off[4] > 1
    assert off[np.arange(8) != 4].max() < 0.1


@pytest.mark.parametrize("n_strays", [0, 1, 2, 3])
def test_strays_are_told_from_the_helix(n_strays):
    hits = along_helix()
    hits[1 : 1 + n_strays, 1] += np.array([15.0, -25.0, 40.0])[:n_strays]
    expected = (np.arange(8) < 1) | (np.arange(8) > n_strays)
    assert on_one_helix(measured(hits.astype(np.float32))).tolist() == expected.tolist()


def test_of_hits_that_no_helix_fits_none_stay():
    hits = np.random.default_rng(1).uniform(-500.0, 500.0, (7, 3)).astype(np.float32)
    assert not on_one_helix(measured(hits)).any()


def test_a_path_of_many_hits_takes_no_time():
    """Helices are tried through some of its hits, however many they are."""
    rng = np.random.default_rng(1)
    hits = rng.normal(0.0, 30.0, (400, 3)) + np.outer(np.arange(400), [2.0, 0.0, 1.0])
    assert on_one_helix(measured(hits.astype(np.float32))).shape == (400,)
