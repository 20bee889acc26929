"""Which pairs of hits belong together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tritrack.events.event import EventError
from tritrack.events.parquet import event_file, write_event
from tritrack.training.sample import (
    EventFiles,
    make_sample,
    pair_targets,
    pairs_within,
    path_pairs,
    wedge,
)


def test_sample(hand_made):
    sample = make_sample(hand_made)
    assert sample.particle.tolist() == [3, 1, -1, 1, 3, 1, 1, -1, 2]
    on_particle = sample.particle >= 0
    assert sample.rank[on_particle].tolist() == [1, 2, 0, 0, 1, 3, 0]
    # 1 at 1 GeV and above, pT below it, and never less than 0.1
    assert sample.weight[on_particle] == pytest.approx([0.5, 1, 1, 0.5, 1, 1, 0.1])
    assert sample.weight.dtype == np.float32
    assert sample.hits is hand_made.hits
    assert sample.event is hand_made


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (1, {(3, 5), (5, 1), (1, 6), (4, 0)}),
        (2, {(3, 1), (5, 6)}),
        (3, {(3, 6)}),
        (4, set()),
        (100, set()),
    ],
)
def test_path_pairs(hand_made, gap, expected):
    pairs = path_pairs(make_sample(hand_made), gap=gap)
    assert pairs.shape == (2, len(expected))
    assert set(zip(*pairs.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("pair", "target", "weight"),
    [
        ((3, 5), True, 1),  # next to each other
        ((5, 3), True, 1),  # the other way round
        ((3, 1), True, 1),  # one hit skipped
        ((3, 6), False, 0),  # two skipped: right, but of no use
        ((4, 0), True, 0.5),  # of a soft particle
        ((3, 4), False, 1),  # two particles
        ((8, 0), False, 1),  # two particles, soft ones
        ((2, 3), False, 1),  # noise and a particle
        ((2, 7), False, 1),  # two noise hits are no particle's
    ],
)
def test_pair_targets(hand_made, pair, target, weight):
    pairs = np.array([pair], dtype=np.int32).T
    found, weights = pair_targets(make_sample(hand_made), pairs)
    assert found.tolist() == [target]
    assert weights.tolist() == [weight]
    assert weights.dtype == np.float32


def test_no_pairs(hand_made):
    target, weight = pair_targets(make_sample(hand_made), np.empty((2, 0), dtype=np.int32))
    assert target.shape == weight.shape == (0,)


def test_an_event_of_noise_and_an_empty_one(helices):
    for n_noise in (5, 0):
        sample = make_sample(helices(1, n_particles=0, n_noise=n_noise))
        assert sample.particle.tolist() == [-1] * n_noise
        assert path_pairs(sample, gap=1).shape == (2, 0)


def test_no_truth(hand_made):
    with pytest.raises(EventError, match="event 7: has no truth"):
        make_sample(replace(hand_made, truth=None))


def test_event_files(tmp_path, helices):
    events = {event_id: helices(event_id, n_particles=3) for event_id in (102, 100, 101)}
    for event_id, event in events.items():
        write_event(event, tmp_path / event_file(event_id))
    assert [sample.event.event_id for sample in EventFiles(tmp_path, name="all", part=slice(None))] == [
        100,
        101,
        102,
    ]
    first = EventFiles(tmp_path, name="first", part=slice(1))
    assert len(first) == 1
    np.testing.assert_array_equal(first[0].hits, events[100].hits)


def test_no_event_files(tmp_path):
    with pytest.raises(EventError, match="too few Parquet events there, none for all"):
        EventFiles(tmp_path, name="all", part=slice(None))


def test_several_events_in_a_file(tmp_path, helices):
    path = tmp_path / event_file(1)
    write_event(helices(1, n_particles=3), path)
    with pq.ParquetFile(path) as file:
        table = file.read()
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(EventError, match=rf"{path.name}: holds 2 events"):
        EventFiles(tmp_path, name="all", part=slice(None))[0]


@pytest.mark.parametrize("start", [-np.pi, -1.0, 0.5, 3.0, np.pi])  # 3.0: across the seam at pi
@pytest.mark.parametrize("width", [0.3, np.pi / 2, 4.0])
def test_wedge(helices, start, width):
    whole = make_sample(helices(1, n_particles=40))
    part, position = wedge(whole, start=start, width=width)
    kept = np.flatnonzero(position >= 0)
    assert position[kept].tolist() == list(range(len(part.hits)))
    for name in ("hits", "particle", "rank", "weight"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[kept])
    phi = np.arctan2(whole.hits[:, 1], whole.hits[:, 0])
    middle = start + width / 2
    away = np.abs(np.angle(np.exp(1j * (phi - middle))))
    np.testing.assert_array_equal(position >= 0, away < width / 2)
    assert 0 < kept.size < len(whole.hits)


def test_pairs_of_a_wedge_are_those_of_the_whole(helices):
    whole = make_sample(helices(1, n_particles=40))
    part, position = wedge(whole, start=0.5, width=1.0)
    original = np.flatnonzero(position >= 0)
    pairs = np.stack(np.triu_indices(len(whole.hits), k=1)).astype(np.int32)
    within = pairs_within(pairs, position)
    assert within.dtype == np.int32
    assert within.shape == (2, len(original) * (len(original) - 1) // 2)
    for of_part, of_whole in zip(
        pair_targets(part, within), pair_targets(whole, original[within]), strict=True
    ):
        np.testing.assert_array_equal(of_part, of_whole)
    # Hits of a particle that leaves the window and comes back are not next to each other.
    for gap in (1, 2):
        expected = pairs_within(path_pairs(whole, gap=gap).astype(np.int32), position)
        np.testing.assert_array_equal(path_pairs(part, gap=gap), expected)


def test_a_hit_out_of_the_window_is_a_gap(hand_made):
    """Particle 100 lies on rows 3, 5, 1, 6 in order; without row 5 nothing follows row 3 directly."""
    hits = np.full((9, 3), 100, dtype=np.float32)
    hits[5] = -100
    part, position = wedge(make_sample(replace(hand_made, hits=hits)), start=0, width=2)
    assert position.tolist() == [0, 1, 2, 3, 4, -1, 5, 6, 7]
    assert sorted(zip(*path_pairs(part, gap=1).tolist(), strict=True)) == [(1, 5), (4, 0)]
    assert (3, 5) not in zip(*path_pairs(part, gap=2).tolist(), strict=True)  # three steps apart


def test_an_empty_wedge(helices):
    part, position = wedge(make_sample(helices(1, n_particles=1, n_noise=0)), start=0, width=0)
    assert part.hits.shape == (0, 3)
    assert pairs_within(np.array([[0], [1]], dtype=np.int32), position).shape == (2, 0)
