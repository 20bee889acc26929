"""What the clients ask of a server and make of its answers, beside a small gRPC server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")  # the small server serves rules as well

from tritrack.bench.load import closed_loop
from tritrack.events.event import Event
from tritrack.installed import describe_server
from tritrack.service.access import Access
from tritrack.service.aio import AsyncTrackFinder
from tritrack.service.client import TrackFinder
from tritrack.service.errors import AccessError, MismatchError, ModelNotFoundError, UnavailableError

Start = Callable[..., Any]
Find = Callable[..., np.ndarray]

HITS = np.zeros((3, 3), dtype=np.float32)


def find_sync(url: str, **options: Any) -> np.ndarray:
    with TrackFinder(url, retries=0, **options) as finder:
        return finder.find(HITS)


def find_async(url: str, **options: Any) -> np.ndarray:
    async def find() -> np.ndarray:
        async with AsyncTrackFinder(url, retries=0, **options) as finder:
            return await finder.find(HITS)

    return asyncio.run(find())


both_clients = pytest.mark.parametrize("find", [find_sync, find_async])


def test_a_server_that_answers_is_not_asked_whether_it_runs(small_server: Start) -> None:
    server = small_server("track_finder", lacks="the server is going down")
    with (
        TrackFinder(server.url, retries=1) as finder,
        pytest.raises(UnavailableError, match=r"after 2 attempts \(the server is going down\)$"),
    ):
        finder.find(HITS)


@both_clients
def test_a_working_point_alone_can_be_used_by_name(small_server: Start, find: Find) -> None:
    server = small_server("track_finder_fast", "track_finder_fused_fast")
    for model in ("track_finder", "track_finder_fused"):
        assert find(server.url, model=model, working_point="fast").tolist() == [-1, -1, -1]
    assert {call.model for call in server.calls if call.name == "ModelConfig"} == {
        "track_finder_fast",
        "track_finder_fused_fast",
    }


@both_clients
@pytest.mark.parametrize("options", [{}, {"working_point": "best"}])
def test_the_models_that_are_there_are_named(
    small_server: Start, find: Find, options: dict[str, str]
) -> None:
    server = small_server("track_finder_fast", "gnn")
    asked = "track_finder_best" if options else "track_finder"
    sentence = rf"^the event: {server.url} has no such model loaded \(.*'{asked}'.*\); it has gnn, track_finder_fast$"
    with pytest.raises(ModelNotFoundError, match=sentence):
        find(server.url, **options)


@both_clients
def test_a_point_that_is_not_loaded_is_none_that_the_model_lacks(small_server: Start, find: Find) -> None:
    server = small_server("track_finder", "rule_finder")
    with pytest.raises(ModelNotFoundError, match="'track_finder_fast' is not found"):
        find(server.url, working_point="fast")
    with pytest.raises(UnavailableError, match=r"no working point quick, it has fast, balanced, best$"):
        find(server.url, working_point="quick")
    with pytest.raises(UnavailableError, match=r"no working point fast, it has none$"):
        find(server.url, model="rule_finder", working_point="fast")


@pytest.mark.parametrize("ensemble", ["track_finder", "track_finder_fused"])
def test_info_of_a_working_point_lists_the_others(small_server: Start, ensemble: str) -> None:
    server = small_server(f"{ensemble}_fast")
    facts = describe_server(server.url, model=f"{ensemble}_fast")
    assert (facts["server model"], facts["server answers with"]) == (f"{ensemble}_fast", "TRACK_LABEL")
    assert {name: point["model"] for name, point in facts["server working points"].items()} == {
        "fast": f"{ensemble}_fast",
        "balanced": f"{ensemble}_balanced is not loaded",
        "best": f"{ensemble}_best is not loaded",
    }


@both_clients
def test_the_fit_is_no_finder(small_server: Start, find: Find) -> None:
    server = small_server("track_fit")
    sentence = "the model track_fit there finds no tracks: it answers with FITTED, a finder with TRACK_LABEL$"
    with pytest.raises(MismatchError, match=sentence):
        find(server.url, model="track_fit")
    assert not any(call.name == "ModelInfer" for call in server.calls)
    with TrackFinder(server.url, model="track_fit") as fitter:
        assert fitter.fit(HITS, np.full(3, -1)).shape == (0, 8)
    assert describe_server(server.url, model="track_fit")["server answers with"] == "FITTED"


TOKEN = "Bearer a.b-c"


@both_clients
def test_headers_go_along_with_every_call(small_server: Start, find: Find) -> None:
    server = small_server("track_finder_fast")
    access = Access(headers={"Authorization": TOKEN, "x-vo": "atlas"})
    find(server.url, working_point="fast", access=access)
    with pytest.raises(ModelNotFoundError):
        find(server.url, access=access)
    assert {call.name for call in server.calls} == {
        "ServerMetadata",
        "ModelConfig",
        "ModelInfer",
        "RepositoryIndex",
    }
    for call in server.calls:
        assert (call.headers["authorization"], call.headers["x-vo"]) == (TOKEN, "atlas")
    assert TOKEN not in repr(access)


def test_a_request_has_its_events_name(small_server: Start) -> None:
    server = small_server("track_finder", "track_fit")
    events = [
        Event(event_id=number, hits=HITS, hit_id=np.arange(3), modules=np.zeros((3, 3), dtype=np.int32))
        for number in (7, 8)
    ]

    async def find() -> None:
        async with AsyncTrackFinder(server.url) as finder:
            labels = await finder.find(events[0])
            await finder.fit(events[0], labels)
            _ = [labels async for labels in finder.find_many(events, pack_hits=10)]

    asyncio.run(find())
    by_asyncio = [call.request_id for call in server.calls if call.name == "ModelInfer"]
    server.calls.clear()
    with TrackFinder(server.url) as finder:
        finder.fit(events[0], finder.find(events[0]))
        list(finder.find_many(events, pack_hits=10))
    names = [call.request_id for call in server.calls if call.name == "ModelInfer"]
    assert names == by_asyncio == ["event 7", "event 7", "the 2 events from event 7 to event 8"]


@both_clients
def test_a_server_that_speaks_tls(small_server: Start, find: Find, certificate: Path) -> None:
    server = small_server("track_finder", certificate=certificate)
    assert find(server.url, access=Access(ssl=True, root_certificates=certificate)).tolist() == [-1, -1, -1]
    for access in (Access(ssl=True), Access()):  # signed by none of the usual authorities; without TLS
        with pytest.raises(
            UnavailableError, match=r"is this its gRPC port, and does it speak TLS, or not\?$"
        ):
            find(server.url, access=access)


def test_a_load_goes_the_same_way(small_server: Start, certificate: Path) -> None:
    server = small_server("track_finder", certificate=certificate)
    access = Access(ssl=True, root_certificates=certificate, headers={"authorization": TOKEN})
    load = closed_loop(server.url, events=[HITS], n_clients=2, n_requests=4, access=access)
    assert (load.n_answered, load.errors.first) == (4, ())
    assert {call.headers["authorization"] for call in server.calls} == {TOKEN}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"headers": {"a b": "c"}}, "header 'a b': letters, digits"),
        ({"headers": {"key-bin": "c"}}, "header 'key-bin': .* no '-bin' at the end"),
        ({"headers": {"token": "c\n"}}, "header 'token': its value holds more than printable ASCII"),
        ({"root_certificates": Path("ca.pem")}, r"root_certificates: ca\.pem given without ssl"),
    ],
)
def test_what_cannot_be_sent_is_said(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AccessError, match=sentence):
        Access(**options)
