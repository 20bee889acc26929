"""What the server counts for its operator."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

from tritrack.service.client import TrackFinder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from tritrack.service.server import Server

LINE = re.compile(r'^tritrack_host_bytes_total\{stage="(\w+)"\} (\d+)$', re.MULTILINE)


def test_bytes_that_crossed_to_the_host(server: Server, hits_of: Callable[..., np.ndarray]) -> None:
    """Every Python step counts them; on a CPU none cross."""
    with TrackFinder(server.url) as finder:
        finder.find(hits_of(300))
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        counted = dict(LINE.findall(answer.read().decode()))
    steps = {path.parents[1].name for path in server.repository.glob("*/1/model.py")}
    assert counted.keys() == steps
    assert set(counted.values()) == {"0"}
