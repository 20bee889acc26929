"""What becomes of many events where a server has trouble with one of them, or ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tritrack.service.aio import AsyncTrackFinder
from tritrack.service.client import TrackFinder
from tritrack.service.errors import NoMemoryError, RequestTimeoutError, ServiceError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = np.ones((4, 3), dtype=np.float32)
Outcome = tuple[list[Any], ServiceError | None]


def one_by_one(url: str, sent: list[np.ndarray], **options: Any) -> Outcome:
    found: list[Any] = []
    try:
        with TrackFinder(url, timeout=1.0, retries=1) as finder:
            found.extend(finder.find_many(sent, **options))
    except ServiceError as error:
        return found, error
    return found, None


def in_asyncio(url: str, sent: list[np.ndarray], **options: Any) -> Outcome:
    found: list[Any] = []

    async def find() -> None:
        async with AsyncTrackFinder(url, timeout=1.0, retries=1) as finder:
            async for one in finder.find_many(sent, **options):
                found.append(one)

    try:
        asyncio.run(find())
    except ServiceError as error:
        return found, error
    return found, None


CLIENTS = pytest.mark.parametrize("find", [one_by_one, in_asyncio])


@CLIENTS
@pytest.mark.parametrize("pack_hits", [None, 1000])
@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("too long", RequestTimeoutError, "no answer from .* within 1 s"),
        (
            "no memory",
            NoMemoryError,
            ".* could not take it after 2 attempts: gnn: no memory is left for this event",
        ),
    ],
)
def test_an_event_that_the_server_cannot_answer_costs_the_others_nothing(
    moody_server: Any,
    find: Callable[..., Outcome],
    pack_hits: int | None,
    how: str,
    error: type[ServiceError],
    sentence: str,
) -> None:
    sent = [EVENT, EVENT, moody_server.spoil(EVENT, how), EVENT]
    found, ended = find(moody_server.url, sent, pack_hits=pack_hits, return_refusals=True)
    assert ended is None
    assert [type(one) for one in found] == [np.ndarray, np.ndarray, error, np.ndarray]
    with pytest.raises(error, match=f"^event 2 of those sent, counted from 0: {sentence}"):
        raise found[2]
    found, ended = find(moody_server.url, sent, pack_hits=pack_hits)
    assert [type(one) for one in (*found, ended)] == [np.ndarray, np.ndarray, error]


@CLIENTS
@pytest.mark.parametrize(("how", "error"), [("gone", UnavailableError), ("silent", RequestTimeoutError)])
def test_a_server_that_answers_nothing_ends_it(
    moody_server: Any, find: Callable[..., Outcome], how: str, error: type[ServiceError]
) -> None:
    sent = [EVENT, moody_server.spoil(EVENT, how), EVENT, EVENT]
    found, ended = find(moody_server.url, sent, in_flight=1, return_refusals=True)
    assert type(ended) is error
    # A server may be slow with one event; that it does not answer at all shows with the next.
    left_out = [RequestTimeoutError] if how == "silent" else []
    assert [type(one) for one in found] == [np.ndarray, *left_out]
