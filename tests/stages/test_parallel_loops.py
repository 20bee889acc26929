"""The turns of a model's loops in threads: the same numbers as ONNX Runtime's own, whatever stands between the loops."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.helper import (
    make_empty_tensor_value_info,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
)

from tritrack.stages.contract import EDGE_INDEX, EMBEDDING_STAGE, FILTER_STAGE, GNN_STAGE, HITS
from tritrack.stages.engine import CPU, PARALLEL_ROWS, load_engine, open_session
from tritrack.stages.parallel_loops import ParallelModel, _Memory, has_parallel_loops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.stages.contract import StageSpec

ROWS = 4
"""Rows of a turn."""


def open_part(part: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])


def loop(read: str, given: str, *, carries: bool = False, table: str = "table") -> onnx.NodeProto:
    """A loop over blocks of ``read``: each row's entry of a table that is not an input of the loop."""

    def name(what: str) -> str:
        return f"{given}/{what}"

    body = [
        make_node("Identity", [name("go")], [name("going")]),
        make_node("Mul", [name("turn"), "rows"], [name("start")]),
        make_node("Add", [name("start"), "rows"], [name("end")]),
        make_node("Slice", [read, name("start"), name("end"), "zero"], [name("block")]),
        make_node("Gather", [table, name("block")], [name("out")], axis=0),
    ]
    inputs = [
        make_tensor_value_info(name("turn"), TensorProto.INT64, []),
        make_tensor_value_info(name("go"), TensorProto.BOOL, []),
    ]
    outputs = [make_tensor_value_info(name("going"), TensorProto.BOOL, [])]
    if carries:
        body.append(make_node("Add", [name("carried"), "rows"], [name("carries")]))
        inputs.append(make_tensor_value_info(name("carried"), TensorProto.INT64, [1]))
        outputs.append(make_tensor_value_info(name("carries"), TensorProto.INT64, [1]))
    outputs.append(make_empty_tensor_value_info(name("out")))
    graph = make_graph(body, given, inputs, outputs)
    carried = ([name("total")], ["zero"]) if carries else ([], [])
    return make_node("Loop", ["turns", "always", *carried[1]], [*carried[0], f"{given}/stacked"], body=graph)


