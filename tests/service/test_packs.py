"""Several events in one request, through a real server: the answers are those of the events one by one."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritrack.service.aio import AsyncTrackFinder
from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError
from tritrack.service.protocol import make_packs
from tritrack.stages.contract import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tritrack.service.server import Server
    from tritrack.stages.pipeline import Pipeline

    HitsOf = Callable[..., np.ndarray]

SIZES = (900, 0, 10, 400, 1, 700, 0, 200)


@pytest.fixture(scope="module")
def finder(server: Server) -> Iterator[TrackFinder]:
    with TrackFinder(server.url, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="module")
def events(hits_of: HitsOf) -> list[np.ndarray]:
    return [hits_of(n_hits, seed=i) for i, n_hits in enumerate(SIZES)]


@pytest.fixture
def asked(finder: TrackFinder, account_of: Callable[..., Any]) -> Callable[[], int]:
    """How many requests the ensemble's first step has taken."""
    return lambda: account_of(finder)[0].count


@pytest.mark.parametrize(
    ("pack_hits", "sizes"),
    [
        (None, [[900], [0], [10], [400], [1], [700], [0], [200]]),
        (1, [[900], [0], [10], [400], [1], [700], [0], [200]]),
        (411, [[900], [0, 10, 400], [1], [700], [0, 200]]),
        (1000, [[900, 0, 10], [400, 1], [700, 0, 200]]),
        (10_000, [list(SIZES)]),
    ],
)
def test_events_are_packed_by_their_hits(
    events: list[np.ndarray], pack_hits: int | None, sizes: list[list[int]]
) -> None:
    packs = list(make_packs(events, pack_hits=pack_hits))
    assert [[len(event.hits) for event in pack.events] for pack in packs] == sizes
    names = [event.name for pack in packs for event in pack.events]
    assert names == [f"event {i} of those sent, counted from 0" for i in range(len(SIZES))]


def test_packs_are_made_as_events_come() -> None:
    """Of an endless stream of empty events, too."""
    packs = make_packs(itertools.repeat(np.empty((0, 3), np.float32)), pack_hits=5)
    assert [len(next(packs).events) for _ in range(3)] == [5, 5, 5]


@pytest.mark.parametrize("pack_hits", [None, 1, 1000, 100_000])
def test_packed_events_have_the_labels_that_they_have_alone(
    server: Server,
    finder: TrackFinder,
    chain: Pipeline,
    events: list[np.ndarray],
    asked: Callable[[], int],
    pack_hits: int | None,
) -> None:
    expected = [chain.find(hits) for hits in events]
    before = asked()
    found = list(finder.find_many(events, pack_hits=pack_hits))
    assert asked() - before == len(list(make_packs(events, pack_hits=pack_hits)))

    async def twin() -> list[np.ndarray]:
        async with AsyncTrackFinder(server.url) as client:
            return [labels async for labels in client.find_many(events, pack_hits=pack_hits)]

    for labels, also, reference in zip(found, asyncio.run(twin()), expected, strict=True):
        np.testing.assert_array_equal(labels, reference)
        np.testing.assert_array_equal(also, reference)
        assert labels.flags.writeable
    assert max(labels.max(initial=0) for labels in expected) > 10  # the comparison means something


