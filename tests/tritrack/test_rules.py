"""The rule-based finder on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tritrack.events.parquet import event_file, read_metadata, write_event
from tritrack.events.tracks import read_tracks
from tritrack.physics.fitted import FITTED_COLUMNS
from tritrack.rules.windows import read_rules, write_rules

pytest.importorskip("numba")

ROOT = Path(__file__).parents[2]
SHIPPED, SAMPLES = ROOT / "weights" / "rules", ROOT / "events" / "samples"


def test_find_and_evaluate(run, tmp_path):
    tracks = tmp_path / "tracks.parquet"
    found = run("find", SAMPLES, "--local", "--finder", "rules", "--rules", SHIPPED, "--out", tracks)
    assert (found.code, found.err) == (0, "")
    assert found.out.count(" tracks\n") == 3
    rules, origin = read_rules(SHIPPED), read_metadata(tracks)
    assert (origin["tritrack_finder"], origin["tritrack_rules"]) == ("rules", rules.name)
    assert origin["tritrack_rules_sha256"] == rules.hash
    judged = run("evaluate", SAMPLES, "--tracks", tracks, "--selection", "comparison", "--json")
    assert judged.code == 0
    assert json.loads(judged.out)["efficiency"]["value"] >= 0.95


@pytest.fixture
def options(small_engines, rules_folder):
    """``--local`` with either finder, by its name."""
    rules = ("--local", "--rules", rules_folder)
    return {"chain": (*rules, "--engines", small_engines), "rules": (*rules, "--finder", "rules")}


@pytest.mark.parametrize("finder", ["chain", "rules"])
def test_found_tracks_are_fitted(run, events, draw_helices, rules_folder, tmp_path, options, finder):
    from tritrack.physics.fit import fit_tracks

    bent = draw_helices(n=150, pt=2.0, seed=1, scattering=True).hits
    rows = slice(len(bent))
    other = replace(
        events[1], hits=bent, hit_id=events[1].hit_id[rows], modules=events[1].modules[rows], truth=None
    )
    events = (events[0], other)
    for event in events:
        write_event(event, tmp_path / event_file(event.event_id))
    tracks, fitted = tmp_path / "tracks.parquet", tmp_path / "fitted.parquet"
    found = run("find", tmp_path, *options[finder], "--out", tracks, "--fitted", fitted)
    assert (found.code, found.err) == (0, "")
    assert found.out.endswith(f"{tracks}: written\n{fitted}: written\n")
    rules, table = read_rules(rules_folder), pq.read_table(fitted)
    expected = []
    for event in events:
        labels = read_tracks(tracks).labels_for(event)
        fits = fit_tracks(hits=event.hits, labels=labels, layers=rules.layers, field=rules.field).fitted
        assert len(fits) == labels.max() + 1 > 10
        expected += [(event.event_id, label, *row) for label, row in enumerate(fits.tolist())]
    values = np.stack(
        [table[name].to_numpy() for name in ("event_id", "track_label", *FITTED_COLUMNS)], axis=1
    )
    np.testing.assert_array_equal(values, np.array(expected))
    fits = values[:, 2:]
    assert np.isfinite(fits).all(axis=1).any()
    # The straight tracks of the first event have no curvature to invert.
    assert np.isnan(fits).all(axis=1).any()


def test_an_event_that_is_not_fitted_is_left_out_aloud(
    run, event_folder, small_engines, barrel_rules, tmp_path
):
    write_rules(replace(barrel_rules, max_hits=1000), tmp_path)
    tracks, fitted = tmp_path / "tracks.parquet", tmp_path / "fitted.parquet"
    options = ("--local", "--engines", small_engines, "--rules", tmp_path)
    found = run("find", event_folder, *options, "--out", tracks, "--fitted", fitted)
    assert found.code == 1
    assert "event 100: HITS: 1600 hits, the model's limit max_hits is 1000" in found.err
    assert "without the 2 events" in found.err
    assert pq.read_table(tracks).num_rows == pq.read_table(fitted).num_rows == 0


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--finder", "rules", "--url", "127.0.0.1:1"), 2, "--finder rules runs with --local"),
        (("--finder", "rules", "--local", "--working-point", "fast"), 2, "has no working points"),
        *(
            (("--local", option, value), 2, f"find: {option} does not go with --local\n")
            for option, value in (
                ("--model", "rule_finder"),
                ("--timeout", "5"),
                ("--in-flight", "2"),
                ("--pack-hits", "9"),
            )
        ),
        *(
            (("--url", "127.0.0.1:1", option, value), 2, f"find: {option} does not go with --url\n")
            for option, value in (
                ("--finder", "chain"),
                ("--engines", "{tmp}"),
                ("--threads", "2"),
                ("--rules", "{tmp}"),
            )
        ),
        (
            ("--local", "--finder", "rules", "--engines", "{tmp}"),
            2,
            "--engines does not go with --finder rules",
        ),
        (("--local", "--finder", "rules", "--threads", "1"), 2, "--threads does not go with --finder rules"),
        (
            ("--local", "--rules", "{tmp}"),
            2,
            "--rules does not go with --local, but for --finder rules or --fitted",
        ),
        (("--finder", "rules", "--local", "--rules", "{tmp}"), 1, "no rules.json there"),
        (("--local", "--fitted", "{tmp}/f.parquet", "--rules", "{tmp}"), 1, "no rules.json there"),
        (
            ("--local", "--fitted", "{tmp}/../{tmp.name}/t.parquet"),
            2,
            "find: --out and --fitted are one file, {tmp}/../{tmp.name}/t.parquet\n",
        ),
        (("--local", "--fitted", "{tmp}/f.csv"), 2, "--fitted: {tmp}/f.csv: a file of fitted tracks ends in"),
        (
            ("--url", "127.0.0.1:1", "--fitted", "{tmp}/f.parquet"),
            1,
            "model track_fit: 127.0.0.1:1 is not available",
        ),
    ],
)
def test_misuse_of_find(run, tmp_path, arguments, code, sentence):
    some = [argument.format(tmp=tmp_path) for argument in arguments]
    result = run("find", SAMPLES, "--out", tmp_path / "t.parquet", *some)
    assert result.code == code
    assert result.err.count("\n") == 1
    assert sentence.format(tmp=tmp_path) in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--finder", "rules", "--weights", "{tmp}"), "--finder rules takes --validation, --out"),
        ((), "tune: --weights is wanted"),
        (
            ("--weights", "{tmp}", "--max-hits", "9"),
            "--name, --min-pt, --field and --max-hits are of --finder rules",
        ),
        (("--finder", "rules", "--validation", "{tmp}/../samples/../samples"), "two folders of --validation"),
    ],
)
def test_misuse_of_tune(run, tmp_path, arguments, sentence):
    some = [argument.format(tmp=SAMPLES) for argument in arguments]
    result = run("tune", "--validation", SAMPLES, "--out", tmp_path / "rules", *some)
    assert result.code == 2
    assert sentence in result.err
