"""All finders run on the same events, and their ratios are those of the rounds."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for library in ("acts", "numba", "matplotlib", "mplhep"):
    pytest.importorskip(library)
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritrack.bench.compare import MeasuredSet, Result, Row
from tritrack.bench.pages.compare_page import PAGE_FILE
from tritrack.bench.physics import CKF
from tritrack.bench.result import Header, read_result
from tritrack.bench.rules import RULES
from tritrack.events.parquet import event_file, write_event

SHIPPED = Path(__file__).parents[2] / "weights" / "rules"
FINDERS = ["GNN fast", "GNN balanced", "GNN best", "GNN balanced fused", RULES, CKF]


def make_row(
    finder: str, *, seconds: tuple[tuple[float, ...], ...], events_per_s: tuple[float | None, ...]
) -> Row:
    return Row(
        events="set",
        finder=finder,
        model=None if finder == CKF else "a_model",
        refused=(),
        reports={},
        seconds=seconds,
        median=float(np.median(seconds)) if seconds and seconds[0] else None,
        p50=None,
        n_clients=8,
        events_per_s=events_per_s,
        not_loaded=None,
        peak_bytes=None,
    )


def make_result(*rows: Row) -> Result:
    header = Header(
        measurement="compare",
        cpu="some",
        cores=2,
        threads=2,
        versions={},
        model="small",
        card_sha256="0",
        working_point="best",
    )
    return Result(
        header=header,
        rules="barrel",
        rules_sha256="0",
        ckf="wide",
        selections={},
        sets=(MeasuredSet(name="set", n_hits=(100, 200), n_judged=2),),
        rows=rows,
    )


def test_ratios_are_means_over_rounds():
    """Of the times of all events of a round: 3 s by 6 s, and 8 s by 4 s."""
    result = make_result(
        make_row("GNN best", seconds=((2.0, 4.0), (1.0, 3.0)), events_per_s=(2.0, 4.0)),
        make_row("GNN best fused", seconds=((1.0, 2.0), (1.0, 1.0)), events_per_s=(3.0, 4.0)),
        make_row(CKF, seconds=((1.0, 2.0), (2.0, 6.0)), events_per_s=(0.5, 0.2)),
    )
    assert result.ratios() == {
        "set: seconds of CKF by those of GNN best": 1.25,
        "set: seconds of CKF by those of GNN best fused": 2.5,
        "set: throughput of GNN best fused by that of GNN best": 1.25,
    }


def test_throughputs_are_compared_where_both_were_measured():
    rows = [
        make_row(name, seconds=((1.0,), (1.0,)), events_per_s=rates)
        for name, rates in {"GNN best": (2.0, None), "GNN best fused": (3.0, 9.0), CKF: (1.0, 1.0)}.items()
    ]
    assert make_result(*rows).ratios()["set: throughput of GNN best fused by that of GNN best"] == 1.5


def test_what_was_not_measured_is_no_ratio():
    nothing = make_row(RULES, seconds=((),), events_per_s=(None,))
    fused = make_row("GNN best fused", seconds=((1.0,),), events_per_s=(3.0,))
    unloaded = make_row("GNN best", seconds=((1.0,),), events_per_s=(None,))
    peer = make_row(CKF, seconds=((4.0,),), events_per_s=(0.25,))
    assert make_result(nothing, unloaded, fused, peer).ratios() == {
        "set: seconds of CKF by those of GNN best": 4.0,
        "set: seconds of CKF by those of GNN best fused": 4.0,
    }
    assert make_result(unloaded, make_row(CKF, seconds=((),), events_per_s=(None,))).ratios() == {}


@pytest.fixture(scope="module")
def measured(small_event, take_hits, small_engines, tmp_path_factory):
    """The bench on two events, the second of which the networks refuse."""
    folder = tmp_path_factory.mktemp("compare")
    larger = take_hits(small_event, np.tile(np.arange(small_event.n_hits), 4))
    (folder / "a&b").mkdir()
    for event in (dataclasses.replace(small_event, event_id=100), dataclasses.replace(larger, event_id=101)):
        write_event(event, folder / "a&b" / event_file(event.event_id))
    command = [sys.executable, "-m", "tritrack.bench.compare", folder / "a&b", "--engines", small_engines]
    options = ["--rules", SHIPPED, "--out", folder / "compare.json", "--threads", "1", "--page"]
    subprocess.run([*command, *options, "--load-seconds", "1", "--clients", "2"], check=True)
    return folder


@pytest.mark.slow
def test_every_finder_is_measured_on_the_same_events(measured, small_event):
    result = read_result(measured / "compare.json", Result)
    (some,) = result.sets
    assert (some.name, some.n_hits) == ("a&b", (small_event.n_hits, 4 * small_event.n_hits))
    assert some.n_judged == 1
    assert [row.finder for row in result.rows] == FINDERS
    for row in result.rows:
        assert len(row.refused) == ("GNN" in row.finder)
        assert {len(times) for times in row.seconds} == {1}
        assert (row.p50, row.median) == (None, row.seconds[0][0])
        assert row.peak_bytes > 1e7
        assert {report["n_targets"] for report in row.reports.values()} == {40}
        assert (row.events_per_s == (None,)) == bool(row.not_loaded)
        assert (row.n_requests == (None,)) == (bool(row.not_loaded) or row.finder == CKF)
    by_name = {row.finder: row for row in result.rows}
    assert by_name["GNN balanced"].reports == by_name["GNN balanced fused"].reports
    for name in (RULES, CKF):
        assert by_name[name].reports["comparison"]["efficiency"]["value"] >= 0.9
    assert (by_name[CKF].model, by_name[CKF].n_clients) == (None, None)
    assert sum("seconds of CKF" in name for name in result.ratios()) == 5


@pytest.mark.slow
def test_the_page_holds_everything_in_itself(measured):
    page = (measured / PAGE_FILE).read_text()
    assert "a&amp;b" in page
    assert "a&b" not in page
    sources = re.findall(r"(?:src|href)='([^']{0,10})", page)
    assert len(sources) == 8  # pT, eta, radius and time for each selection
    assert set(sources) == {"data:image"}
    for words in (*FINDERS, "1 process, 1 thread", "event 101", "double majority", "median of 1"):
        assert words in page
