"""One real server for most tests of this folder, and the chain in process to compare it with."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tritrack.service.client import TrackFinder
    from tritrack.service.protocol import StepStatistics
    from tritrack.service.server import Server
    from tritrack.stages.pipeline import Pipeline


def draw_hits(n_hits: int, *, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phi, z = rng.uniform(-np.pi, np.pi, n_hits), rng.uniform(-1000, 1000, n_hits)
    r = rng.choice([32, 72, 116, 172, 260, 360, 500, 660, 820, 1020], n_hits)
    return np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1).astype(np.float32)


COUNTED = re.compile(r'^tritrack_host_bytes_total\{stage="(\w+)"\} (\d+)$', re.MULTILINE)


@pytest.fixture(scope="session")
def host_bytes() -> Callable[[Server], dict[str, int]]:
    """What each step of a server has copied from a GPU to the host so far: ``host_bytes(server)``."""

    def read(server: Server) -> dict[str, int]:
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
            return {step: int(count) for step, count in COUNTED.findall(answer.read().decode())}

    return read


@pytest.fixture(scope="session")
def account_of() -> Callable[[TrackFinder], tuple[StepStatistics, ...]]:
    """Give the server's account of a finder's steps, once it stands still: a step reports only after it has answered."""

    def read(finder: TrackFinder) -> tuple[StepStatistics, ...]:
        account = finder.statistics()
        while True:
            time.sleep(0.1)
            earlier, account = account, finder.statistics()
            if account == earlier:
                return account

    return read


@pytest.fixture(scope="session")
def hits_of() -> Callable[..., np.ndarray]:
    """Hits spread over the cylinders of a barrel: ``hits_of(n_hits, seed=...)``."""
    return draw_hits


@pytest.fixture(scope="session")
def repository(small_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tritrack.ensemble_repo.render import render_repository

    out = tmp_path_factory.mktemp("served") / "model_repository"
    render_repository(engines=small_engines, out=out, server="embedded", device="cpu", threads=2)
    return out


@pytest.fixture(scope="session")
def chain(small_engines: Path) -> Pipeline:
    from tritrack.stages.pipeline import Pipeline

    return Pipeline.load(small_engines, threads=2)


@pytest.fixture(scope="session")
def make_server(repository: Path) -> Callable[[], Server]:
    """Return a server that is not started yet."""
    pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")
    from tritrack.service.server import Server

    return lambda: Server(repository)


@pytest.fixture(scope="session")
def server(make_server: Callable[[], Server]) -> Iterator[Server]:
    """Return a server that runs for the whole session; tests leave it as it is."""
    with make_server() as running:
        yield running
