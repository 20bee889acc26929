"""Loads on a server that is none of tritrack's: it speaks KServe v2, answers one event at a time, and tells nothing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritrack.bench.load import Plan, Result, closed_loop, open_loop, run_plan, whole_turns
from tritrack.bench.load_generator.arrivals import poisson_arrivals
from tritrack.bench.result import read_result, write_result

SECONDS = 0.02
"""Time of an event."""


class Foreign(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Labels of 0 after `SECONDS`; of one hit a label too few, of two an error of its own."""

    def __init__(self):
        self.one = threading.Lock()

    def ModelInfer(self, request, context):  # noqa: N802 (the service's name)
        (hits,) = request.inputs
        assert (hits.name, hits.datatype) == ("HITS", "FP32")
        sent = np.frombuffer(request.raw_input_contents[0], dtype=np.float32).reshape(hits.shape)
        with self.one:
            time.sleep(SECONDS)
        if len(sent) == 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        n_labels = len(sent) - (len(sent) == 1)
        output = service_pb2.ModelInferResponse.InferOutputTensor(
            name="TRACK_LABEL", datatype="INT64", shape=[n_labels]
        )
        return service_pb2.ModelInferResponse(
            outputs=[output], raw_output_contents=[np.zeros(n_labels, np.int64).tobytes()]
        )


@pytest.fixture(scope="module")
def url():
    server = grpc.server(ThreadPoolExecutor(32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Foreign(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def hits_of(n_hits):
    return np.zeros((n_hits, 3), dtype=np.float32)


def test_clients_share_what_the_server_can(url):
    for n_clients in (1, 4):
        load = closed_loop(url, events=[hits_of(5), hits_of(0)], n_clients=n_clients, n_requests=20)
        assert (load.n_sent, load.n_answered, load.n_hits, load.errors.first) == (20, 20, 50, ())
        assert load.seconds >= 20 * SECONDS
        assert load.events_per_s <= 1 / SECONDS
        assert load.latency.p50 >= SECONDS
        # Little's law of clients that do not think; at the end fewer and fewer are on their way.
        assert load.latency.mean * load.events_per_s <= n_clients
        assert load.latency.mean * load.events_per_s > 0.5 * n_clients


@pytest.mark.parametrize(("n_requests", "n_events", "sent"), [(7, 3, 9), (9, 3, 9), (1, 5, 5)])
def test_each_event_is_sent_equally_often(n_requests, n_events, sent):
    assert whole_turns(n_requests, n_events) == sent


def test_latency_counts_from_when_a_request_was_due(url):
    """All are due at once: each waits for those before it, in the server or, held back, on the way to it."""
    for cap, held in ((None, None), (1, 19)):
        load = open_loop(url, events=[hits_of(3)], rate=1e6, n_requests=20, max_in_flight=cap)
        assert (load.n_answered, load.n_held) == (20, held)
        assert load.latency.max >= 20 * SECONDS
        assert load.latency.p50 >= 10 * SECONDS
        assert load.late_share is not None


def test_errors_are_counted_by_kind(url):
    load = closed_loop(url, events=[hits_of(n) for n in (1, 2, 3)], n_clients=1, n_requests=6, warm_up=0)
    assert (load.n_answered, load.errors.other) == (2, 4)
    assert "TRACK_LABEL of shape [[0]], [1] wanted" in load.errors.first[0].message
    load = open_loop(url, events=[hits_of(3)], rate=1e6, n_requests=3, timeout=0.001, warm_up=0)
    assert (load.n_answered, load.errors.timeout, load.events_per_s) == (0, 3, 0)
    assert load.latency.mean is None


def test_a_foreign_server_tells_nothing(url, tmp_path):
    lines = []
    plan = Plan(model="theirs", n_clients=(1, 2), rates=(20.0,), n_requests=4)
    result = run_plan(url, plan, events=[hits_of(3), hits_of(2)], tell=lines.append)
    header = result.header
    assert (header.model, header.card_sha256, header.working_point, header.threads) == (None,) * 4
    assert (result.n_events, result.n_hits, result.served.steps) == (2, 5, ())
    for load in result.loads:
        assert load.absent == (
            "the server's processor, memory and GPU: its process id was not given",
            "the server's times: it gave no statistics, or started anew",
        )
    rates = [load.events_per_s for load in result.loads]
    assert result.ratios() == {
        "events_per_s, 2 clients over 1": rates[1] / rates[0],
        "events_per_s over rate 20": pytest.approx(
            rates[2] * poisson_arrivals(20, seed=1, n_requests=4)[-1] / 4
        ),
    }
    assert [line.partition(":")[0] for line in lines] == [
        "1 client",
        "2 clients",
        "20 events due in a second",
    ]
    assert all("no answer: 2 other" in line for line in lines)
    write_result(result, tmp_path / "load.json")
    assert read_result(tmp_path / "load.json", Result) == result