def model(*, carries: bool = False, always: bool = True, precision: str = "fp32") -> onnx.ModelProto:
    """index [n] and table [m, 2] -> two loops, one after the other, with nodes and views between them."""
    nodes = [
        make_node("Shape", ["index"], ["n"]),
        make_node("Div", ["n", "rows"], ["turns"]),
        loop("index", "first", carries=carries),
        make_node("Reshape", ["first/stacked", "pairs"], ["first/all"]),
        make_node("Slice", ["first/all", "zero", "n", "zero"], ["first"]),
        make_node("Relu", ["first"], ["positive"]),
        make_node("Add", ["positive", "first"], ["second/table"]),
        loop("index", "second", table="second/table"),
        make_node("Reshape", ["second/stacked", "pairs"], ["second"]),
        make_node("Sub", ["second", "first"], ["difference"]),
    ]
    constants = {
        "zero": np.array([0]),
        "rows": np.array([ROWS]),
        "pairs": np.array([-1, 2]),
        "always": np.array(always),
    }
    graph = make_graph(
        nodes,
        "loops",
        [
            make_tensor_value_info("index", TensorProto.INT64, ["n"]),
            make_tensor_value_info("table", TensorProto.FLOAT, ["m", 2]),
        ],
        [
            make_tensor_value_info("difference", TensorProto.FLOAT, None),
            make_tensor_value_info("first", TensorProto.FLOAT, None),
        ],
        [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    made = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(made, {"edge_sum": "sorted", "precision": precision})
    return made


def event(n_turns: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    n = n_turns * ROWS
    return {
        "index": rng.integers(0, max(n, 1), n),
        "table": rng.normal(size=(max(n, 1), 2)).astype(np.float32),
    }


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n_turns", [1, 2, 3, 40])
def test_the_answers_are_those_of_the_whole_model(n_turns: int, threads: int) -> None:
    inputs = event(n_turns)
    whole = open_part(model().SerializeToString()).run(None, inputs)
    parts = ParallelModel(model(), open_session=open_part, threads=threads)
    for _ in range(2):
        for expected, found in zip(whole, parts.run(inputs), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_an_answer_stays_when_the_next_event_is_computed() -> None:
    parts = ParallelModel(model(), open_session=open_part, threads=2)
    first = parts.run(event(8))
    before = [array.copy() for array in first]
    parts.run(event(8, seed=1))
    for array, copy in zip(first, before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.base is None  # no view, that would keep the memory of what it is a view of


@pytest.mark.parametrize(
    ("described", "change", "expected"),
    [
        ("turns and a condition that is always true", {}, True),
        ("one of two carries a number from turn to turn", {"carries": True}, True),
        ("a condition that is not true", {"always": False}, False),
        ("16 bits, where layers are not in loops", {"precision": "fp16"}, False),
    ],
)
def test_what_can_run_in_parallel(described: str, change: dict[str, Any], expected: bool) -> None:
    assert has_parallel_loops(model(**change)) is expected, described


def test_a_file_from_elsewhere_stays_whole() -> None:
    elsewhere = model()
    del elsewhere.metadata_props[:]
    assert not has_parallel_loops(elsewhere)


def test_a_loop_that_carries_something_runs_as_any_node() -> None:
    inputs = event(6)
    whole = open_part(model(carries=True).SerializeToString()).run(None, inputs)
    found = ParallelModel(model(carries=True), open_session=open_part, threads=3).run(inputs)
    for expected, array in zip(whole, found, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_turn_raises_is_raised(threads: int) -> None:
    inputs = event(40)
    inputs["index"][77] = 10_000
    parts = ParallelModel(model(), open_session=open_part, threads=threads)
    with pytest.raises(Exception, match="10000"):
        parts.run(inputs)
    # And the next event has its answer.
    assert len(parts.run(event(3))) == 2


def test_no_turn_goes_on_after_an_error() -> None:
    started: list[int] = []
    parts = ParallelModel(model(), open_session=open_part, threads=4)

    def work(turns: Iterator[int]) -> None:
        for turn in turns:
            started.append(turn)
            if turn == 1:
                raise ValueError("turn 1")
            time.sleep(0.001)

    with pytest.raises(ValueError, match="turn 1"):
        parts._share(10_000, work)
    ended = len(started)
    assert ended < 10_000
    time.sleep(0.01)
    assert len(started) == ended


def test_memory_is_taken_again_once_no_value_lies_in_it() -> None:
    values: dict[str, NDArray[Any]] = {}
    memory = _Memory(values)
    turn = np.ones((3, 2), np.float32)
    (values["first"],) = memory.take([turn], n_turns=4)
    values["view"] = values["first"].reshape(12, 2)[1:5]
    (values["second"],) = memory.take([turn], n_turns=4)
    assert not np.shares_memory(values["first"], values["second"])
    del values["first"]
    (values["third"],) = memory.take([turn], n_turns=2)  # the view of the first one's is still there
    assert not np.shares_memory(values["view"], values["third"])
    del values["view"]
    smaller, larger = memory.take([turn, turn], n_turns=4)
    assert not np.shares_memory(smaller, larger)
    assert len(memory._all) == 4


def test_events_at_once_have_their_own_answers() -> None:
    events = [event(30, seed=seed) for seed in range(8)]
    whole = open_part(model().SerializeToString())
    parts = ParallelModel(model(), open_session=open_part, threads=3)
    with ThreadPoolExecutor(4) as threads:
        for inputs, found in zip(events, threads.map(parts.run, events), strict=True):
            for expected, array in zip(whole.run(None, inputs), found, strict=True):
                np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n_hits", "n_edges"), [(2, 1), (600, 1), (12_000, 40_000)])
@pytest.mark.parametrize("spec", [EMBEDDING_STAGE, FILTER_STAGE, GNN_STAGE], ids=lambda spec: spec.name)
def test_a_network_by_parts_computes_what_its_file_computes(
    small_engines: Path, spec: StageSpec, n_hits: int, n_edges: int, threads: int
) -> None:
    """To the bit, with several turns of the loops over hits and over edges at the largest size."""
    rng = np.random.default_rng(n_edges)
    path = small_engines / f"{spec.name}.onnx"
    hits = rng.normal(scale=300.0, size=(n_hits, 3)).astype(np.float32)
    ends = np.sort(rng.integers(0, n_hits, (2, n_edges)).astype(np.int32), axis=0)
    named = {HITS.name: hits, EDGE_INDEX.name: ends}
    inputs = {tensor.name: named[tensor.name] for tensor in spec.inputs}
    (expected,) = open_session(path, threads=1, provider=CPU).run(None, inputs)
    parts = ParallelModel(onnx.load_model(path), open_session=open_part, threads=threads)
    (found,) = parts.run(inputs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_edges", [PARALLEL_ROWS - 1, PARALLEL_ROWS])
def test_an_engine_gives_the_same_answer_by_parts(
    small_engines: Path, n_edges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    run = ParallelModel.run
    monkeypatch.setattr(ParallelModel, "run", lambda parts, named: runs.append(1) or run(parts, named))
    rng = np.random.default_rng(5)
    hits = rng.normal(scale=300.0, size=(3000, 3)).astype(np.float32)
    ends = np.sort(rng.integers(0, 3000, (2, n_edges)).astype(np.int32), axis=0)
    one, two = (load_engine(GNN_STAGE, small_engines, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one(hits, ends), two(hits, ends))
    assert len(runs) == (n_edges >= PARALLEL_ROWS)


def test_few_rows_are_computed_in_one_thread_where_many_are_in_more(
    small_engines: Path, scattered_engines: Path
) -> None:
    sessions = [
        load_engine(GNN_STAGE, folder, threads=2)._whole  # type: ignore[attr-defined]
        for folder in (small_engines, scattered_engines)
    ]
    assert [each.get_session_options().intra_op_num_threads for each in sessions] == [1, 2]
