"""The rule-based finder and the helix fit beside the ensemble on one server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritrack.ensemble_repo.plan import RULE_FINDER
from tritrack.ensemble_repo.render import render_repository
from tritrack.installed import describe_server
from tritrack.physics.fit import fit_tracks
from tritrack.rules.finder import RuleFinder
from tritrack.service.aio import AsyncTrackFinder
from tritrack.service.client import TrackFinder
from tritrack.service.errors import EventRefusedError, UnavailableError
from tritrack.service.server import Server
from tritrack.stages.card import ENSEMBLE
from tritrack.stages.contract import FIT_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tritrack.rules.windows import Rules

MODEL = RULE_FINDER.name


@pytest.fixture(scope="module")
def url(small_engines: Path, rules_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("ruled") / "model_repository"
    render_repository(
        engines=small_engines,
        out=out,
        server="embedded",
        device="cpu",
        threads=1,
        rules=rules_folder,
    )
    with Server(out, models=(ENSEMBLE, MODEL, FIT_STEP.name)) as running:
        yield running.url


def test_a_server_of_rules_alone(
    rules_folder: Path, barrel_rules: Rules, tmp_path: Path, draw_helices: Callable[..., Any]
) -> None:
    out, options = tmp_path / "model_repository", {"server": "embedded", "device": "cpu", "threads": 1}
    for _ in range(2):  # it is known as a repository, and replaced
        render_repository(engines=None, out=out, rules=rules_folder, **options)
    assert {path.name for path in out.iterdir()} == {MODEL, FIT_STEP.name}
    hits = draw_helices(n=40, pt=2.0, seed=40, scattering=True).hits
    with Server(out) as running, TrackFinder(running.url, model=MODEL) as finder:
        labels = finder.find(hits)
        np.testing.assert_array_equal(labels, RuleFinder(barrel_rules).find(hits))
        assert len(finder.fit(hits, labels)) == labels.max() + 1 > 10


@pytest.fixture(scope="module")
def events(draw_helices: Callable[..., object]) -> list[np.ndarray]:
    """Events of few helices and of many, of fewer hits than a track has, and without any."""
    counts = [40, 0, 300, 5, 80]
    some = [draw_helices(n=n, pt=2.0, seed=n, scattering=True).hits if n else None for n in counts]
    return [
        np.zeros((0, 3), np.float32) if hits is None else hits[: 2 if len(hits) == 50 else None]
        for hits in some
    ]


def test_the_server_finds_what_the_process_finds(
    url: str, barrel_rules: Rules, events: list[np.ndarray]
) -> None:
    finder = RuleFinder(barrel_rules)
    with TrackFinder(url, model=MODEL) as remote:
        for hits in events:
            expected = finder.find(hits)
            np.testing.assert_array_equal(remote.find(hits), expected)
            assert len(hits) < 100 or expected.max() > 30  # the comparison means something


def test_a_pack_is_found_event_by_event(
    url: str, barrel_rules: Rules, events: list[np.ndarray], account_of: Callable[..., Any]
) -> None:
    finder = RuleFinder(barrel_rules)
    with TrackFinder(url, model=MODEL) as remote:
        before = account_of(remote)[0].count
        found = list(remote.find_many(events, pack_hits=4500))
        assert account_of(remote)[0].count - before == 1
    for labels, hits in zip(found, events, strict=True):
        np.testing.assert_array_equal(labels, finder.find(hits))


def test_one_bad_event_of_a_pack_is_refused_alone(
    url: str, barrel_rules: Rules, events: list[np.ndarray]
) -> None:
    """The client would see it before it sends it, so a request of one's own carries it."""
    hits = np.concatenate([events[0], np.full((2, 3), np.inf, np.float32), events[4]])
    offsets = np.cumsum([0, len(events[0]), 2, len(events[4])])
    status, message = refusal(url, HITS=hits, EVENT_OFFSETS=offsets)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith("event 1 of the pack, counted from 0: HITS: 2 of 2 rows hold NaN or infinity")
    with TrackFinder(url, model=MODEL) as remote:
        sent = [events[0], hits[len(events[0]) :][:2], events[4]]
        found = list(remote.find_many(sent, pack_hits=4000, return_refusals=True))
    assert isinstance(found[1], EventRefusedError)
    finder = RuleFinder(barrel_rules)
    for event in (0, 2):
        np.testing.assert_array_equal(found[event], finder.find(sent[event]))


