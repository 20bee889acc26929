"""The fit as a step, and as the last part of a model that finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("numba")

from tritrack.ensemble_repo.steps import load_step
from tritrack.physics.fit import fit_tracks
from tritrack.physics.fitted import FITTED_COLUMNS
from tritrack.stages.contract import FITTED, ContractError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tritrack.rules.windows import Rules

    Step = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def test_the_contract_names_the_fits_columns() -> None:
    assert FITTED.dims == ("n_tracks", len(FITTED_COLUMNS))
    assert f": {', '.join(FITTED_COLUMNS)};" in FITTED.meaning


@pytest.fixture
def step(rules_folder: Path) -> Step:
    return load_step("track_fit", rules_folder, threads=1)


def test_a_pack_is_fitted_event_by_event(step: Step, barrel_rules: Rules, draw_helices: Any) -> None:
    events = [draw_helices(n=n, pt=2.0, seed=n, scattering=True) for n in (20, 30)]
    expected = [
        fit_tracks(
            hits=drawn.hits, labels=drawn.particle, layers=barrel_rules.layers, field=barrel_rules.field
        ).fitted
        for drawn in events
    ]
    for drawn, fitted in zip(events, expected, strict=True):
        alone = step({"HITS": drawn.hits, "TRACK_LABEL": drawn.particle})
        np.testing.assert_array_equal(alone["FITTED"], fitted)
        np.testing.assert_allclose(fitted[:, 0], 2.0, rtol=0.1)
    pack = {
        "HITS": np.concatenate([drawn.hits for drawn in events]),
        "TRACK_LABEL": np.concatenate([drawn.particle for drawn in events]),
        "EVENT_OFFSETS": np.array([0, 200, 200, 500]),
    }
    np.testing.assert_array_equal(step(pack)["FITTED"], np.concatenate(expected))


@pytest.mark.parametrize("offsets", [None, [0], [0, 0, 0]])
def test_nothing_to_fit(step: Step, offsets: list[int] | None) -> None:
    tensors = {"HITS": np.zeros((0, 3), np.float32), "TRACK_LABEL": np.zeros(0, np.int64)}
    if offsets is not None:
        tensors["EVENT_OFFSETS"] = np.array(offsets)
    fitted = step(tensors)["FITTED"]
    assert (fitted.shape, fitted.dtype) == ((0, 8), FITTED.dtype)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1 << 60, -1], r"TRACK_LABEL: holds -1 to 1152921504606846976, of 3 hits it is -1 to 2"),
        ([0, 0, -2], r"TRACK_LABEL: holds -2 to 0, of 3 hits it is -1 to 2"),
        ([0, 0], r"TRACK_LABEL: axis 0 \(n_hits\) is 2 long, 3 wanted"),
        ([0.0, 0.0, 0.0], r"TRACK_LABEL: dtype is float64"),
    ],
)
def test_labels_that_are_none(step: Step, labels: list[Any], sentence: str) -> None:
    tensors = {"HITS": np.zeros((3, 3), np.float32), "TRACK_LABEL": np.array(labels)}
    with pytest.raises(ContractError, match=f"^{sentence}"):
        step(tensors)
    with pytest.raises(ContractError, match=r"(event 0 of the pack, .*: )?TRACK_LABEL"):
        step(tensors | {"EVENT_OFFSETS": np.array([0, 3])})
