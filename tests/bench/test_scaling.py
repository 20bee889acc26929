from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from tritrack.bench import scaling
from tritrack.bench.costs.peak import Peak, begin, highest
from tritrack.bench.costs.power_law import fit_power_law
from tritrack.bench.costs.sizes import PHI_HITS, SPACING, Size, make_sizes, window
from tritrack.bench.result import ResultError, checkpoint_of, make_header, read_result, write_result
from tritrack.bench.scaling import CHAIN, Point, Points, fit_points, hash_engines, kept_points, largest_events
from tritrack.events.event import Event
from tritrack.events.parquet import event_file, write_event
from tritrack.export.cases import drawn_hits
from tritrack.stages.contract import STAGES
from tritrack.stages.weights import load_weights

SIZES = st.lists(st.integers(1_000, 300_000), min_size=2, max_size=12, unique=True)


@given(x=SIZES, exponent=st.floats(-1, 3), factor=st.floats(1e-9, 1e3))
def test_a_power_law_is_found_again(x, exponent, factor):
    # Sizes next to each other tell no exponent beside rounding.
    assume(max(x) > 1.1 * min(x))
    y = [factor * number**exponent for number in x]
    law = fit_power_law(x, y)
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.at(50_000) == pytest.approx(factor * 50_000**exponent, rel=1e-4)
    assert (law.n_points, law.smallest, law.largest) == (len(x), min(x), max(x))
    assert (law.error is None) is (len(x) == 2)
    if exponent > 0.1:
        assert law.where(law.at(20_000)) == pytest.approx(20_000, rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), exponent=st.floats(0.5, 2))
def test_the_standard_error_is_that_of_the_textbook(seed, exponent):
    x = np.geomspace(1_000, 200_000, 9)
    y = x**exponent * np.exp(np.random.default_rng(seed).normal(0, 0.1, x.size))
    law = fit_power_law(x.tolist(), y.tolist())
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert law.exponent == pytest.approx(slope)
    assert law.error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_one_size_has_no_law_and_zero_is_refused():
    assert fit_power_law([7, 7], [1, 2]) is None
    with pytest.raises(ValueError, match="above 0"):
        fit_power_law([1, 2], [0, 1])


def test_windows_lie_in_each_other_and_keep_the_order():
    hits = drawn_hits(n_hits=5_000, seed=1)
    small, turn = window(hits, n_hits=500)
    large, _ = window(hits, n_hits=1_000)
    assert turn == pytest.approx(0.1, abs=0.02)  # drawn flat in phi
    places = [np.flatnonzero((hits == hit).all(axis=1))[0] for hit in small]
    assert (np.diff(places) > 0).all()
    assert {tuple(hit) for hit in small} <= {tuple(hit) for hit in large}
    assert window(hits, n_hits=5_000) == (hits, 1.0)


def whole(n_hits, *, seed, pileup):
    hits = drawn_hits(n_hits=n_hits, seed=seed)
    return Size(axes=("density",), turn=1.0, n_events=1, pileup=pileup, hits=hits)


def test_both_axes_end_where_they_should():
    wholes = [whole(n, seed=n, pileup=float(n)) for n in (3_000, 3_100, 6_000, 20_000)]
    found = make_sizes(wholes, max_hits=30_000)
    phi = [size.n_hits for size in found if "phi" in size.axes]
    assert phi == [*(n for n in PHI_HITS if SPACING * n <= 20_000), 20_000]
    density = [size for size in found if "density" in size.axes]
    # 3,100 is next to 3,000; three small events are fewer than the largest; all of them are over the limit.
    assert [size.n_hits for size in density] == [3_000, 6_000, 20_000, 32_100]
    assert [size.n_events for size in density] == [1, 1, 1, 4]
    assert density[-1].pileup == 32_100
    assert len({size.sha256 for size in found}) == len(found)


def made_up(n_hits, *, axes=("phi", "density"), refused=None, rounds=3):
    """A point of known laws: time 1e-6 n^1.5, memory 100 n^1.25, pairs n^1.5."""
    seconds = dict.fromkeys((*(spec.name for spec in STAGES), CHAIN), (1e-6 * n_hits**1.5,) * rounds)
    memory = int(100 * n_hits**1.25)
    return Point(
        axes=axes,
        turn=1.0,
        n_events=1,
        pileup=None,
        n_hits=n_hits,
        hits_sha256=str(n_hits),
        memory=Peak(
            base_bytes=300_000_000,
            stage_bytes={spec.name: memory for spec in STAGES},
            chain_bytes=memory,
            n_pairs=int(n_hits**1.5),
            n_edges=int(n_hits**1.5),
            refused=refused,
        ),
        seconds={} if refused else seconds,
        cpu_seconds={} if refused else seconds,
    )


