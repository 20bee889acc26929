"""The chain in one process, by the backend ``tritrack``, beside the ensemble on one server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

psutil = pytest.importorskip("psutil")
pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")

from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, InferInput, model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritrack.ensemble_repo.config import config_text
from tritrack.ensemble_repo.plan import CONFIG_FILE
from tritrack.ensemble_repo.render import render_repository
from tritrack.installed import describe_server
from tritrack.service.client import TrackFinder
from tritrack.service.errors import ServerStartError, UnavailableError
from tritrack.service.server import Server
from tritrack.stages.card import ENSEMBLE, FUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tritrack.stages.pipeline import Pipeline

    HitsOf = Callable[..., np.ndarray]

FAST = f"{FUSED}_fast"


@pytest.fixture(scope="module")
def fused_repository(small_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of model; of the fused one at the default point two instances."""
    out = tmp_path_factory.mktemp("fused") / "model_repository"
    render_repository(engines=small_engines, out=out, server="embedded", device="cpu", threads=2, fused=True)
    path = out / FUSED / CONFIG_FILE
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.instance_group[0].count = 2
    path.write_text(config_text(config))
    return out


@pytest.fixture(scope="module")
def both(fused_repository: Path) -> Iterator[Server]:
    with Server(fused_repository, models=(ENSEMBLE, FUSED, FAST)) as running:
        yield running


def refusal(url: str, model: str, hits: np.ndarray) -> tuple[str, str]:
    """Return the status and the sentence with which a model refuses hits."""
    tensor = InferInput("HITS", list(hits.shape), np_to_triton_dtype(hits.dtype)).set_data_from_numpy(hits)
    with InferenceServerClient(url) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model, [tensor], client_timeout=30.0)
    message = caught.value.message().removeprefix(f"in ensemble '{model}', ")
    return caught.value.status(), message.replace(f"'{model}'", "MODEL")


def test_what_is_asked_for_is_loaded(both: Server) -> None:
    stubs = psutil.Process(both.pid).children(recursive=True)
    assert len(stubs) == 5 + 2 + 1  # the ensemble's steps, two instances, and one
    with (
        TrackFinder(both.url, model=FUSED, working_point="best", retries=0) as finder,
        pytest.raises(UnavailableError, match=f"{FUSED}_best"),
    ):
        finder.find(np.zeros((3, 3), dtype=np.float32))


@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 1000, 2000])
def test_a_client_changes_the_name_alone(both: Server, chain: Pipeline, hits_of: HitsOf, n_hits: int) -> None:
    hits = hits_of(n_hits, seed=n_hits)
    expected = chain.find(hits)
    for model in (ENSEMBLE, FUSED):
        with TrackFinder(both.url, model=model) as finder:
            np.testing.assert_array_equal(finder.find(hits), expected)
    assert n_hits < 1000 or expected.max() > 10  # the comparison means something


def test_the_working_point_is_in_the_name(both: Server, chain: Pipeline, hits_of: HitsOf) -> None:
    hits = hits_of(2000)
    with TrackFinder(both.url, model=FUSED, working_point="fast") as finder:
        info = finder.server_info()
        np.testing.assert_array_equal(finder.find(hits), chain.at("fast").find(hits))
        (counted,) = finder.statistics()
    assert (info.model, info.working_point, info.steps) == (FAST, "fast", (FAST,))
    assert (info.max_hits, info.max_pairs, info.max_edges) == (5000, 20_000, 15_000)
    assert counted.count > 0


@pytest.mark.parametrize(("model", "last"), [(ENSEMBLE, "labelling_balanced"), (FAST, FAST)])
def test_what_nobody_waits_for_is_not_computed(
    both: Server, hits_of: HitsOf, account_of: Callable[..., Any], model: str, last: str
) -> None:
    """Of 50 events whose client gave up at once the last step takes up the first ones."""
    hits = hits_of(2000)
    tensor = InferInput("HITS", list(hits.shape), np_to_triton_dtype(hits.dtype)).set_data_from_numpy(hits)
    with InferenceServerClient(both.url) as client, TrackFinder(both.url, model=model) as finder:
        finder.find(hits)
        before = {step.name: step.compute_ns for step in account_of(finder)}[last]
        finder.find(hits)
        one = {step.name: step.compute_ns for step in account_of(finder)}[last] - before
        calls = [client.async_infer(model, [tensor], callback=lambda **_: None) for _ in range(50)]
        for call in calls:
            call.cancel()
        finder.find(hits)  # behind the others
        computed = {step.name: step.compute_ns for step in account_of(finder)}[last] - before - one
    assert computed < 25 * one


def test_info_says_which_points_are_loaded(both: Server) -> None:
    facts = describe_server(both.url, model=FUSED)
    assert (facts["server model"], facts["server steps"]) == (FUSED, FUSED)
    assert {name: point["model"] for name, point in facts["server working points"].items()} == {
        "fast": FAST,
        "balanced": f"{FUSED}_balanced is not loaded",
        "best": f"{FUSED}_best is not loaded",
    }


def test_the_fused_model_takes_packs(
    both: Server, chain: Pipeline, hits_of: HitsOf, account_of: Callable[..., Any]
) -> None:
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate([900, 0, 400, 1, 700, 3])]
    with TrackFinder(both.url, model=FUSED) as finder:
        before = account_of(finder)[0].count
        found = list(finder.find_many(events, pack_hits=1500))
        assert account_of(finder)[0].count - before == 2
    for labels, hits in zip(found, events, strict=True):
        np.testing.assert_array_equal(labels, chain.find(hits))


def test_instances_answer_side_by_side(both: Server, chain: Pipeline, hits_of: HitsOf) -> None:
    events = [hits_of(n_hits, seed=i) for i, n_hits in enumerate([900, 0, 400, 1, 700, 3])]
    with TrackFinder(both.url, model=FUSED) as finder, ThreadPoolExecutor(6) as pool:
        for labels, hits in zip(pool.map(finder.find, events), events, strict=True):
            np.testing.assert_array_equal(labels, chain.find(hits))


@pytest.mark.parametrize(
    ("hits", "sentence"),
    [
        (np.full((4, 3), np.nan, dtype=np.float32), "4 of 4 rows hold NaN or infinity: rows 0, 1, 2, 3"),
        (np.full((4, 3), 2e5, dtype=np.float32), "4 of 4 rows lie more than 100000 mm away"),
        (np.zeros((5001, 3), dtype=np.float32), "5001 hits, the model's limit max_hits is 5000"),
        (np.zeros((300, 3), dtype=np.float32), "more pairs of hits than the model's limit max_pairs, 20000"),
        (np.zeros((4, 3)), "FP64"),
        (np.zeros((4, 2), dtype=np.float32), "shape"),
    ],
)
def test_refusals_are_the_ensembles(both: Server, hits: np.ndarray, sentence: str) -> None:
    status, message = refusal(both.url, FUSED, hits)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert sentence in message
    assert (status, message) == refusal(both.url, ENSEMBLE, hits)


def test_a_model_that_is_not_there_is_named(fused_repository: Path) -> None:
    with pytest.raises(ServerStartError, match=rf"has no model nosuch, it has embedding, .*{FUSED}"):
        Server(fused_repository, models=["nosuch"]).start()
