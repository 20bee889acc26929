"""Counts, rates, sums over events and the JSON, on hand-made labels."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tritrack.events.event import Event, Particles, Truth
from tritrack.physics.axes import AXES
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import Report, count
from tritrack.physics.selection import COMPARISON, PhysicsError

SHARES = (
    "efficiency",
    "perfect_efficiency",
    "lhc_efficiency",
    "fake_rate",
    "fragment_rate",
    "duplicate_rate",
    "unmatched_rate",
)


def make_event(*n_hits, pt=None, noise=0, weights=False):
    """Particles 100, 101, ... with so many hits each, then noise."""
    ids = np.arange(100, 100 + len(n_hits), dtype=np.int64)
    particle_id = np.append(np.repeat(ids, n_hits), np.zeros(noise)).astype(np.int64)
    momentum = np.zeros((ids.size, 3), dtype=np.float32)
    momentum[:, 0] = 2 if pt is None else pt
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
            weight=(particle_id > 0).astype(np.float32) if weights else None,
        ),
    )


def labels(text):
    """One character a hit: a letter is a track, "." none."""
    return np.array([-1 if c == "." else ord(c) - ord("A") for c in text], dtype=np.int64)


def values(report):
    return [report.to_json()[name]["value"] for name in SHARES]


TABLE = [
    # event, labels, n_targets, n_tracks, n_short, values in the order of SHARES
    pytest.param(make_event(), "", 0, 0, 0, [None] * 7, id="empty event"),
    pytest.param(make_event(noise=4), "....", 0, 0, 0, [None] * 7, id="noise, nothing found"),
    pytest.param(
        make_event(noise=5), "AAAAA", 0, 1, 0, [None, None, None, 1, 0, 0, 1], id="noise as a track"
    ),
    pytest.param(make_event(4), "AAAA", 0, 0, 1, [None] * 7, id="too short for both"),
    pytest.param(make_event(5), ".....", 1, 0, 0, [0, 0, 0, None, None, None, None], id="nothing found"),
    pytest.param(make_event(5), "AAAAA", 1, 1, 0, [1, 1, 1, 0, 0, 0, 0], id="all found"),
    pytest.param(
        make_event(7), "AAAA...", 1, 0, 1, [1, 0, 0, None, None, None, None], id="found by a short track"
    ),
    pytest.param(
        make_event(6, 6, noise=2),
        "AAAAAABBBBBBBB",
        2,
        2,
        0,
        [1, 0.5, 1, 0, 0, 0, 0],
        id="with noise: LHC at exactly 75 %",
    ),
    pytest.param(
        make_event(6, 6, noise=3),
        "AAAAAABBBBBBBBB",
        2,
        2,
        0,
        [1, 0.5, 0.5, 0, 0, 0, 0],
        id="more noise: no LHC",
    ),
    pytest.param(
        make_event(10, 11, 6, 4, noise=1),
        "AAAAABBBBBCCCCCCDDDDDEEEEEE....E",
        3,
        5,
        0,
        [2 / 3, 0, 1, 0, 2 / 5, 1 / 5, 3 / 5],
        id="halves, broken, noisy",
    ),
    pytest.param(
        make_event(3, 3, 6, pt=[0.2, 0.2, 0.2]),
        "AAAAAABBBBBB",
        0,
        2,
        0,
        [None, None, None, 0.5, 0, 0, 0.5],
        id="rates are over all tracks, whatever the targets",
    ),
]


@pytest.mark.parametrize(("event", "text", "n_targets", "n_tracks", "n_short", "wanted"), TABLE)
def test_table(event, text, n_targets, n_tracks, n_short, wanted):
    report = count(event=event, pairs=pairs_from_labels(labels(text))).report()
    assert (report.n_targets, report.n_tracks, report.n_short_tracks) == (n_targets, n_tracks, n_short)
    assert (report.n_events, report.n_hits) == (1, event.n_hits)
    assert values(report) == wanted
    for name in SHARES:
        entry = report.to_json()[name]
        assert list(entry) == ["value", "low", "high"]
        assert 0 <= entry["low"] <= (entry["value"] or 0) <= entry["high"] <= 1
        if entry["value"] is None:
            assert (entry["low"], entry["high"]) == (0, 1)
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)).to_json() == report.to_json()


def test_sum_over_events():
    some = [count(event=p.values[0], pairs=pairs_from_labels(labels(p.values[1]))) for p in TABLE]
    total = some[0]
    for one in some[1:]:
        total = total + one
    report = total.report()
    assert report.n_events == len(TABLE)
    assert report.n_hits == sum(p.values[0].n_hits for p in TABLE)
    assert report.n_targets == sum(p.values[2] for p in TABLE)
    assert report.n_tracks == sum(p.values[3] for p in TABLE)
    tally = total.total
    assert float(report.rates.efficiency.value) == tally.found / tally.targets
    assert tally.matched + tally.duplicates + tally.fragments + tally.fakes == report.n_tracks
    # every target is in one bin of each axis; only tracks of noise alone are in none
    for profile in report.profiles:
        assert profile.targets.sum() == report.n_targets
        assert profile.tracks.sum() == report.n_tracks - 1


def test_bins():
    event = make_event(6, 6, 6, pt=[0.4, 1.7, 500])
    report = count(event=event, pairs=pairs_from_labels(labels("AAAAAABBBBBB......"))).report()
    assert tuple(p.axis for p in report.profiles) == AXES
    pt = report.profiles[0]
    edges = np.array(pt.axis.edges)
    bins = np.searchsorted(edges, [0.4, 1.7], side="right") - 1
    assert np.flatnonzero(pt.targets).tolist() == [bins[1], edges.size - 2]
    assert np.flatnonzero(pt.tracks).tolist() == bins.tolist()
    assert pt.rates.efficiency.value[[bins[1], -1]].tolist() == [1, 0]
    assert np.isnan(pt.rates.efficiency.value[bins[0]])
    entry = report.to_json()["against"]["pt"]
    assert entry["unit"] == "GeV"
    assert len(entry["edges"]) == len(entry["efficiency"]) + 1
    assert entry["efficiency"][bins[0]] == {"value": None, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    ("event", "text", "score"),
    [
        (make_event(6, weights=True), "AAAAAA", 1.0),
        (make_event(6, 6, noise=3, weights=True), "AAAAAA.......AA", 0.5),
        (make_event(6, 6, noise=3, weights=True), "AAAABBBBBBBBAAA", 10 / 12),
        (make_event(6, 6, weights=True), "AAABBBCCCDDD", 0.0),
        (make_event(6), "AAAAAA", None),
        (make_event(noise=3, weights=True), "AAA", None),
        (make_event(weights=True), "", None),
    ],
)
def test_trackml_score(event, text, score):
    report = count(event=event, pairs=pairs_from_labels(labels(text))).report()
    assert report.trackml_score == pytest.approx(score)


def test_score_counts_shared_hits_once():
    event = make_event(6, weights=True)
    twice = np.array([[3] * 6 + [9] * 6, [*range(6), *range(6)]])
    report = count(event=event, pairs=twice).report()
    assert report.trackml_score == 1
    assert values(report) == [1, 1, 1, 0, 0, 0.5, 0.5]


def test_comparison_has_its_own_targets():
    event = make_event(6, 9)
    pairs = pairs_from_labels(labels("AAAAAA........."))
    targets, comparison = (
        count(event=event, pairs=pairs),
        count(event=event, pairs=pairs, selection=COMPARISON),
    )
    assert (targets.report().n_targets, comparison.report().n_targets) == (2, 1)
    assert comparison.report().selection == "comparison"
    assert comparison.report().n_tracks == 1
    with pytest.raises(PhysicsError, match="counts of targets and of comparison"):
        targets + comparison


def test_errors_name_the_event():
    event = make_event(6)
    with pytest.raises(PhysicsError, match="event 12: pairs: track 0 names hit 6 of an event of 6"):
        count(event=event, pairs=pairs_from_labels(labels("......A")))
    with pytest.raises(PhysicsError, match="event 12: has no truth"):
        count(event=dataclasses.replace(event, truth=None), pairs=pairs_from_labels(labels("A")))
