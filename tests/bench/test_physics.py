"""Both finders are judged on the same events, and what one refuses is named."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import msgspec
import numpy as np
import pytest

for library in ("acts", "onnxruntime", "matplotlib", "mplhep"):
    pytest.importorskip(library)

from tritrack.bench.pages.physics_page import PAGE_FILE, write_page
from tritrack.bench.physics import CHAIN, CKF, EDGE_VIEWS, RESULT_FILE, EventRow, Outcome, summarise
from tritrack.events.parquet import event_file, write_event
from tritrack.physics.metrics import Report, count
from tritrack.physics.selection import SELECTIONS


def outcome(event):
    pairs = np.zeros((2, 0), dtype=np.int64)
    return Outcome(
        seconds={"all": 1.0},
        counts={k: count(event=event, pairs=pairs, selection=s) for k, s in SELECTIONS.items()},
    )


REFUSED = Outcome(refused="too large")


@pytest.mark.parametrize(
    ("chain", "ckf", "n_judged", "finders"),
    [
        ("", "", 0, []),
        ("yy", "yy", 2, [CHAIN, CKF]),
        ("yyn", "nyy", 1, [CHAIN, CKF]),
        ("nn", "yy", 2, [CKF]),
        ("yn", "nn", 1, [CHAIN]),
        ("nn", "nn", 0, []),
        ("yn", "ny", 0, []),
    ],
)
def test_judged_are_events_that_all_finders_take(small_event, chain, ckf, n_judged, finders):
    taken = outcome(small_event)
    rows = [
        EventRow(
            event_id=100 + number,
            n_hits=small_event.n_hits,
            outcomes={name: taken if takes == "y" else REFUSED for name, takes in ((CHAIN, a), (CKF, b))},
        )
        for number, (a, b) in enumerate(zip(chain, ckf, strict=True))
    ]
    found = summarise(rows)
    assert found["n_judged"] == n_judged
    assert list(found["finders"]) == finders
    for finder in found["finders"].values():
        assert {report["n_events"] for report in finder["reports"].values()} == {n_judged}


@pytest.fixture(scope="module")
def measured(small_event, take_hits, small_engines, tmp_path_factory):
    """The bench on two events, the second of which the model refuses."""
    folder = tmp_path_factory.mktemp("physics")
    larger = take_hits(small_event, np.tile(np.arange(small_event.n_hits), 4))
    larger = dataclasses.replace(larger, event_id=101)
    for event in (dataclasses.replace(small_event, event_id=100), larger):
        write_event(event, folder / event_file(event.event_id))
    command = [sys.executable, "-m", "tritrack.bench.physics", folder, "--engines", small_engines]
    subprocess.run([*command, "--out", folder / "out", "--title", "a <set>", "--page"], check=True)
    return folder / "out"


@pytest.mark.slow
def test_both_finders_are_measured(measured, small_event):
    found = msgspec.json.decode((measured / RESULT_FILE).read_bytes())
    assert found["n_judged"] == 1
    small, large = found["events"]
    assert (small["event_id"], small["n_hits"]) == (100, small_event.n_hits)
    assert "limit" in large["finders"][CHAIN]["refused"]
    assert large["finders"][CKF]["refused"] is None
    for name, finder in found["finders"].items():
        assert sum(small["finders"][name]["seconds"].values()) > 0
        for selection, report in finder["reports"].items():
            assert Report.from_json(report).to_json() == report
            assert (report["selection"], report["n_targets"], report["n_events"]) == (selection, 40, 1)
    chain, ckf = (found["finders"][name] for name in (CHAIN, CKF))
    assert ckf["reports"]["comparison"]["efficiency"]["value"] >= 0.95
    assert chain["fitted"] == {}
    wide, central = ckf["fitted"].values()
    assert wide["n_tracks"] >= central["n_tracks"] >= 35
    assert list(chain["edges"]) == ["graph", "filter", "gnn"]
    assert all(list(views) == list(EDGE_VIEWS) for views in chain["edges"].values())
    n_edges = [views["targets"]["n_edges"] for views in chain["edges"].values()]
    assert n_edges == sorted(n_edges, reverse=True)
    for selection, losses in chain["losses"].items():
        n_found = round(chain["reports"][selection]["efficiency"]["value"] * 40)
        assert losses["n_lost"] == 40 - n_found == sum(entry["n"] for entry in losses["lost"].values())


@pytest.mark.slow
def test_the_page_holds_everything_in_itself(measured):
    page = (measured / PAGE_FILE).read_text()
    assert "a &lt;set&gt;" in page
    assert "a <set>" not in page
    sources = re.findall(r"(?:src|href)='([^']{0,21})", page)
    assert len(sources) == 15
    assert set(sources) == {"data:image/png;base64"}
    assert len(list(measured.glob("plots-1/**/*.png"))) == 15
    for words in ("Where tritrack lost them", "event 101 by tritrack", "impact_max", "double majority"):
        assert words in page
    # Times are of the event that both finders take, as rates are.
    assert re.findall(r"Time: [^<]*, (\d+) events<", page) == ["1", "1"]
    assert write_page([measured / RESULT_FILE] * 2, out=measured / "both").read_text().count("<img") == 30
