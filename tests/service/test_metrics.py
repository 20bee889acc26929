"""What the server counts for its operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritrack.service.client import TrackFinder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from tritrack.service.server import Server


def test_bytes_that_crossed_to_the_host(
    server: Server, hits_of: Callable[..., np.ndarray], host_bytes: Callable[[Server], dict[str, int]]
) -> None:
    """Every Python step counts them; on a CPU none cross."""
    with TrackFinder(server.url) as finder:
        finder.find(hits_of(300))
    counted = host_bytes(server)
    assert counted.keys() == {path.parents[1].name for path in server.repository.glob("*/1/model.py")}
    assert set(counted.values()) == {0}
