"""What the clients ask of a server and make of its answers, beside a small gRPC server in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("numba")  # the small server serves rules as well

from tritrack.service.client import TrackFinder
from tritrack.service.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]

HITS = np.zeros((3, 3), dtype=np.float32)


def test_a_server_that_answers_is_not_asked_whether_it_runs(small_server: Start) -> None:
    server = small_server("track_finder", lacks="gnn: no memory is left for this event")
    with (
        TrackFinder(server.url, retries=1) as finder,
        pytest.raises(UnavailableError, match=r"after 2 attempts \(gnn: no memory is left for this event\)$"),
    ):
        finder.find(HITS)