def test_an_event_at_fault_costs_the_others_nothing(
    server: Server, finder: TrackFinder, chain: Pipeline, events: list[np.ndarray]
) -> None:
    """One that the client sees, and one that only the server does."""
    nan, dense = np.full((2, 3), np.nan, np.float32), np.ones((300, 3), np.float32)
    sent = [*events[:3], nan, *events[3:], dense]

    async def twin() -> list[Any]:
        async with AsyncTrackFinder(server.url) as client:
            results = client.find_many(sent, pack_hits=100_000, return_refusals=True)
            return [found async for found in results]

    for found in (
        list(finder.find_many(sent, pack_hits=100_000, return_refusals=True)),
        asyncio.run(twin()),
    ):
        refused = {i: str(one) for i, one in enumerate(found) if isinstance(one, EventRefusedError)}
        assert list(refused) == [3, len(sent) - 1]
        assert refused[3].startswith("event 3 of those sent, counted from 0: HITS: 2 of 2 rows hold NaN")
        assert refused[len(sent) - 1].startswith(f"event {len(sent) - 1} of those sent, counted from 0: ")
        assert refused[len(sent) - 1].endswith("more pairs of hits than the model's limit max_pairs, 20000")
        for i, hits in enumerate(sent):
            if i not in refused:
                np.testing.assert_array_equal(found[i], chain.find(hits))
    results = finder.find_many(sent, pack_hits=100_000)
    for hits in sent[:3]:
        np.testing.assert_array_equal(next(results), chain.find(hits))
    with pytest.raises(EventRefusedError, match="event 3 of those sent"):
        next(results)


def test_events_that_are_too_much_together_are_sent_apart(
    finder: TrackFinder, chain: Pipeline, hits_of: HitsOf, asked: Callable[[], int]
) -> None:
    """By the limit of hits, which the client knows; by that of pairs, which shows in the server."""
    many, dense = hits_of(3000, seed=1), np.ones((150, 3), dtype=np.float32)
    for events in ([many, many], [dense, dense]):
        before = asked()
        for labels, hits in zip(finder.find_many(events, pack_hits=100_000), events, strict=True):
            np.testing.assert_array_equal(labels, chain.find(hits))
        assert asked() - before == (2 if events[0] is many else 3)


@pytest.mark.parametrize("pack_hits", [None, 1000, 100_000])
def test_events_that_fail_cost_those_before_them_nothing(
    server: Server, finder: TrackFinder, chain: Pipeline, events: list[np.ndarray], pack_hits: int | None
) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from events[:4]
        raise OSError("the disk is gone")

    async def one_by_one() -> None:
        async with AsyncTrackFinder(server.url) as client:
            async for labels in client.find_many(source(), pack_hits=pack_hits):
                also.append(labels)

    found: list[np.ndarray] = []
    also: list[np.ndarray] = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(finder.find_many(source(), pack_hits=pack_hits))
    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(one_by_one())
    for some in (found, also):
        assert len(some) == 4
        for labels, hits in zip(some, events, strict=False):
            np.testing.assert_array_equal(labels, chain.find(hits))


def test_pack_hits_is_at_least_one(finder: TrackFinder) -> None:
    with pytest.raises(ValueError, match="pack_hits: 0 given"):
        finder.find_many([], pack_hits=0)


WILD_HITS = hnp.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(3)), elements=st.floats(width=32))
WILD_OFFSETS = hnp.arrays(np.int64, st.integers(0, 4), elements=st.integers(-1, 21))


def outcome(find: Callable[[], np.ndarray]) -> list[int] | str:
    """Return the labels, or what the refusal says."""
    try:
        labels: list[int] = find().tolist()
    except ContractError as error:
        return str(error)
    except InferenceServerException as error:
        sentence = str(error.message()).removeprefix("in ensemble 'track_finder', ")
        return sentence if error.status() == "StatusCode.INVALID_ARGUMENT" else str(error.status())
    return labels


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(hits=WILD_HITS, offsets=WILD_OFFSETS, fits=st.booleans())
def test_any_pack_fares_as_in_the_chain(
    server: Server, chain: Pipeline, hits: np.ndarray, offsets: np.ndarray, fits: bool
) -> None:
    """By plain tritonclient: the same labels, or a refusal in the same words."""
    if fits:
        offsets = np.sort(np.concatenate([[0], offsets.clip(0, len(hits)), [len(hits)]]))
    inputs = []
    for name, array in (("HITS", hits), ("EVENT_OFFSETS", offsets)):
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    with InferenceServerClient(server.url) as client:
        found = outcome(lambda: client.infer("track_finder", inputs).as_numpy("TRACK_LABEL"))
    assert found == outcome(lambda: chain.find(hits, event_offsets=offsets))
