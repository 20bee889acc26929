"""What is said of a load that has ended."""

from __future__ import annotations

import pytest

pytest.importorskip("tritonclient.grpc")

from tritrack.bench.load_generator.wire import Failure

LATE = Failure(kind="timeout", message="late")


@pytest.mark.parametrize(
    ("n_answered", "n_failed", "p50", "p95", "among"),
    [
        (200, 0, 0.1005, 0.19005, ""),
        (192, 8, 0.1005, 0.19005, ""),  # as if the slowest had been waited for
        (188, 12, 0.1005, None, "p95"),
        (191, 10, 0.101, 0.191, ""),  # the last answer itself
        (94, 6, 0.0505, None, ""),  # too few for a p95 anyway
        (80, 120, None, None, "p50, p95"),
        (0, 20, None, None, "p50"),
    ],
)
def test_a_request_without_an_answer_waits_longest(open_load, n_answered, n_failed, p50, p95, among):
    """1 ms, 2 ms, 3 ms, ... and the slowest ones lost."""
    seconds = [1e-3 * (number + 1) for number in range(n_answered)]
    load = open_load(rate=1.0, latencies=seconds, queues=[0.0], failures=[LATE] * n_failed)
    assert (load.latency.p50, load.latency.p95) == (
        None if p50 is None else pytest.approx(p50),
        None if p95 is None else pytest.approx(p95),
    )
    assert load.latency.n == load.n_answered == n_answered
    assert load.latency.max == (max(seconds) if seconds else None)
    assert load.absent == ((f"latency {among}: among the requests without an answer",) if among else ())


def test_a_server_that_started_anew_tells_no_times(open_load):
    assert [step.queue for step in open_load(rate=1.0, latencies=[1.0], queues=[0.5]).steps] == [0.5]
    load = open_load(rate=1.0, latencies=[1.0], queues=[0.5], counted=40)
    assert load.steps == ()
    assert load.absent == ("the server's times: it gave no statistics, or started anew",)
