"""A stage that runs: the same object serves the chain in process and each model of the server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.stages.card import CardError, ModelCard, read_card
from tritrack.stages.contract import (
    CUT_STEP,
    EDGE_INDEX,
    EDGE_SCORE,
    EMBEDDING,
    EVENT_OFFSETS,
    FILTER_STAGE,
    GNN_STAGE,
    GRAPH_STAGE,
    HITS,
    LABELLING_STAGE,
    PAIR_SCORE,
    STAGES,
    ContractError,
    StageSpec,
    check_finite,
    check_hits,
    check_tensor,
    in_event,
)
from tritrack.stages.filtering import score_pairs, select_edges
from tritrack.stages.packing import empty_tensor, join_pack, split_pack
from tritrack.stages.placement import Array, namespace, to_device, to_host

# numba, FAISS and ONNX Runtime are imported where they are used: each step of a server is a process of its own,
# and most steps weigh less than these libraries.

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from tritrack.stages.card import Cuts, WorkingPointName
    from tritrack.stages.contract import TensorSpec
    from tritrack.stages.engine import Engine

    Tensors = Mapping[str, Any]


class Stage:
    """One stage, or a step of one, with its model card: tensors in, tensors out, checked against the contract.

    Parameters
    ----------
    spec
        Which stage or step.
    card
        Sizes and limits.
    function
        The inputs of the specification, in order -> its output.
    device
        Where the function computes: torch's name of a device; None for the host, and arrays of NumPy's.
    """

    def __init__(
        self, spec: StageSpec, *, card: ModelCard, function: Callable[..., Any], device: str | None = None
    ) -> None:
        self.spec = spec
        self.card = card
        self.device = device
        self._function = function
        self._sizes = {"n_columns": len(card.columns), "d": card.networks.embedding_dim}

    def __call__(self, tensors: Tensors) -> dict[str, Any]:
        """Run the stage on the tensors it wants (others may be there too), wherever they lie.

        With ``EVENT_OFFSETS`` among them it runs on each event by itself. The output lies where the stage computes.

        Raises
        ------
        ContractError
            Where an input breaks the contract or the event is over the card's limits; of a pack it names the
            event, and the limits hold for the pack.
        """
        inputs = {spec: tensors[spec.name] for spec in self.spec.inputs}
        event_offsets = tensors.get(EVENT_OFFSETS.name)
        if event_offsets is not None:
            event_offsets = to_host(event_offsets)
        if self.spec is STAGES[0]:
            inputs[HITS] = to_host(inputs[HITS])
            check_hits(
                inputs[HITS],
                n_columns=self._sizes["n_columns"],
                max_hits=self.card.limits.max_hits,
                event_offsets=event_offsets,
            )
        inputs = {spec: self._bring(array) for spec, array in inputs.items()}
        (output,) = self.spec.outputs
        if event_offsets is None:
            return {output.name: self._run(inputs)}
        return {output.name: self._bring(self._run_pack(inputs, event_offsets))}

    def _bring(self, array: Any) -> Any:
        return to_host(array) if self.device is None else to_device(array, self.device)

    def _run(self, inputs: dict[TensorSpec, Any]) -> Any:
        self._check(inputs)
        return self._function(*inputs.values())

    def _run_pack(self, inputs: dict[TensorSpec, Any], event_offsets: NDArray[np.int64]) -> Any:
        (output,) = self.spec.outputs
        limit = "max_pairs" if self.spec is GRAPH_STAGE else "max_edges"
        parts: list[Any] = []
        n_edges = 0
        for event, part in enumerate(split_pack(inputs, event_offsets, self._sizes)):
            with in_event(event):
                parts.append(self._run(part))
                n_edges += parts[-1].shape[-1] if output is EDGE_INDEX else 0
                if n_edges > (most := getattr(self.card.limits, limit)):
                    raise ContractError(
                        f"EDGE_INDEX: {n_edges} pairs with those of the events before it, the model's limit "
                        f"{limit} is {most}"
                    )
        return join_pack(parts, spec=output, event_offsets=event_offsets, sizes=self._sizes)

    def _check(self, inputs: dict[TensorSpec, Any]) -> None:
        sizes = self._sizes
        for spec, array in inputs.items():
            sizes = check_tensor(array, spec, sizes)
        edges = inputs.get(EDGE_INDEX)
        # The filter's cut takes no hits, and reads nothing at the edges' indices.
        if (
            edges is not None
            and edges.shape[1]
            and "n_hits" in sizes
            and not (edges.min() >= 0 and edges.max() < sizes["n_hits"])
        ):
            raise ContractError(
                f"EDGE_INDEX: holds {edges.min()} to {edges.max()}, but there are {sizes['n_hits']} hits"
            )
        for spec in (EMBEDDING, EDGE_SCORE):  # and PAIR_SCORE where it is cut
            if spec in inputs:
                check_finite(inputs[spec], spec)


def make_stage(
    spec: StageSpec, *, card: ModelCard, cuts: Cuts, engine: Engine | None, device: str | None
) -> Stage:
    """Return a stage that computes on a device where it can, and else on the host.

    Parameters
    ----------
    spec, card, cuts, engine
        As in :func:`stage_function`.
    device
        Torch's name of a device; None for the host.
    """
    if device is not None and not has_device_form(spec, cuts=cuts, engine=engine):
        device = None
    function = stage_function(spec, card=card, cuts=cuts, engine=engine, on_device=device is not None)
    return Stage(spec, card=card, function=function, device=device)


def has_device_form(spec: StageSpec, *, cuts: Cuts, engine: Engine | None) -> bool:
    """Tell whether a stage, with these cuts and this engine, can compute on tensors of a device."""
    if spec is LABELLING_STAGE:
        from tritrack.stages.labelling_gpu import LABELLINGS

        return cuts.labelling in LABELLINGS
    # The filter keeps its edges on the device, wherever its network runs.
    return spec in (GRAPH_STAGE, FILTER_STAGE, CUT_STEP) or _runs_on_device(engine)


def _runs_on_device(engine: Engine | None) -> bool:
    """Tell whether a network takes tensors of a device; any function stands for an engine, and one that does says so."""
    return getattr(engine, "on_device", False)


def stage_function(
    spec: StageSpec, *, card: ModelCard, cuts: Cuts, engine: Engine | None, on_device: bool
) -> Callable[..., Any]:
    """Return what a stage computes, without checks.

    Parameters
    ----------
    spec
        Which stage, or step of one.
    card
        Sizes and limits.
    cuts
        Those of a working point; a network alone uses none.
    engine
        The stage's network; None for a stage without one.
    on_device
        Whether it computes on tensors of a device, which it must have a form for, and not on arrays of the host.
    """
    limits = card.limits
    if spec is GRAPH_STAGE:
        search = _search_on_device(cuts) if on_device else search_on_host(cuts)
        return partial(search, radius=cuts.radius, windows=cuts.windows, max_pairs=limits.max_pairs)
    if spec is LABELLING_STAGE:
        label = _labelling_on_device(cuts) if on_device else _labelling_on_host(cuts)
        return partial(label, cut=cuts.gnn_cut)
    select = partial(select_edges, cut=cuts.filter_cut, max_edges=limits.max_edges)
    if spec is CUT_STEP:
        return select
    if engine is None:
        raise CardError(f"stage {spec.name} needs an engine")
    network = partial(run_engine, engine, spec, card)
    if spec is GNN_STAGE:
        return partial(_on_linked_hits, network)
    if PAIR_SCORE not in spec.engine:
        return network
    score = partial(score_pairs, network)
    if on_device and not _runs_on_device(engine):
        score = partial(_by_the_host, score)
    if spec is not FILTER_STAGE:
        return score
    return lambda hits, edge_index: select(edge_index, score(hits, edge_index))


def search_on_host(cuts: Cuts) -> Callable[..., NDArray[np.int32]]:
    """Return the graph search of cuts, which takes hits, embedding, radius, windows and max_pairs."""
    from tritrack.stages.graph import knn_graph, radius_graph

    return partial(knn_graph, k=cuts.k) if cuts.graph == "knn" else radius_graph


def _search_on_device(cuts: Cuts) -> Callable[..., Tensor]:
    from tritrack.stages.graph_gpu import knn_graph, radius_graph

    return partial(knn_graph, k=cuts.k) if cuts.graph == "knn" else radius_graph


def _labelling_on_host(cuts: Cuts) -> Callable[..., NDArray[np.int64]]:
    from tritrack.stages.labelling import LABELLINGS

    return LABELLINGS[cuts.labelling]


def _labelling_on_device(cuts: Cuts) -> Callable[..., Tensor]:
    from tritrack.stages.labelling_gpu import LABELLINGS

    return LABELLINGS[cuts.labelling]


def _on_linked_hits(network: Callable[[Array, Array], Array], hits: Array, edge_index: Array) -> Array:
    """Run the GNN on the hits that have an edge: no other hit changes a score, and after chains half have none."""
    library = namespace(hits)
    linked = library.zeros_like(hits[:, 0], dtype=bool)
    linked[edge_index] = True
    number = library.cumsum(linked, 0, dtype=library.int32) - 1
    return network(hits[linked], number[edge_index])


def _by_the_host(score: Callable[..., Any], hits: Tensor, edge_index: Tensor) -> Tensor:
    """Score pairs that lie on a device with a network of the host's."""
    return to_device(score(to_host(hits), to_host(edge_index)), str(hits.device))


