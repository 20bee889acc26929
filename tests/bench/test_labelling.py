from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from tritrack.bench.labelling import CUTS, Result, ScoredEvent, compare, judge, table
from tritrack.bench.result import read_result
from tritrack.events.event import Event, EventError, Particles, Truth
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_helices
from tritrack.stages.labelling import LABELLINGS

N_TRACKS = 12


def drawn_event(event_id):
    """Tracks of 10 hits along helices, as targets; their consecutive pairs have a score of 0.9, others 0.1."""
    hits, edges = drawn_helices(n_tracks=N_TRACKS, seed=event_id)
    of_hit = np.repeat(np.arange(1, N_TRACKS + 1), 10)
    particles = Particles(
        particle_id=np.arange(1, N_TRACKS + 1),
        charge=np.ones(N_TRACKS, dtype=np.float32),
        vertex=np.zeros((N_TRACKS, 3), dtype=np.float32),
        momentum=np.tile(np.array([2, 0, 1], dtype=np.float32), (N_TRACKS, 1)),
        primary=np.ones(N_TRACKS, dtype=np.bool_),
    )
    truth = Truth(
        particle_id=of_hit, order=np.tile(np.arange(10, dtype=np.float32), N_TRACKS), particles=particles
    )
    event = Event(
        event_id=event_id,
        hits=hits,
        hit_id=np.arange(len(hits)),
        modules=np.zeros((len(hits), 3), dtype=np.int32),
        truth=truth,
    )
    score = np.where(of_hit[edges[0]] == of_hit[edges[1]], 0.9, 0.1).astype(np.float32)
    return ScoredEvent(event=event, edge_index=edges, edge_score=score)


def test_every_labelling_is_judged_at_its_best_cut():
    judged, scanned = compare([drawn_event(100), drawn_event(101), drawn_event(102)])
    assert [row.labelling for row in judged] == list(LABELLINGS)
    assert len(scanned) == len(LABELLINGS) * len(CUTS)
    for row in judged:
        assert row.efficiency == row.comparison_efficiency == row.perfect_efficiency == row.purity == 1.0
        assert row.unmatched_rate == row.fake_rate == row.fragment_rate == row.duplicate_rate == 0.0
        assert row.hits_on_tracks == 1.0
        assert row.seconds > 0
    assert len(table(judged).splitlines()) == 2 + len(LABELLINGS)


def test_a_cut_that_lets_everything_through_merges_tracks():
    row = judge([drawn_event(100)], labelling="components", cut=0.05)
    assert row.efficiency < 0.5
    assert row.purity < 0.5
    assert row.merit < 0.5


def test_one_event_is_too_few():
    with pytest.raises(EventError, match=r"^1 event: one to choose"):
        compare([drawn_event(100)])


def test_the_command_writes_json_and_prints_a_table(small_engines, tmp_path):
    for number in (100, 101):
        write_event(drawn_event(number).event, tmp_path / event_file(number))
    out = tmp_path / "bench" / "labelling.json"
    command = [sys.executable, "-m", "tritrack.bench.labelling", tmp_path, "--engines", small_engines]
    done = subprocess.run([*command, "--out", out], check=True, capture_output=True, text=True)
    result = read_result(out, Result)
    assert (result.header.measurement, result.header.threads) == ("labelling", 2)
    rows = result.judged
    assert [row.labelling for row in rows] == list(LABELLINGS)
    assert done.stdout.strip() == table(rows)


def test_an_event_without_truth_is_one_sentence(small_engines, tmp_path):
    write_event(replace(drawn_event(100).event, truth=None), tmp_path / event_file(100))
    command = [sys.executable, "-m", "tritrack.bench.labelling", tmp_path, "--engines", small_engines]
    done = subprocess.run(
        [*command, "--out", tmp_path / "x.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "event 100: has no truth" in done.stderr