def wire(**tensors: np.ndarray) -> list[InferInput]:
    return [
        InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
        for name, array in tensors.items()
    ]


def refusal(url: str, model: str = MODEL, **tensors: np.ndarray) -> tuple[str, str]:
    """Return the status and the sentence with which the model refuses a request."""
    with InferenceServerClient(url) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model, wire(**tensors), client_timeout=30.0)
    return caught.value.status(), caught.value.message()


@pytest.mark.parametrize(
    ("hits", "sentence"),
    [
        (np.full((4, 3), np.nan, dtype=np.float32), "4 of 4 rows hold NaN or infinity: rows 0, 1, 2, 3"),
        (np.full((4, 3), 2e5, dtype=np.float32), "4 of 4 rows lie more than 100000 mm away"),
        (np.zeros((5001, 3), dtype=np.float32), "5001 hits, the model's limit max_hits is 5000"),
        (np.zeros((4, 3)), "FP64"),
        (np.zeros((4, 2), dtype=np.float32), "shape"),
    ],
)
def test_what_it_does_not_take_is_said(url: str, hits: np.ndarray, sentence: str) -> None:
    status, message = refusal(url, HITS=hits)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert sentence in message


@pytest.mark.parametrize("model", [ENSEMBLE, MODEL])
def test_found_tracks_are_fitted(url: str, barrel_rules: Rules, events: list[np.ndarray], model: str) -> None:
    with TrackFinder(url, model=model) as finder:
        for hits in (*events[:2], events[4]):
            labels = finder.find(hits)
            fitted = finder.fit(hits, labels)
            expected = fit_tracks(
                hits=hits, labels=labels, layers=barrel_rules.layers, field=barrel_rules.field
            )
            np.testing.assert_array_equal(fitted, expected.fitted)
            fitted[:] = 0  # it is the caller's
    assert np.count_nonzero(np.isfinite(expected.fitted[:, 0])) > 10  # the comparison means something


def test_the_asyncio_client_fits_too(url: str, events: list[np.ndarray]) -> None:
    labels = np.repeat(np.arange(40), 10)

    async def fit() -> np.ndarray:
        async with AsyncTrackFinder(url) as finder:
            return await finder.fit(events[0], labels)

    with TrackFinder(url, model=MODEL) as finder:
        np.testing.assert_array_equal(asyncio.run(fit()), finder.fit(events[0], labels))


def test_labels_that_are_none_are_refused(url: str, events: list[np.ndarray]) -> None:
    labels = np.full(len(events[0]), len(events[0]))
    with (
        TrackFinder(url) as finder,
        pytest.raises(
            EventRefusedError, match="the event: TRACK_LABEL: holds -1 to 400, of 400 hits it is -1 to 399"
        ),
    ):
        finder.fit(events[0], labels)
    status, message = refusal(url, FIT_STEP.name, HITS=events[0], TRACK_LABEL=labels)
    assert (status, message[:17]) == ("StatusCode.INVALID_ARGUMENT", "TRACK_LABEL: hold")


def test_a_server_without_the_fit_says_so(server: Server, events: list[np.ndarray]) -> None:
    with TrackFinder(server.url) as finder, pytest.raises(UnavailableError, match="'track_fit' is not found"):
        finder.fit(events[0], np.zeros(len(events[0]), dtype=np.int64))


def test_what_it_says_of_itself(url: str, barrel_rules: Rules) -> None:
    with TrackFinder(url, model=MODEL) as finder:
        info = finder.server_info()
    assert info.fits
    assert (info.model, info.steps, info.working_point, info.working_points) == (MODEL, (MODEL,), None, ())
    assert (info.n_columns, info.max_hits, info.max_pairs, info.max_edges) == (3, 5000, None, None)
    assert (info.card_name, info.card_sha256) == (barrel_rules.name, barrel_rules.hash)
    assert info.metrics == barrel_rules.metrics
    facts = describe_server(url, model=MODEL)
    assert (facts["server working points"], facts["server limits"]) == ({}, {"max_hits": 5000})
    with (
        TrackFinder(url, model=MODEL, working_point="fast") as finder,
        pytest.raises(UnavailableError, match="has no working point fast, it has none"),
    ):
        finder.find(np.zeros((3, 3), dtype=np.float32))
