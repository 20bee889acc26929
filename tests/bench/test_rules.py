from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("acts")
pytest.importorskip("numba")
pytest.importorskip("onnxruntime")

from tritrack.bench.rules import fit_quality, run_rules
from tritrack.events.source import read_all
from tritrack.rules.finder import RuleFinder

ROOT = Path(__file__).parents[2]


def test_a_sample_event_is_found_fitted_and_judged():
    event = next(iter(read_all([ROOT / "events" / "samples"])))
    outcome, offsets = run_rules(RuleFinder.load(ROOT / "weights" / "rules"), event)
    assert list(outcome.seconds) == ["sort", "cells", "follow", "choose", "helix fit"]
    report = outcome.counts["comparison"].report()
    assert len(offsets) >= 0.95 * report.n_targets
    bins = fit_quality(offsets)
    assert sum(some["n_tracks"] for some in bins) >= 0.95 * len(offsets)
    for some in bins:
        assert some["n_unfitted"] == 0
        if some["n_tracks"] >= 20:
            assert all(0.5 < quality["pull"] < 1.8 for quality in some["quality"].values())


def test_resolution_and_pulls_are_those_that_went_in():
    """Offsets of 2 % and of half the errors; one track without a fit, and one out of every bin."""
    rng = np.random.default_rng(1)
    n = 4000
    offsets = np.concatenate(
        [np.tile([2.0, 0.5], (n, 1)), rng.normal(0.01, 0.02, (n, 5)), rng.normal(0, 0.5, (n, 5))], axis=1
    )
    offsets[0, 5] = np.nan
    offsets[1, 0] = 50.0
    bins = fit_quality(offsets)
    (filled,) = [some for some in bins if some["n_tracks"]]
    assert (filled["n_tracks"], filled["n_unfitted"]) == (n - 1, 1)
    assert (filled["pt"], filled["eta"]) == ((1.5, 3.0), (0.0, 1.0))
    for name in ("pt", "phi", "eta", "d0", "z0"):
        quality = filled["quality"][name]
        assert quality["offset"] == pytest.approx(0.01, abs=0.002)
        assert quality["resolution"] == pytest.approx(0.02, rel=0.1)
        assert quality["pull"] == pytest.approx(0.5, rel=0.1)
