"""The rule-based finder on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("numba")

ROOT = Path(__file__).parents[2]
SHIPPED, SAMPLES = ROOT / "weights" / "rules", ROOT / "events" / "samples"


def test_find_and_evaluate(run, tmp_path):
    tracks = tmp_path / "tracks.parquet"
    found = run("find", SAMPLES, "--local", "--finder", "rules", "--rules", SHIPPED, "--out", tracks)
    assert (found.code, found.err) == (0, "")
    assert found.out.count(" tracks\n") == 3
    judged = run("evaluate", SAMPLES, "--tracks", tracks, "--selection", "comparison", "--json")
    assert judged.code == 0
    assert json.loads(judged.out)["efficiency"]["value"] >= 0.95


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--finder", "rules", "--url", "127.0.0.1:1"), 2, "--finder rules runs with --local"),
        (("--finder", "rules", "--local", "--working-point", "fast"), 2, "has no working points"),
        (("--finder", "rules", "--local", "--rules", "{tmp}"), 1, "no rules.json there"),
    ],
)
def test_misuse_of_find(run, tmp_path, arguments, code, sentence):
    some = [argument.format(tmp=tmp_path) for argument in arguments]
    result = run("find", SAMPLES, "--out", tmp_path / "t.parquet", *some)
    assert result.code == code
    assert result.err.count("\n") == 1
    assert sentence in result.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--finder", "rules", "--weights", "{tmp}"), "--finder rules takes --validation, --out"),
        ((), "tune: --weights is wanted"),
        (("--finder", "rules", "--validation", "{tmp}/../samples/../samples"), "two folders of --validation"),
    ],
)
def test_misuse_of_tune(run, tmp_path, arguments, sentence):
    some = [argument.format(tmp=SAMPLES) for argument in arguments]
    result = run("tune", "--validation", SAMPLES, "--out", tmp_path / "rules", *some)
    assert result.code == 2
    assert sentence in result.err
