"""Run an ONNX model whose loops go over blocks of rows: the turns of each loop in several threads.

ONNX Runtime runs the turns of a loop one after the other, and shares out every operator of a turn to its threads; a
block is small, and they wait for each other most of the time. Here each thread runs turns of its own.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
from onnx import NodeProto
from onnx.helper import make_graph, make_model, make_tensor_value_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnxruntime
    from numpy.typing import NDArray
    from onnx import TensorProto, ValueInfoProto

    Arrays = dict[str, NDArray[Any]]
    Open = Callable[[bytes], onnxruntime.InferenceSession]


class ParallelModel:
    """A model, cut at its loops.

    Parameters
    ----------
    model
        The model, one for which :func:`has_parallel_loops`. Loops that carry something from turn to turn, or end at a
        condition, run as any other node.
    open_session
        Makes a session, of one thread, of a serialised model.
    threads
        Threads that run turns.
    """

    def __init__(self, model: onnx.ModelProto, *, open_session: Open, threads: int) -> None:
        self._constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
        self._outputs = [value.name for value in model.graph.output]
        self._steps = _steps(model, open_session)
        # A tensor goes once the last step that reads it is done.
        self._last = {name: i for i, step in enumerate(self._steps) for name in step.reads}
        self._last |= dict.fromkeys(self._outputs, len(self._steps))
        self._threads = threads
        self._pool = ThreadPoolExecutor(max(threads - 1, 1))  # and the one that asks

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the model's outputs: the same numbers with any number of threads."""
        values = self._constants | {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        memory = _Memory(values)
        for i, step in enumerate(self._steps):
            values |= step.run(values, memory, self._share)
            for name in step.reads:
                if self._last[name] == i:
                    del values[name]
        # Copies: a view of a few rows would keep all of what it is a view of.
        return [values[name].copy() for name in self._outputs]

    def _share(self, n_turns: int, work: Callable[[Iterator[int]], None]) -> None:
        """Let the threads work: each takes from the same iterator the next turn that none has taken."""
        turns = iter(range(n_turns))

        def work_or_end() -> None:
            try:
                work(turns)
            finally:
                deque(turns, maxlen=0)  # after an error none goes on

        others = [self._pool.submit(work_or_end) for _ in range(min(self._threads, n_turns) - 1)]
        try:
            work_or_end()
        finally:
            wait(others)
        for other in others:
            other.result()


class _Memory:
    """Memory of loops' outputs, used again within a run once none of the values lies in it: fresh memory costs a pass.

    Parameters
    ----------
    values
        The values of the run.
    """

    def __init__(self, values: Arrays) -> None:
        self._values = values
        self._all: list[NDArray[np.uint8]] = []

    def take(self, like: Sequence[NDArray[Any]], *, n_turns: int) -> list[NDArray[Any]]:
        """Return an array for each of those of a turn: [n_turns, ...]."""
        used = {id(value.base) for value in self._values.values()}
        free = sorted((each for each in self._all if id(each) not in used), key=lambda each: each.nbytes)
        taken = []
        for turn in like:
            size = n_turns * turn.nbytes
            fits = next((i for i, each in enumerate(free) if each.nbytes >= size), None)
            if fits is None:
                self._all.append(np.empty(size, np.uint8))
                memory = self._all[-1]
            else:
                memory = free.pop(fits)
            taken.append(memory[:size].view(turn.dtype).reshape(n_turns, *turn.shape))
        return taken


class _Step(Protocol):
    """What runs at once: inputs by name -> outputs by name."""

    reads: frozenset[str]

    def run(self, values: Arrays, memory: _Memory, share: Callable[..., None]) -> Arrays: ...


class _Nodes:
    """Nodes that run once, in a session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [value.name for value in session.get_outputs()]
        self.reads = frozenset(value.name for value in session.get_inputs())

    def run(self, values: Arrays, memory: _Memory, share: Callable[..., None]) -> Arrays:
        found = self._session.run(self._outputs, {name: values[name] for name in self.reads})
        return dict(zip(self._outputs, found, strict=True))


class _Loop:
    """A loop; a turn of it is a session's run."""

    def __init__(self, loop: NodeProto, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = list(loop.output)
        self._turns = loop.input[0]
        self._turn = loop.attribute[0].g.input[0].name
        self._given = [value.name for value in session.get_outputs()]
        self._inputs = {value.name for value in session.get_inputs()} - {self._turn}
        self.reads = frozenset({self._turns, *self._inputs})

    def run(self, values: Arrays, memory: _Memory, share: Callable[..., None]) -> Arrays:
        n_turns = int(values[self._turns].item())
        whole: list[NDArray[Any]] = []
        lock = threading.Lock()

        def work(turns: Iterator[int]) -> None:
            binding = self._session.io_binding()
            number = np.zeros((), np.int64)
            for name in self._inputs:
                _bind(binding.bind_input, name, values[name])
            _bind(binding.bind_input, self._turn, number)
            for turn in turns:
                number[...] = turn
                with lock:
                    places = [array[turn] for array in whole]
                for name, place in zip(self._given, places, strict=False):
                    _bind(binding.bind_output, name, place)
                if places:
                    self._session.run_with_iobinding(binding)
                    continue
                # How large a turn's outputs are shows when there are some.
                for name in self._given:
                    binding.bind_output(name)
                self._session.run_with_iobinding(binding)
                given = binding.copy_outputs_to_cpu()
                with lock:
                    if not whole:
                        whole.extend(memory.take(given, n_turns=n_turns))
                for array, of_turn in zip(whole, given, strict=True):
                    array[turn] = of_turn

        share(n_turns, work)
        return dict(zip(self._outputs, whole, strict=True))


def _bind(bind: Callable[..., None], name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class _View:
    """Another shape, or some rows, of what a loop gave: of the same memory."""

    def __init__(self, node: NodeProto) -> None:
        self._node = node
        self.reads = frozenset(node.input)

    def run(self, values: Arrays, memory: _Memory, share: Callable[..., None]) -> Arrays:
        array, *others = (values[name] for name in self._node.input)
        if self._node.op_type == "Slice":
            start, end = (int(other.item()) for other in others[:2])
            return {self._node.output[0]: array[start:end]}
        return {self._node.output[0]: array.reshape(others[0])}


def has_parallel_loops(model: onnx.ModelProto) -> bool:
    """Tell whether a model is one of ours with a loop whose turns need not wait for each other.

    Of ours it is known that the type of every tensor can be inferred, and that no loop is without a turn; and that in
    float32 all layers are in loops, while in 16 bits only sums are.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    properties = {each.key: each.value for each in model.metadata_props}
    ours = "edge_sum" in properties and properties.get("precision") == "fp32"
    return ours and any(_is_parallel(node, constants) for node in model.graph.node)


def _is_parallel(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Tell whether a node is a loop of turns and a condition alone, and the condition always true."""
    if node.op_type != "Loop" or len(node.input) != 2 or not all(node.input):
        return False
    body = node.attribute[0].g
    going = next((each for each in body.node if body.output[0].name in each.output), None)
    return (
        node.input[1] in constants
        and bool(onnx.numpy_helper.to_array(constants[node.input[1]]).all())
        and going is not None
        and (going.op_type, *going.input) == ("Identity", body.input[1].name)
        and all(body.input[1].name not in _reads(each) for each in body.node if each is not going)
    )


def _is_view(node: NodeProto, of_loops: set[str], constants: Mapping[str, TensorProto]) -> bool:
    """Tell whether a node is a view of what a loop gave, of a kind that :class:`_View` knows."""
    if not node.input or node.input[0] not in of_loops:
        return False

    def constant(name: str) -> list[int]:
        return onnx.numpy_helper.to_array(constants[name]).tolist() if name in constants else [0]

    match node.op_type:
        case "Reshape":  # a zero may be a size that stays
            return 0 not in constant(node.input[1])
        case "Slice":
            return len(node.input) == 4 and node.input[3] in constants and constant(node.input[3]) == [0]
    return False


def _steps(model: onnx.ModelProto, open_session: Open) -> list[_Step]:
    """Cut a model: what stands between two loops is one session, as early as its inputs are there."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    level: dict[str, int] = {}  # loops and views that come before a tensor, one after the other
    of_loops: set[str] = set()
    nodes: defaultdict[int, list[NodeProto]] = defaultdict(list)
    loops: defaultdict[int, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        at = max((level.get(name, 0) for name in _reads(node)), default=0)
        if _is_parallel(node, constants) or _is_view(node, of_loops, constants):
            of_loops.update(node.output)
            loops[at].append(node)
            at += 1
        else:
            nodes[at].append(node)
        level |= dict.fromkeys(node.output, at)
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    results = {value.name for value in graph.output}
    steps: list[_Step] = []
    for at in range(max(level.values(), default=0) + 1):
        if nodes[at]:
            made = {name for node in nodes[at] for name in node.output}
            others = [node for node in graph.node if made.isdisjoint(node.output)]
            wanted = sorted(made & results.union(*map(_reads, others)))
            part = _part(model, values, nodes[at], gives=[values[name] for name in wanted])
            steps.append(_Nodes(open_session(part)))
        for node in loops[at]:
            if node.op_type != "Loop":
                steps.append(_View(node))
                continue
            body = node.attribute[0].g
            going, *given = (value.name for value in body.output)
            types = [values[name].type.tensor_type.elem_type for name in node.output]
            part = _part(
                model,
                values | {body.input[0].name: body.input[0]},
                [each for each in body.node if going not in each.output],
                gives=[
                    make_tensor_value_info(name, kind, None) for name, kind in zip(given, types, strict=True)
                ],
            )
            steps.append(_Loop(node, open_session(part)))
    return steps


def _reads(node: NodeProto) -> set[str]:
    """Names that a node reads from around it, in its bodies too."""
    names = set(node.input) - {""}
    for attribute in node.attribute:
        body = attribute.g
        own = {value.name for value in (*body.input, *body.initializer)}
        own.update(name for inner in body.node for name in inner.output)
        names |= set().union(*map(_reads, body.node)) - own
    return names


def _part(
    model: onnx.ModelProto,
    values: Mapping[str, ValueInfoProto],
    nodes: Sequence[NodeProto],
    *,
    gives: Sequence[ValueInfoProto],
) -> bytes:
    """Return a model of some nodes: its inputs are what they read and do not make."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name for node in nodes for name in node.output}
    reads = sorted(set().union(*map(_reads, nodes)) - made)
    part = make_model(
        make_graph(
            nodes,
            "part",
            [values[name] for name in reads if name not in constants],
            gives,
            [constants[name] for name in reads if name in constants],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    serialised: bytes = part.SerializeToString()
    return serialised
