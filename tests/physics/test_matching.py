"""Matching, against hand-made tracks and a plain-Python reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritrack.physics.matching import TrackClass, match, pairs_from_labels
from tritrack.physics.selection import PhysicsError

MATCHED, DUPLICATE, FRAGMENT, FAKE, SHORT = TrackClass


def particles(**n_hits):
    """Hits in order: particle p100=6 gives six hits of particle 100; noise=2 two of noise."""
    return np.repeat(
        np.array([0 if name == "noise" else int(name[1:]) for name in n_hits], dtype=np.int64),
        list(n_hits.values()),
    )


def tracks(*hits):
    """Pairs of tracks numbered from 100, each a list of hits."""
    pairs = [(100 + track, hit) for track, of_track in enumerate(hits) for hit in of_track]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


r = range
CASES = {
    "no hits, no tracks": (particles(), tracks(), [], []),
    "hits, no tracks": (particles(p100=6), tracks(), [], []),
    "all hits of one particle": (particles(p100=6), tracks(r(6)), [MATCHED], [100]),
    "four hits, all of it": (particles(p100=4), tracks(r(4)), [SHORT], [100]),
    "noise alone": (particles(noise=7), tracks(r(7)), [FAKE], [0]),
    "noise never leads": (particles(noise=4, p100=1), tracks(r(5)), [FAKE], [100]),
    "noise in the denominator": (particles(p100=5, noise=5), tracks(r(10)), [FAKE], [100]),
    "just over half of the track": (particles(p100=5, noise=4), tracks(r(9)), [MATCHED], [100]),
    "exactly half of the particle": (particles(p100=10), tracks(r(5)), [FRAGMENT], [100]),
    "two halves": (particles(p100=10), tracks(r(5), r(5, 10)), [FRAGMENT, FRAGMENT], [100, 100]),
    "a tie goes to the lower id": (particles(p101=3, p100=3), tracks(r(6)), [FAKE], [100]),
    "broken off": (particles(p100=11), tracks(r(5), r(5, 11)), [DUPLICATE, MATCHED], [100, 100]),
    "of a particle that a short track matches": (
        particles(p100=7, noise=5),
        tracks(r(4), [4, 5, 6, 7, 8]),
        [SHORT, DUPLICATE],
        [100, 100],
    ),
    "two particles in one track": (particles(p100=6, p101=5), tracks(r(11)), [MATCHED], [100]),
    "the same track twice": (particles(p100=6), tracks(r(6), r(6)), [MATCHED, DUPLICATE], [100, 100]),
    "the more complete of two": (particles(p100=8), tracks(r(5), r(8)), [DUPLICATE, MATCHED], [100, 100]),
    "the purer of two": (
        particles(p100=6, noise=2),
        tracks(r(7), [0, 1, 2, 3, 4, 5]),
        [DUPLICATE, MATCHED],
        [100, 100],
    ),
    "a shared hit": (
        particles(p100=6, p101=6),
        tracks(r(7), r(5, 12)),
        [MATCHED, MATCHED],
        [100, 101],
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_classes(case):
    particle_id, pairs, classes, leading = CASES[case]
    matching = match(pairs=pairs, particle_id=particle_id)
    assert matching.track_class.tolist() == classes
    assert matching.leading.tolist() == leading
    assert matching.track.tolist() == [100 + track for track in range(len(classes))]


@pytest.mark.parametrize(
    ("particle_id", "pairs", "purity", "completeness", "majority", "perfect", "lhc"),
    [
        (particles(p100=6), tracks(r(6)), 1, 1, True, True, True),
        (particles(p100=6, noise=2), tracks(r(8)), 0.75, 1, True, False, True),
        (particles(p100=7, noise=3), tracks(r(10)), 0.7, 1, True, False, False),
        (particles(p100=20), tracks(r(5)), 1, 0.25, False, False, True),
        (particles(p100=20), tracks(r(4)), 1, 0.2, False, False, False),
        (particles(p100=3, p101=3), tracks(r(6)), 0.5, 1, False, False, False),
        (particles(noise=6), tracks(r(6)), 0, 0, False, False, False),
    ],
)
def test_flags(particle_id, pairs, purity, completeness, majority, perfect, lhc):
    matching = match(pairs=pairs, particle_id=particle_id)
    assert matching.purity.tolist() == [purity]
    assert matching.completeness.tolist() == [completeness]
    assert matching.majority.tolist() == [majority]
    assert matching.perfect.tolist() == [perfect]
    assert matching.lhc.tolist() == [lhc]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.zeros((2, 3)), r"pairs: float64 \[2, 3\], integers"),
        (np.zeros((3, 2), dtype=np.int64), r"pairs: int64 \[3, 2\], integers"),
        (tracks([3, 4, 10]), "track 100 names hit 10 of an event of 10 hits"),
        (tracks([3, -1]), "track 100 names hit -1 of"),
        (tracks([3, 4], [7, 5, 7]), "track 101 holds hit 7 twice"),
    ],
)
def test_pairs_that_cannot_be(pairs, message):
    with pytest.raises(PhysicsError, match=message):
        match(pairs=pairs, particle_id=particles(p100=10))


def test_pairs_from_labels():
    pairs = pairs_from_labels(np.array([1, -1, 0, 1], dtype=np.int32))
    assert pairs.tolist() == [[1, 0, 1], [0, 2, 3]]
    assert pairs.dtype == np.int64
    assert pairs_from_labels(np.zeros(0, dtype=np.int64)).shape == (2, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), r"labels: float64 \[2\], one integer a hit"),
        (np.array([[0, 1]]), r"labels: int64 \[1, 2\], one integer a hit"),
        (np.array([0, -1, -2]), "hit 2 has label -2"),
    ],
)
def test_labels_that_cannot_be(labels, message):
    with pytest.raises(PhysicsError, match=message):
        pairs_from_labels(labels)


@st.composite
def judged(draw):
    """Particle ids and tracks that may share hits, small enough for every case to turn up."""
    n_hits = draw(st.integers(0, 24))
    particle_id = draw(st.lists(st.sampled_from([0, 100, 101, 205]), min_size=n_hits, max_size=n_hits))
    hits = st.sets(st.sampled_from(range(n_hits)), min_size=1) if n_hits else st.nothing()
    found = draw(st.dictionaries(st.integers(100, 110), hits, max_size=6) if n_hits else st.just({}))
    pairs = [(track, hit) for track, of_track in found.items() for hit in of_track]
    return np.array(particle_id, dtype=np.int64), np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def reference(pairs, particle_id):
    """(hits, leading, shared, particle's hits, class) by track, as the definitions read."""
    rows = {}
    for track, hit in pairs.T.tolist():
        rows.setdefault(track, []).append(int(particle_id[hit]))
    everything = Counter(particle_id.tolist())
    found = {}
    for track, ids in rows.items():
        led = Counter(p for p in ids if p)
        leading = min(led, key=lambda p: (-led[p], p)) if led else 0
        found[track] = (len(ids), leading, led[leading], everything[leading] if led else 0)
    best = {}
    for track in sorted(found, key=lambda t: (-found[t][2], found[t][0], t)):
        n_hits, leading, shared, particle_hits = found[track]
        if 2 * shared > n_hits and 2 * shared > particle_hits:
            best.setdefault(leading, track)
    classes = {}
    for track, (n_hits, leading, shared, _) in found.items():
        if n_hits < 5:
            classes[track] = SHORT
        elif 2 * shared <= n_hits:
            classes[track] = FAKE
        elif leading not in best:
            classes[track] = FRAGMENT
        else:
            classes[track] = MATCHED if best[leading] == track else DUPLICATE
    return {track: (*found[track], classes[track]) for track in sorted(found)}


def rows(matching):
    columns = (matching.n_hits, matching.leading, matching.shared, matching.particle_hits)
    values = zip(*(c.tolist() for c in columns), matching.track_class.tolist(), strict=True)
    return dict(zip(matching.track.tolist(), values, strict=True))


@settings(deadline=None)
@given(judged())
def test_equals_the_reference(case):
    particle_id, pairs = case
    assert rows(match(pairs=pairs, particle_id=particle_id)) == reference(pairs, particle_id)


@settings(deadline=None)
@given(judged(), st.randoms(use_true_random=False))
def test_order_and_numbers_mean_nothing(case, random):
    particle_id, pairs = case
    before = match(pairs=pairs, particle_id=particle_id)
    n_hits, n_pairs = particle_id.size, pairs.shape[1]
    new_place = np.array(random.sample(range(n_hits), n_hits), dtype=np.int64)
    moved = np.empty_like(particle_id)
    moved[new_place] = particle_id
    shuffled = pairs[:, random.sample(range(n_pairs), n_pairs)]
    shuffled = np.stack([shuffled[0], new_place[shuffled[1]]])
    assert rows(match(pairs=shuffled, particle_id=moved)) == rows(before)

    names = np.array(random.sample(range(-500, 500), 11))
    renumbered = match(
        pairs=np.stack([names[pairs[0] - 100], pairs[1]]).reshape(2, -1), particle_id=particle_id
    )
    # Of equally good tracks of one particle another may be the matched one: the numbers stay.
    assert Counter(rows(renumbered).values()) == Counter(rows(before).values())
