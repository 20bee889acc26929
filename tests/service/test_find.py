"""Hits in, labels out, through a real server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tritrack.events.event import Event
from tritrack.service.aio import AsyncTrackFinder
from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError, MismatchError, UnavailableError
from tritrack.stages.contract import CONTRACT_VERSION, NO_TRACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tritrack.service.server import Server
    from tritrack.stages.card import WorkingPointName
    from tritrack.stages.pipeline import Pipeline

    HitsOf = Callable[..., np.ndarray]

# Of the small model: balanced has the graph of fast, best its filter's cut.
STEPS = ("embedding", "graph_fast", "filter_balanced", "gnn", "labelling_balanced")


@pytest.fixture(scope="module")
def finder(server: Server) -> Iterator[TrackFinder]:
    with TrackFinder(server.url, timeout=30.0) as client:
        yield client


def numbered(hits: np.ndarray, event_id: int) -> Event:
    n_hits = len(hits)
    return Event(
        event_id=event_id,
        hits=hits,
        hit_id=np.arange(n_hits, dtype=np.int64),
        modules=np.zeros((n_hits, 3), dtype=np.int32),
    )


def tracks_of(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == track).tolist()) for track in set(labels) - {NO_TRACK}}


@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 100, 1000, 2000])
def test_labels_equal_the_chains(finder: TrackFinder, chain: Pipeline, hits_of: HitsOf, n_hits: int) -> None:
    hits = hits_of(n_hits, seed=n_hits)
    labels = finder.find(hits)
    np.testing.assert_array_equal(labels, chain.find(hits))
    assert labels.dtype == np.int64
    assert labels.flags.writeable
    if n_hits < 3:
        assert labels.tolist() == [NO_TRACK] * n_hits
    if n_hits >= 1000:
        assert labels.max() > 10  # the comparison means something


@pytest.mark.parametrize("point", ["fast", "balanced", "best"])
def test_labels_of_each_working_point_equal_the_chains(
    server: Server, chain: Pipeline, hits_of: HitsOf, point: WorkingPointName
) -> None:
    events = [hits_of(n_hits, seed=n_hits) for n_hits in (0, 5, 1000, 2000)]
    expected = [chain.at(point).find(hits) for hits in events]

    async def twin() -> list[np.ndarray]:
        async with AsyncTrackFinder(server.url, working_point=point) as finder:
            return [labels async for labels in finder.find_many(events)]

    with TrackFinder(server.url, working_point=point) as finder:
        info = finder.server_info()
        found = list(finder.find_many(events))
    assert (info.working_point, info.model) == (point, f"track_finder_{point}")
    assert info.metrics == chain.card.point(point).metrics
    for labels, also, reference in zip(found, asyncio.run(twin()), expected, strict=True):
        np.testing.assert_array_equal(labels, reference)
        np.testing.assert_array_equal(also, reference)
    if point != chain.working_point:
        assert (expected[-1] != chain.find(events[-1])).any()  # the comparison means something


def test_a_working_point_that_the_server_lacks(server: Server, hits_of: HitsOf) -> None:
    quick: Any = "quick"
    sentence = rf"^{server.url} has no working point quick, it has fast, balanced, best$"

    async def twin() -> None:
        async with AsyncTrackFinder(server.url, working_point=quick) as finder:
            await finder.find(hits_of(3))

    with (
        TrackFinder(server.url, working_point=quick) as finder,
        pytest.raises(UnavailableError, match=sentence),
    ):
        finder.find(hits_of(3))
    with pytest.raises(UnavailableError, match=sentence):
        asyncio.run(twin())


def test_hits_at_one_place_and_isolated_hits(finder: TrackFinder, chain: Pipeline, hits_of: HitsOf) -> None:
    far = np.array([[32, 0, 0], [-1000, 0, 2900], [0, 500, -2900]], dtype=np.float32)
    hits = np.concatenate([np.repeat(hits_of(3), 5, axis=0), far])
    np.testing.assert_array_equal(finder.find(hits), chain.find(hits))


def test_the_layout_in_memory_does_not_matter(finder: TrackFinder, hits_of: HitsOf) -> None:
    hits = hits_of(500)
    expected = finder.find(hits)
    wide = np.zeros((1000, 6), dtype=np.float32)
    wide[::2, ::2] = hits
    for same in (np.asfortranarray(hits), wide[::2, ::2]):
        np.testing.assert_array_equal(finder.find(same), expected)


def test_permuted_hits_give_the_same_tracks(finder: TrackFinder, hits_of: HitsOf) -> None:
    hits = hits_of(1000)
    order = np.random.default_rng(5).permutation(len(hits))
    labels = np.empty(len(hits), dtype=np.int64)
    labels[order] = finder.find(hits[order])
    tracks = tracks_of(finder.find(hits))
    assert len(tracks) > 10
    # Scores may differ in the last bit when pairs are in another order; a pair at a cut may then flip.
    assert len(tracks & tracks_of(labels)) >= 0.99 * len(tracks)


def test_many_events_come_back_in_order(finder: TrackFinder, chain: Pipeline, hits_of: HitsOf) -> None:
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate([900, 0, 10, 400, 1, 700, 3, 200])]
    expected = [chain.find(hits) for hits in events]
    for in_flight in (1, 3, 20):
        found = list(finder.find_many(events, in_flight=in_flight))
        assert len(found) == len(expected)
        for labels, reference in zip(found, expected, strict=True):
            np.testing.assert_array_equal(labels, reference)


def test_events_are_read_as_they_are_needed(finder: TrackFinder, hits_of: HitsOf) -> None:
    read = []

    def source() -> Iterator[np.ndarray]:
        for i in range(10):
            read.append(i)
            yield hits_of(10, seed=i)

    results = finder.find_many(source(), in_flight=2)
    next(results)
    assert len(read) <= 3
    results.close()  # type: ignore[attr-defined]


def test_asyncio_finds_the_same(server: Server, chain: Pipeline, hits_of: HitsOf) -> None:
    events = [numbered(hits_of(n_hits, seed=n_hits), n_hits) for n_hits in (500, 0, 1, 50, 300)]

    async def main() -> tuple[list[np.ndarray], Any, Any]:
        async with AsyncTrackFinder(server.url, timeout=30.0) as finder:
            found = [labels async for labels in finder.find_many(events, in_flight=3)]
            np.testing.assert_array_equal(await finder.find(events[0]), found[0])
            with pytest.raises(EventRefusedError, match="event 7: HITS"):
                await finder.find(numbered(np.full((1, 3), np.inf, dtype=np.float32), 7))
            return found, await finder.server_info(), await finder.statistics()

    found, info, statistics = asyncio.run(main())
    for event, labels in zip(events, found, strict=True):
        np.testing.assert_array_equal(labels, chain.find(event.hits))
    assert info.fits
    assert tuple(step.name for step in statistics) == STEPS


def test_one_client_serves_several_threads(finder: TrackFinder, chain: Pipeline, hits_of: HitsOf) -> None:
    hits = [hits_of(200, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(finder.find, hits))
    for labels, sent in zip(found, hits, strict=True):
        np.testing.assert_array_equal(labels, chain.find(sent))


@pytest.mark.parametrize(
    ("hits", "sentence"),
    [
        (
            np.zeros((4, 3)),
            r"dtype is float64, the contract wants float32 .* convert with astype\('float32'\)",
        ),
        (np.zeros((4, 2), dtype=np.float32), r"axis 1 \(n_columns\) is 2 long, 3 wanted"),
        (np.zeros(12, dtype=np.float32), r"shape is \[12\]"),
        (np.array([[0, 0, 0], [0, np.nan, 0], [np.inf, 0, 0]], dtype=np.float32), "2 of 3 rows .* rows 1, 2"),
        (np.zeros((5001, 3), dtype=np.float32), "5001 hits, the model's limit max_hits is 5000"),
        # All at one place: every pair is a candidate, and only the server knows how many that makes.
        (
            np.zeros((1000, 3), dtype=np.float32),
            "graph has more pairs of hits than the model's limit max_pairs, 20000",
        ),
    ],
)
def test_bad_hits_are_refused_by_name(finder: TrackFinder, hits: np.ndarray, sentence: str) -> None:
    with pytest.raises(EventRefusedError, match=rf"^event 41: .*{sentence}") as caught:
        finder.find(numbered(hits, 41))
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__  # no traceback of the transport's


def test_a_bad_event_stops_the_rest_at_its_place(finder: TrackFinder, hits_of: HitsOf) -> None:
    bad = hits_of(5)
    bad[2, 0] = np.nan
    results = finder.find_many([hits_of(5), hits_of(6), bad, hits_of(7)], in_flight=4)
    assert [len(next(results)), len(next(results))] == [5, 6]
    with pytest.raises(EventRefusedError, match=r"^event 2 of those sent, counted from 0: HITS: .* rows 2"):
        next(results)


def test_refusals_can_stand_in_the_place_of_labels(
    finder: TrackFinder, server: Server, hits_of: HitsOf
) -> None:
    bad = hits_of(5)
    bad[2, 0] = np.nan
    events = [hits_of(5), bad, hits_of(7)]

    async def run() -> list[object]:
        async with AsyncTrackFinder(server.url) as twin:
            return [found async for found in twin.find_many(events, in_flight=2, return_refusals=True)]

    for found in (list(finder.find_many(events, in_flight=2, return_refusals=True)), asyncio.run(run())):
        assert [type(one) for one in found] == [np.ndarray, EventRefusedError, np.ndarray]
        assert "rows 2" in str(found[1])


def test_in_flight_is_at_least_one(finder: TrackFinder) -> None:
    with pytest.raises(ValueError, match="in_flight: 0 given"):
        finder.find_many([], in_flight=0)


def test_the_server_says_what_it_serves(finder: TrackFinder, chain: Pipeline, server: Server) -> None:
    info = finder.server_info()
    assert info.contract_version == CONTRACT_VERSION
    assert info.fits
    assert (info.card_name, info.card_sha256) == (chain.card.name, chain.card.hash)
    assert (info.n_columns, info.max_hits, info.max_pairs, info.max_edges) == (3, 5000, 20_000, 15_000)
    assert info.steps == STEPS
    assert (info.working_point, info.working_points) == ("balanced", ("fast", "balanced", "best"))
    assert info.url == server.url
    assert info.server_version


def test_a_model_that_is_not_loaded_is_named(server: Server, hits_of: HitsOf) -> None:
    for find in (TrackFinder.find, lambda finder, _: finder.statistics()):
        with (
            TrackFinder(server.url, model="track_findr") as finder,
            pytest.raises(UnavailableError, match=rf"{server.url} has no such model loaded .*track_findr"),
        ):
            find(finder, hits_of(3))


def test_the_server_counts_its_work(
    finder: TrackFinder, hits_of: HitsOf, account_of: Callable[..., Any]
) -> None:
    before = account_of(finder)
    finder.find(hits_of(100))
    with pytest.raises(EventRefusedError):
        finder.find(np.zeros((1000, 3), dtype=np.float32))
    after = account_of(finder)
    assert tuple(step.name for step in after) == STEPS
    counts = {new.name: new.count - old.count for old, new in zip(before, after, strict=True)}
    assert counts == dict(zip(STEPS, (2, 2, 1, 1, 1), strict=True))
    assert all(new.compute_ns > old.compute_ns for old, new in zip(before, after, strict=True))
    assert all(0 < step.moved_ns < step.compute_ns for step in after)


def test_another_model_is_not_mistaken_for_a_track_finder(server: Server, hits_of: HitsOf) -> None:
    with TrackFinder(server.url, model="gnn") as client, pytest.raises(MismatchError, match="gnn"):
        client.find(hits_of(3))
    with (
        TrackFinder(server.url, model="nosuch", retries=0) as client,
        pytest.raises(UnavailableError, match="nosuch"),
    ):
        client.find(hits_of(3))
