from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.bench.repeats import RepeatError, Result, Row, changing_share, repeat_event, require_steady
from tritrack.bench.result import read_result
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.stages.card import read_card
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import load_engine
from tritrack.stages.pipeline import Pipeline

NETWORKS = {spec.name: spec for spec in STAGES if spec.engine}


def drawn_event(n_hits, *, event_id=7):
    return Event(
        event_id=event_id,
        hits=drawn_hits(n_hits=n_hits, seed=n_hits),
        hit_id=np.arange(n_hits),
        modules=np.zeros((n_hits, 3), np.int32),
    )


def chain_of(small_engines, **changed):
    """The chain, with some networks' outputs changed by a function of the run's number and the output."""
    engines = {name: load_engine(spec, small_engines, threads=1) for name, spec in NETWORKS.items()}

    def unsteady(engine, change):
        runs = count()
        return lambda *inputs: change(next(runs), engine(*inputs))

    engines |= {name: unsteady(engines[name], change) for name, change in changed.items()}
    return Pipeline(card=read_card(small_engines), engines=engines)


def test_what_is_steady_does_not_change(small_engines):
    row = repeat_event(chain_of(small_engines), drawn_event(2000), events="drawn", repeats=3)
    assert row.n_edges > 100
    assert (row.score_spread, row.other_edges, row.other_tracks) == (0.0, 0, 0.0)


def test_the_spread_of_scores_is_that_of_all_runs(small_engines):
    """Runs 0, 1 and 2 are 0, 1 and -2 times 1e-4 off: 3e-4 between the last two."""
    off = np.float32([0, 1e-4, -2e-4])
    chain = chain_of(small_engines, gnn=lambda run, scores: scores + off[run])
    row = repeat_event(chain, drawn_event(2000), events="drawn", repeats=3)
    assert row.score_spread == pytest.approx(3e-4, rel=1e-2)
    assert row.other_edges == 0


def test_edges_and_tracks_that_come_and_go_are_counted(small_engines):
    """The second run has no edges: what the first had is missing, and each of its tracks."""
    chain = chain_of(small_engines, filter=lambda run, scores: scores * (run != 1))
    row = repeat_event(chain, drawn_event(2000), events="drawn", repeats=3)
    assert row.other_edges == row.n_edges > 0
    assert row.other_tracks == 1.0
    assert row.score_spread == 0.0


def test_an_event_without_edges(small_engines):
    row = repeat_event(chain_of(small_engines), drawn_event(1), events="drawn", repeats=2)
    assert row == Row(
        events="drawn",
        event_id=7,
        n_hits=1,
        n_edges=0,
        score_spread=0.0,
        other_edges=0,
        n_tracks=0,
        other_tracks=0.0,
    )
    assert changing_share([row]) == 0.0


def test_the_command_writes_what_stays(small_engines, tmp_path):
    (tmp_path / "drawn").mkdir()
    for number, n_hits in enumerate((300, 200)):
        write_event(drawn_event(n_hits, event_id=number), tmp_path / "drawn" / event_file(number))
    out = tmp_path / "repeats.json"
    command = [sys.executable, "-m", "tritrack.bench.repeats", tmp_path / "drawn", "--engines", small_engines]
    subprocess.run([*command, "--out", out, "--repeats", "2"], check=True)
    result = read_result(out, Result)
    assert (result.header.measurement, result.gpu, result.repeats) == ("repeats", None, 2)
    assert [(row.event_id, row.n_hits) for row in result.rows] == [(0, 300), (1, 200)]
    assert result.ratios() == {"tracks that stay": 1.0}
    require_steady(result.rows)
    steady, unsteady = (
        replace(result.rows[0], n_tracks=n, other_tracks=share) for n, share in ((300, 0.0), (100, 0.01))
    )
    worse = replace(result, rows=(steady, unsteady))
    assert worse.ratios() == {"tracks that stay": pytest.approx(0.9975)}
    with pytest.raises(RepeatError, match=r"^0\.250% of the tracks change from run to run, 0\.1% may$"):
        require_steady(worse.rows)
    require_steady((steady, steady, steady, unsteady))