def test_every_stage_has_its_laws():
    points = [made_up(n) for n in (5_000, 20_000, 50_000, 100_000, 200_000)]
    points.append(made_up(400_000, axes=("density",), refused="HITS: 400000 hits, the model's limit ..."))
    fits = {(f.axis, f.stage, f.quantity, f.against, f.from_hits): f.law for f in fit_points(points)}
    for axis in ("phi", "density"):
        for stage in (*(spec.name for spec in STAGES), CHAIN):
            assert fits[axis, stage, "seconds", "n_hits", 0].exponent == pytest.approx(1.5)
            assert fits[axis, stage, "bytes", "n_hits", 10_000].exponent == pytest.approx(1.25, abs=1e-4)
            assert fits[axis, stage, "cpu_seconds", "n_hits", 10_000].n_points == 4
        assert fits[axis, "gnn", "seconds", "n_edges", 0].exponent == pytest.approx(1.0, abs=1e-3)
        assert (axis, "embedding", "seconds", "n_pairs", 0) not in fits
    assert [f.law for f in fit_points(points[:2])] == []


def test_the_largest_event_says_what_it_rests_on():
    points = [made_up(n) for n in (10_000, 50_000, 100_000, 200_000)]
    rows = largest_events(points, fit_points(points), max_hits=300_000)
    assert [row.memory_gb for row in rows] == [2, 4, 8, 16]
    for row in rows:
        assert row.n_hits == pytest.approx(((row.memory_gb * 1e9 - 3e8) / 100) ** 0.8, rel=1e-3)
        assert row.extrapolated is not (10_000 <= row.n_hits <= 200_000)
        assert row.over_limit is (row.n_hits > 300_000)
    assert [row.extrapolated for row in rows] == [True, True, True, True]
    assert largest_events(points, [], max_hits=300_000) == []


def test_ratios_compare_a_tenth_with_the_whole(small_weights):
    points = tuple(made_up(n) for n in (1_000, 20_000, 200_000))
    header = make_header(
        "scaling", card=load_weights(small_weights)[0], working_point=None, threads=1, packages=[]
    )
    result = scaling.Result(header=header, points=points, fits=(), largest=())
    assert result.ratios() == {
        "time a hit, tenth by whole": pytest.approx(10**-0.5),
        "memory a hit, tenth by whole": pytest.approx(10**-0.25, rel=1e-4),
    }
    assert replace(result, points=points[:1]).ratios() == {}


def test_only_the_peak_since_the_beginning_counts():
    big = np.ones(20_000_000)
    del big
    before = begin()
    small = np.ones(5_000_000)
    taken = highest() - before
    assert small.nbytes * 0.9 < taken < small.nbytes * 1.5


@pytest.fixture
def run(small_weights, small_engines, tmp_path):
    hits = drawn_hits(n_hits=2_400, seed=1)
    none = np.zeros((2_400, 3), dtype=np.int32)
    event = Event(event_id=7, hits=hits, hit_id=np.arange(2_400), modules=none)
    for number in range(3):
        write_event(event, tmp_path / event_file(number))
    out = tmp_path / "bench" / "scaling.json"

    def bench(*options):
        command = [sys.executable, "-m", "tritrack.bench.scaling", tmp_path, "--engines", small_engines]
        command += ["--weights", small_weights, "--threads", "1", "--out", out, *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return bench, out


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(run, small_engines):
    bench, out = run
    bench("--rounds", "1", "--most-hits", "2000")
    checkpoint = checkpoint_of(out)
    assert not checkpoint.exists()  # a run that ended leaves nothing to go on with
    kept = read_result(out, scaling.Result)
    begun = Points(header=kept.header, engines_sha256=hash_engines(small_engines), points=kept.points)
    write_result(begun, checkpoint)
    assert [point.n_hits for point in kept.points] == [1_000]
    said = bench("--rounds", "2")
    assert not checkpoint.exists()
    result = read_result(out, scaling.Result)
    assert "1000 hits (" not in said  # its memory was there
    assert [point.n_hits for point in result.points] == [1_000, 2_400, 4_800, 7_200]
    assert result.points[0].memory == kept.points[0].memory
    assert result.points[0].seconds["gnn"][0] == kept.points[0].seconds["gnn"][0]
    for point in result.points[:3]:
        assert list(point.seconds) == list(point.cpu_seconds) == [*(spec.name for spec in STAGES), CHAIN]
        assert point.n_rounds == 2
        assert point.memory.n_pairs >= point.memory.n_edges > 0
        assert point.memory.base_bytes > 10_000_000
    assert result.points[2].memory.chain_bytes > 1_000_000
    # The last is over the limit: a row that says so.
    assert "7200 hits, the model's limit max_hits is 5000" in result.points[3].memory.refused
    assert result.points[3].n_rounds == 0
    assert "time a hit, tenth by whole" in result.ratios()


def test_points_of_another_model_are_not_taken(small_weights, tmp_path):
    card, _ = load_weights(small_weights)
    header = make_header("scaling", card=card, working_point=None, threads=1, packages=["numpy"])
    file = tmp_path / "scaling.points.json"
    point = made_up(1_000)
    points = Points(header=header, engines_sha256={"gnn.onnx": "one"}, points=(point,))
    assert kept_points(file, points) == {}
    write_result(points, file)
    assert kept_points(file, points) == {"1000": point}
    for change in ({"card_sha256": "other"}, {"versions": {"numpy": "0"}}, {"threads": 2}):
        assert kept_points(file, replace(points, header=replace(header, **change))) == {}
    assert kept_points(file, replace(points, engines_sha256={"gnn.onnx": "two"})) == {}
    file.write_text("{")
    with pytest.raises(ResultError, match=r"scaling\.points\.json"):
        kept_points(file, points)