def run_engine(engine: Engine, spec: StageSpec, card: ModelCard, *inputs: Any) -> Any:
    """Run a stage's network; an engine never sees zero rows: not every one takes them, and the answer is known."""
    n_rows = inputs[-1].shape[-1] if EDGE_INDEX in spec.inputs else inputs[0].shape[0]
    if n_rows == 0:
        none = empty_tensor(spec.engine[0], {"d": card.networks.embedding_dim})
        return none if isinstance(inputs[0], np.ndarray) else to_device(none, str(inputs[0].device))
    return engine(*inputs)


def load_stage(
    spec: StageSpec,
    folder: Path,
    *,
    threads: int,
    working_point: WorkingPointName | None = None,
    device: str | None = None,
) -> Stage:
    """Load a stage from a folder with the model card and, for a stage with a network, ``NAME.onnx``.

    Parameters
    ----------
    spec
        Which stage, or step of one.
    folder
        A folder of engines, or a version folder of a model in the server's repository.
    threads
        Threads of the engine, and of the compiled loops.
    working_point
        Whose cuts it takes; None for the card's default.
    device
        Torch's name of the device that it computes on where it can; None for the host.

    Raises
    ------
    CardError
        Where the card, the engine file or the working point is missing or does not fit.
    """
    card = read_card(folder)
    cuts = card.point(working_point).cuts
    if spec in (GRAPH_STAGE, LABELLING_STAGE):
        set_compiled_threads(threads)
    engine = None
    if spec.engine:
        from tritrack.stages.engine import load_engine

        engine = load_engine(spec, folder, threads=threads, device=device)
    return make_stage(spec, card=card, cuts=cuts, engine=engine, device=device)


def set_compiled_threads(threads: int) -> None:
    """Set the threads of the compiled loops: of those that the calling thread starts, in others it stays all cores."""
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
