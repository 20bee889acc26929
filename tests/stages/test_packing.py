"""Several events in one request fare as they do one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritrack.export.cases import drawn_hits
from tritrack.stages.contract import (
    CUT_STEP,
    EVENT_OFFSETS,
    GNN_STAGE,
    LABELLING_STAGE,
    SCORE_STEP,
    STAGES,
    ContractError,
    check_hits,
)
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.stage import load_stage


@pytest.fixture(scope="module")
def chain(small_engines):
    return Pipeline.load(small_engines, threads=2)


def pack(events):
    offsets = np.cumsum([0, *map(len, events)], dtype=np.int64)
    return np.concatenate([np.empty((0, 3), np.float32), *events]), offsets


def find_one_by_one(chain, events):
    """The labels, or the sentence with which the first event that is refused is."""
    labels = []
    for event, hits in enumerate(events):
        try:
            labels.append(chain.find(hits))
        except ContractError as error:
            return f"event {event} of the pack, counted from 0: {error}"
    return np.concatenate([np.empty(0, np.int64), *labels]).tolist()


def find_packed(chain, events):
    hits, offsets = pack(events)
    try:
        return chain.find(hits, event_offsets=offsets).tolist()
    except ContractError as error:
        return str(error)


N_HITS = st.lists(st.sampled_from([0, 0, 1, 2, 3, 10, 100, 400, 900]), max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(n_hits=N_HITS, seed=st.integers(0, 100), point=st.sampled_from(["fast", "balanced", "best"]))
def test_a_pack_has_the_labels_of_its_events(chain, n_hits, seed, point):
    events = [drawn_hits(n_hits=n, seed=seed + i) for i, n in enumerate(n_hits)]
    chain = chain.at(point)
    labels = find_packed(chain, events)
    assert labels == find_one_by_one(chain, events)
    assert len(labels) == sum(n_hits)


WILD_HITS = hnp.arrays(np.float32, st.tuples(st.integers(0, 8), st.just(3)), elements=st.floats(width=32))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(events=st.lists(WILD_HITS, max_size=4))
def test_wild_events_fare_as_one_by_one(chain, events):
    """The same labels; where an event is refused, the sentence is the one for that event, and names it."""
    packed, alone = find_packed(chain, events), find_one_by_one(chain, events)
    if packed != alone:  # of two bad events a stage may meet the later one first
        assert isinstance(packed, str)
        assert isinstance(alone, str)
        number, sentence = packed.removeprefix("event ").split(" ", 1)
        assert f"event 0 {sentence}" == find_one_by_one(chain, [events[int(number)]])


def test_the_same_event_again_has_the_same_labels(chain):
    """Hits of two events at one place: an edge across would join their tracks."""
    hits = drawn_hits(n_hits=1500, seed=4)
    alone = chain.find(hits)
    assert alone.max() > 10
    both = find_packed(chain, [hits, hits])
    assert both == [*alone.tolist(), *alone.tolist()]


@pytest.mark.parametrize("n_hits", [[], [0], [0, 0, 0], [1, 0, 2], [0, 900, 0]])
def test_packs_without_and_with_empty_events(chain, n_hits):
    events = [drawn_hits(n_hits=n, seed=n) for n in n_hits]
    seen = {}
    hits, offsets = pack(events)
    labels = chain.find(hits, event_offsets=offsets, on_stage=lambda _, outputs, __: seen.update({**outputs}))
    assert labels.tolist() == find_one_by_one(chain, events)
    assert {name: array.dtype for name, array in seen.items()} == {
        spec.name: spec.dtype for stage in STAGES for spec in stage.outputs
    }
    assert seen["EMBEDDING"].shape == (sum(n_hits), 4)
    assert seen["EDGE_INDEX"].shape[0] == 2


def test_the_served_steps_are_the_stages(small_engines, chain):
    """The filter's network and its cut, as a server runs them, on a pack."""
    hits, offsets = pack([drawn_hits(n_hits=n, seed=n) for n in (800, 0, 700)])
    tensors = {"HITS": hits, "EVENT_OFFSETS": offsets}
    for stage in chain.stages[:2]:
        tensors |= stage(tensors)
    scored = tensors | load_stage(SCORE_STEP, small_engines, threads=2)(tensors)
    kept = load_stage(CUT_STEP, small_engines, threads=2)(scored)["EDGE_INDEX"]
    np.testing.assert_array_equal(kept, chain.stages[2](tensors)["EDGE_INDEX"])
    event = np.searchsorted(offsets, kept, side="right")
    assert kept.shape[1] > 100
    assert (event[0] == event[1]).all()
    assert (np.lexsort(kept[::-1]) == np.arange(kept.shape[1])).all()  # sorted, as the contract wants


