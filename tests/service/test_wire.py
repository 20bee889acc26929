"""What the server itself checks, whatever client speaks to it (here: plain tritonclient)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritrack.ensemble_repo.plan import plan_chain
from tritrack.stages.contract import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tritrack.service.server import Server
    from tritrack.stages.pipeline import Pipeline


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.url) as connection:
        yield connection


def infer(client: InferenceServerClient, model: str = "track_finder", **tensors: np.ndarray) -> Any:
    inputs = []
    for name, array in tensors.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return client.infer(model, inputs, client_timeout=30.0)


@pytest.mark.parametrize(
    ("hits", "sentence"),
    [
        (np.zeros((4, 3)), "FP64"),
        (np.zeros((4, 3), dtype=np.int32), "INT32"),
        (np.zeros((4, 2), dtype=np.float32), "shape"),
        (np.zeros((4, 3, 1), dtype=np.float32), "shape"),
        (np.full((4, 3), np.nan, dtype=np.float32), "4 of 4 rows hold NaN or infinity: rows 0, 1, 2, 3"),
        (np.full((4, 3), -np.inf, dtype=np.float32), "4 of 4 rows hold NaN or infinity"),
        (np.zeros((5001, 3), dtype=np.float32), "5001 hits, the model's limit max_hits is 5000"),
        (np.zeros((300, 3), dtype=np.float32), "more pairs of hits than the model's limit max_pairs, 20000"),
    ],
)
def test_bad_hits_are_invalid_arguments(
    client: InferenceServerClient, hits: np.ndarray, sentence: str
) -> None:
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        infer(client, HITS=hits)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "Traceback" not in caught.value.message()


WILD_HITS = hnp.arrays(np.float32, st.tuples(st.integers(0, 30), st.just(3)), elements=st.floats(width=32))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(hits=WILD_HITS)
def test_any_hits_fare_as_in_the_chain(
    client: InferenceServerClient, chain: Pipeline, hits: np.ndarray
) -> None:
    """The same labels, or a refusal in the same words."""
    expected = outcome(lambda: chain.find(hits))
    found = outcome(lambda: infer(client, HITS=hits).as_numpy("TRACK_LABEL"))
    assert found == expected


def outcome(find: Callable[[], np.ndarray]) -> list[int] | str:
    """Return the labels, or what the refusal says."""
    try:
        labels: list[int] = find().tolist()
    except ContractError as error:
        return str(error)
    except InferenceServerException as error:
        return str(error.message()).removeprefix("in ensemble 'track_finder', ")
    return labels


def test_a_request_without_hits_is_an_invalid_argument(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"HITS|expected 1 inputs") as caught:
        infer(client)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_step_can_be_asked_alone(
    client: InferenceServerClient, chain: Pipeline, hits_of: Callable[..., np.ndarray]
) -> None:
    """The steps of the default point, one after the other, give what the chain's stages give."""
    expected: dict[str, dict[str, np.ndarray]] = {}
    chain.find(hits_of(1000), on_stage=lambda stage, outputs, _: expected.update({stage: outputs}))
    tensors: dict[str, np.ndarray] = {"HITS": hits_of(1000)}
    for step in plan_chain(chain.card, "embedded", chain.card.default):
        wanted = [spec.name for spec in step.inputs if not spec.optional]
        result = infer(client, step.name, **{name: tensors[name] for name in wanted})
        tensors |= {spec.name: result.as_numpy(spec.name) for spec in step.outputs}
        for name, array in expected[step.computes].items():
            np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize(
    ("step", "tensors", "sentence"),
    [
        ("gnn", {"EDGE_INDEX": np.array([[0], [9]], dtype=np.int32)}, "there are 4 hits"),
        ("filter_fast", {"EDGE_INDEX": np.array([[-1], [2]], dtype=np.int32)}, "EDGE_INDEX: holds -1 to 2"),
        (
            "graph_fast",
            {"EMBEDDING": np.zeros((3, 4), dtype=np.float32)},
            r"axis 0 \(n_hits\) is 3 long, 4 wanted",
        ),
    ],
)
def test_steps_check_what_fits_together(
    client: InferenceServerClient, step: str, tensors: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        infer(client, step, HITS=np.zeros((4, 3), dtype=np.float32), **tensors)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
