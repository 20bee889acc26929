from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tritrack.events.layers import Layers
    from tritrack.rules.windows import Rules


@pytest.fixture(scope="session")
def barrel_rules(barrel: Layers) -> Rules:
    """Rules for ``barrel``."""
    pytest.importorskip("numba")
    from tritrack.rules.windows import Rules, Windows

    inner = np.arange(barrel.n)
    steps = [(a, b) for a in inner for b in (a + 1, a + 2) if b < barrel.n]
    windows = Windows(
        max_curvature=8e-4,
        max_z0=200.0,
        max_d0=0.4,
        join=6.0,
        follow=30.0,
        min_layers=4,
        long=7,
        max_chi2=2.0,
        max_holes=2,
        max_shared=2,
    )
    return Rules(
        name="barrel",
        layers=barrel,
        steps=np.array(steps, dtype=np.int64),
        windows=windows,
        max_hits=5000,
        metrics={"drawn": {"efficiency_targets": 0.5}},
    )
