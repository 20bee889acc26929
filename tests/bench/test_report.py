"""One page of all results; what is not there is a sentence on it."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

for library in ("torch", "onnxscript", "matplotlib", "mplhep"):
    pytest.importorskip(library)

from tritrack.bench.engine_rows import EngineRow, Result, Time
from tritrack.bench.pages.pictures import Series, bars, lines
from tritrack.bench.report import SECTIONS, write_report
from tritrack.bench.result import Header, write_result

ROOT = Path(__file__).parents[2]
HEADER = Header(
    measurement="engines",
    cpu="a <processor>",
    cores=2,
    threads=1,
    versions={"python": "3.11", "numpy": "1.26"},
    model="small",
    card_sha256="0123456789abcdef",
    working_point="best",
)


def engines(*, n_rounds: int, gain: float) -> Result:
    """Torch, and an engine that takes so many times less processor time, on one event."""
    times = [
        Time(
            events="dense",
            event_id=100,
            n_hits=1234,
            engine=name,
            stage=stage,
            n_rows=1234,
            first_seconds=0.5,
            seconds=(0.2,) * n_rounds,
            cpu_seconds=(cpu_seconds,) * n_rounds,
            deviation=None if stage == "chain" else 2e-6,
            other_tracks=0.0 if stage == "chain" else None,
        )
        for name, cpu_seconds in (("torch", gain), ("onnx", 1.0))
        for stage in ("gnn", "chain")
    ]
    rows = (
        EngineRow(engine="torch"),
        EngineRow(engine="onnx"),
        EngineRow(engine="tensorrt", missing="no <library>"),
    )
    return Result(header=HEADER, engines=rows, times=tuple(times))


def test_without_results_each_section_is_a_sentence(tmp_path):
    write_report(tmp_path, out=tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text()
    for section in SECTIONS:
        assert f"<h2>{section.title}</h2>" in page
        assert f"Not measured: there is no {section.name}.json" in page
    assert "there is no physics-*.json" in page
    assert "There are no results yet." in page


@pytest.mark.parametrize("text", ["{", "{}", '{"header": 1}'])
def test_a_file_that_cannot_be_read_is_a_sentence(text, tmp_path):
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "engines.json").write_text(text)
    (tmp_path / "physics-few.json").write_text("[")
    write_report(tmp_path, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"Not shown: {tmp_path}/short/engines.json: not a result" in page
    assert page.count("Not shown: ") == 2


def test_engines_are_shown_with_samples_and_reasons(tmp_path):
    write_result(engines(n_rounds=20, gain=3.25), tmp_path / "short" / "engines.json")
    write_report(tmp_path, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for words in ("3.25<small>p50 200 ms", "n = 20: 20 rounds", "dense, 1 of its events: 1,234 to 1,234 hits", "2.0e-06",
                  "no &lt;library&gt;", "a &lt;processor&gt;", "0123456789ab<", "From the short protocol"):  # fmt: skip
        assert words in page
    assert "<processor>" not in page
    sources = re.findall(r"(?:src|href)='([^']*)'", page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_the_full_protocol_comes_before_the_short_one(tmp_path):
    for length, gain in (("short", 3.25), ("full", 4.75)):
        write_result(engines(n_rounds=20, gain=gain), tmp_path / length / "engines.json")
    write_report(tmp_path, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "4.75<small>" in page
    assert "3.25<small>" not in page


def test_too_few_samples_are_no_median(tmp_path):
    write_result(engines(n_rounds=3, gain=3.25), tmp_path / "short" / "engines.json")
    write_report(tmp_path, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "too few samples" in page
    assert "3.25" not in page


@pytest.mark.slow
def test_the_committed_physics_are_shown(tmp_path):
    found = sorted((ROOT / "bench" / "results").glob("physics-*.json"))
    assert found
    for path in found:
        (tmp_path / path.name).symlink_to(path)
    write_report(tmp_path, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h3>Efficiency, ") == len(found)
    assert page.count("data:image/png;base64,") == 3 * len(found)


@pytest.mark.parametrize("log", [False, True])
def test_a_picture_is_the_same_each_time(log):
    series = [
        Series(name="points", x=(1000.0, 2000.0), y=(0.5, 3.0)),
        Series(name="law", x=(1000.0,), y=(1.0,), law=((1000.0, 2000.0), (1.0, 2.0))),
    ]
    first, second = (lines(series, x="hits", y="time [s]", log_x=log, log_y=log) for _ in range(2))
    assert first == second
    assert b"<svg" in base64.b64decode(first.partition(",")[2])
    groups = {"gnn": {"onnx": 2.0, "onnx, fp16": 1.5}, "chain": {"onnx": 1.2}}
    assert bars(groups, x="times as fast") == bars(groups, x="times as fast")


def test_a_short_logarithmic_axis_has_ticks_and_a_long_series_no_markers():
    def drawn(n_points):
        x = tuple(np.geomspace(1.0, 8.0, n_points).tolist())
        picture = lines([Series(name="servers", x=x, y=x)], x="clients", y="events", log_x=True)
        return base64.b64decode(picture.partition(",")[2]).decode()

    few, many = drawn(4), drawn(100)
    for picture in (few, many):
        assert all(f"<!-- {tick} -->" in picture for tick in (1, 2, 5))
    assert few.count("<use ") > many.count("<use ")
