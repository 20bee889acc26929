"""Loads on a real server: what is sent is answered and counted, and what goes wrong is counted by its kind."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tritrack.bench.load import LoadError, Plan, closed_loop, open_loop, run_plan
from tritrack.bench.load_generator.figures import LATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tritrack.service.server import Server
    from tritrack.stages.pipeline import Pipeline

    HitsOf = Callable[..., np.ndarray]

# Of the small model.
STEPS = ("embedding", "graph_fast", "filter_balanced", "gnn", "labelling_balanced")


@pytest.fixture
def events(hits_of: HitsOf) -> list[np.ndarray]:
    return [hits_of(n_hits, seed=n_hits) for n_hits in (300, 0, 500)]


@pytest.fixture
def nobody() -> str:
    """HOST:PORT where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"


def test_closed_loop(server: Server, events: list[np.ndarray]) -> None:
    load = closed_loop(server.url, events=events, n_clients=3, n_requests=30, warm_up=5, pid=server.pid)
    assert (load.loop, load.n_clients, load.rate, load.late_share, load.n_held) == (
        "closed",
        3,
        None,
        None,
        None,
    )
    assert (load.n_sent, load.n_answered, load.n_hits) == (30, 30, 10 * 800)
    assert load.errors.first == ()
    assert load.events_per_s == pytest.approx(30 / load.seconds)
    assert load.hits_per_s == pytest.approx(8000 / load.seconds)
    latency = load.latency
    assert latency.n == 30
    assert latency.p50 is not None
    assert latency.mean is not None
    assert latency.max is not None
    assert 0 < latency.p50 <= latency.max < load.seconds
    assert latency.p95 is None  # of so few
    # Little's law for clients that do not think: all three have a request on its way, but for the last ones.
    assert 1.5 < latency.mean * load.events_per_s <= 3
    # The warm-up is in none of the counts.
    assert [(step.name, step.count) for step in load.steps] == [(name, 30) for name in STEPS]
    for step in load.steps:
        assert step.compute is not None
        assert 0 < step.compute < latency.max
    assert load.process is not None
    assert load.process.n_processes > len(STEPS)
    assert load.process.cores >= 0  # the system counts steps of 10 ms
    assert load.process.peak_bytes > 50e6
    assert 0 < load.generator_cores < 1


def test_a_duration_ends_a_closed_loop(server: Server, events: list[np.ndarray]) -> None:
    load = closed_loop(server.url, events=events, n_clients=2, duration=0.3, model="track_finder_fast")
    assert load.seconds >= 0.3
    assert load.n_sent == load.n_answered > 2
    assert any("process id" in sentence for sentence in load.absent)


def test_open_loop(server: Server, events: list[np.ndarray]) -> None:
    load = open_loop(server.url, events=events, rate=40.0, seed=2, n_requests=20)
    assert (load.loop, load.rate, load.seed, load.max_in_flight, load.n_held) == ("open", 40.0, 2, None, None)
    assert load.n_sent == load.n_answered == 20
    assert load.late_share is not None
    assert load.late_max is not None
    assert load.saturated == (load.late_share > 0.01 or load.generator_cores > 0.7)
    assert (load.late_max > LATE) == (load.late_share > 0)


def test_errors_are_counted_by_kind(server: Server, nobody: str, hits_of: HitsOf) -> None:
    ok, over = hits_of(100), np.zeros((5001, 3), dtype=np.float32)
    load = closed_loop(server.url, events=[ok, over], n_clients=2, n_requests=10, warm_up=0)
    assert (load.n_sent, load.n_answered, load.latency.n, load.n_hits) == (10, 5, 5, 500)
    assert (load.errors.refused, load.errors.unavailable, load.errors.timeout, load.errors.other) == (
        5,
        0,
        0,
        0,
    )
    (first,) = load.errors.first
    assert first.kind == "refused"
    assert "5001 hits, the model's limit max_hits is 5000" in first.message

    load = closed_loop(nobody, events=[ok], n_clients=2, n_requests=4)
    assert (load.n_answered, load.errors.unavailable, load.events_per_s) == (0, 4, 0)
    assert load.steps == ()
    assert any("gave no statistics" in sentence for sentence in load.absent)

    # A step is a model of the same server that gives no tracks.
    load = closed_loop(server.url, events=[ok], n_clients=1, n_requests=2, model="embedding", warm_up=0)
    assert (load.n_answered, load.errors.other) == (0, 2)
    assert "TRACK_LABEL" in load.errors.first[0].message


def test_the_header_is_what_the_server_tells(
    server: Server, chain: Pipeline, events: list[np.ndarray]
) -> None:
    plan = Plan(model="track_finder_fast", n_clients=(1,), n_requests=2)
    result = run_plan(server.url, plan, events=events, tell=lambda _: None)
    header = result.header
    assert (header.model, header.card_sha256) == (chain.card.name, chain.card.hash)
    assert (header.working_point, header.threads) == ("fast", 2)
    assert [(step.instances, step.threads) for step in result.served.steps] == [(1, 2)] * 5
    assert (result.n_events, result.n_hits) == (3, 800)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_requests": 1, "events": []}, "events: none given"),
        ({}, "duration or n_requests: one of the two wanted"),
        ({"n_requests": 1, "duration": 1.0}, "duration or n_requests: one of the two wanted"),
        ({"duration": 0.0}, "duration: 0 s given, above 0 wanted"),
        ({"n_requests": 0}, "n_requests: 0 given, at least 1 wanted"),
        ({"n_requests": 1, "n_clients": 0}, "n_clients: 0 given, at least 1 wanted"),
        ({"n_requests": 1, "warm_up": -1}, "warm_up: -1 given, at least 0 wanted"),
    ],
)
def test_loads_that_cannot_be(nobody: str, options: dict, sentence: str) -> None:
    with pytest.raises(LoadError, match=f"^{sentence}$"):
        closed_loop(nobody, **({"events": [np.zeros((1, 3), np.float32)], "n_clients": 1} | options))


def test_a_rate_is_above_0(nobody: str) -> None:
    with pytest.raises(LoadError, match=r"^rate: 0 given, above 0 wanted$"):
        open_loop(nobody, events=[np.zeros((1, 3), np.float32)], rate=0.0, n_requests=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_clients": (1, 0)}, "n_clients: 0 given, at least 1 wanted"),
        ({"rates": (1000.0, 0.0)}, "rate: 0 given, above 0 wanted"),
        ({"rates": (1000.0, 1e-6)}, "rate: at 1e-06 a second no event is due within 1 s; .*"),
    ],
)
def test_all_loads_are_checked_before_the_first(nobody: str, change: dict, sentence: str) -> None:
    """The server is not even asked what it serves."""
    with pytest.raises(LoadError, match=f"^{sentence}$"):
        run_plan(
            nobody, Plan(duration=1.0, **change), events=[np.zeros((1, 3), np.float32)], tell=pytest.fail
        )