def bad(value):
    hits = drawn_hits(n_hits=20, seed=1)
    hits[[3, 11], 1] = value
    return hits


GOOD = drawn_hits(n_hits=20, seed=2)
IN_EVENT_1 = "^event 1 of the pack, counted from 0: "


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([GOOD, bad(np.nan), GOOD], "HITS: 2 of 20 rows hold NaN or infinity: rows 3, 11$"),
        ([GOOD, bad(2e5), GOOD], r"HITS: 2 of 20 rows lie more than 100000 mm away"),
        (
            [GOOD, drawn_hits(n_hits=4981, seed=1), GOOD],
            "HITS: 5001 hits with those of the events before it, the model's limit max_hits is 5000$",
        ),
        (
            [GOOD, np.ones((300, 3), np.float32), GOOD],
            "EDGE_INDEX: the graph has more pairs of hits than the model's limit max_pairs, 20000$",
        ),
        (
            [np.ones((150, 3), np.float32)] * 3,
            "EDGE_INDEX: 22350 pairs with those of the events before it, the model's limit max_pairs is 20000$",
        ),
    ],
)
def test_what_is_wrong_names_its_event(chain, events, message):
    hits, offsets = pack(events)
    with pytest.raises(ContractError, match=IN_EVENT_1 + message):
        chain.find(hits, event_offsets=offsets)


def test_the_limit_of_edges_holds_for_the_pack(small_engines):
    cut = load_stage(CUT_STEP, small_engines, threads=1)
    offsets = np.array([0, 10, 20], dtype=np.int64)
    edges = np.repeat(np.array([[0, 10], [1, 11]], dtype=np.int32), 8000, axis=1)
    scores = np.ones(16_000, dtype=np.float32)
    message = (
        "EDGE_INDEX: 16000 pairs with those of the events before it, the model's limit max_edges is 15000$"
    )
    with pytest.raises(ContractError, match=IN_EVENT_1 + message):
        cut({"EVENT_OFFSETS": offsets, "EDGE_INDEX": edges, "PAIR_SCORE": scores})
    scores[:1000] = 0
    assert cut({"EVENT_OFFSETS": offsets, "EDGE_INDEX": edges, "PAIR_SCORE": scores})["EDGE_INDEX"].shape == (
        2,
        15_000,
    )


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "is empty; even without events its first entry is 0"),
        ([0, 10], "leads from 0 to 10, wanted is from 0 to the number of hits, 20"),
        ([5, 20], "leads from 5 to 20"),
        ([0, 21], "leads from 0 to 21"),
        ([0, 15, 5, 20], "falls after entry 1, event 1 would have no end"),
        ([[0, 20]], r"shape is \[1, 2\], the contract wants int64 \[n_events \+ 1\]"),
        ([0.0, 20.0], "dtype is float64"),
    ],
)
def test_offsets_must_share_out_the_hits(chain, offsets, message):
    offsets = np.array(offsets, dtype=None if offsets else np.int64)
    for find in (
        lambda: chain.find(GOOD, event_offsets=offsets),
        lambda: check_hits(GOOD, n_columns=3, max_hits=100, event_offsets=offsets),
    ):
        with pytest.raises(ContractError, match=f"^{EVENT_OFFSETS.name}: {message}"):
            find()


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 12, 3], [1, 13, 4]], "EDGE_INDEX: the edges of a pack must be sorted by inner hit"),
        ([[-1, 3], [1, 4]], "EDGE_INDEX: the edges of a pack must be sorted"),
        ([[0, 20], [1, 4]], "EDGE_INDEX: the edges of a pack must be sorted"),
        ([[0, 9], [1, 12]], "event 0 of the pack, .* EDGE_INDEX: holds 0 to 12, but there are 10 hits"),
        ([[0, 12], [1, 9]], "event 1 of the pack, .* EDGE_INDEX: holds -1 to 2, but there are 10 hits"),
    ],
)
@pytest.mark.parametrize("spec", [SCORE_STEP, GNN_STAGE, LABELLING_STAGE], ids=lambda spec: spec.name)
def test_edges_across_events_are_refused(small_engines, spec, edges, message):
    edges = np.array(edges, dtype=np.int32)
    tensors = {
        "HITS": GOOD,
        "EVENT_OFFSETS": np.array([0, 10, 20], dtype=np.int64),
        "EDGE_INDEX": edges,
        "EDGE_SCORE": np.ones(edges.shape[1], dtype=np.float32),
    }
    with pytest.raises(ContractError, match=message):
        load_stage(spec, small_engines, threads=1)(tensors)
