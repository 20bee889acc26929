"""A stage that runs: the same object serves the chain in process and each model of the server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from tritrack.stages.card import CardError, ModelCard, engine_file, read_card
from tritrack.stages.contract import (
    EDGE_INDEX,
    EMBEDDING,
    FILTER_STAGE,
    HITS,
    STAGES,
    ContractError,
    StageSpec,
    check_hits,
    check_tensor,
)
from tritrack.stages.engine import Engine, OnnxEngine
from tritrack.stages.filtering import score_pairs, select_edges
from tritrack.stages.graph import knn_graph, radius_graph
from tritrack.stages.labelling import LABELLINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]


class Stage:
    """One stage with its model card: tensors in, tensors out, checked against the contract.

    Parameters
    ----------
    spec
        Which stage.
    card
        Cuts and limits.
    function
        The inputs of the specification, in order -> its output.
    """

    def __init__(self, spec: StageSpec, *, card: ModelCard, function: Callable[..., NDArray[Any]]) -> None:
        self.spec = spec
        self.card = card
        self._function = function
        self._sizes = {"n_columns": len(card.columns), "d": card.networks.embedding_dim}

    def __call__(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Run the stage on the tensors it wants (others may be there too).

        Raises
        ------
        ContractError
            Where an input breaks the contract or the event is over the card's limits.
        """
        inputs = [tensors[spec.name] for spec in self.spec.inputs]
        self._check(dict(zip(self.spec.inputs, inputs, strict=True)))
        (output,) = self.spec.outputs
        return {output.name: self._function(*inputs)}

    def _check(self, inputs: dict[Any, NDArray[Any]]) -> None:
        sizes = self._sizes
        for spec, array in inputs.items():
            sizes = check_tensor(array, spec, sizes)
        if self.spec is STAGES[0]:
            limits = self.card.limits
            check_hits(inputs[HITS], n_columns=sizes["n_columns"], max_hits=limits.max_hits)
        edges = inputs.get(EDGE_INDEX)
        if edges is not None and edges.size and not (edges.min() >= 0 and edges.max() < sizes["n_hits"]):
            raise ContractError(
                f"EDGE_INDEX: holds {edges.min()} to {edges.max()}, but there are {sizes['n_hits']} hits"
            )
        embedding = inputs.get(EMBEDDING)
        if embedding is not None and not np.isfinite(embedding).all():
            raise ContractError(
                "EMBEDDING: the network overflows on these hits; are their coordinates in mm, in the detector?"
            )


def stage_function(spec: StageSpec, *, card: ModelCard, engine: Engine | None) -> Callable[..., NDArray[Any]]:
    """Return what a stage computes, without checks.

    Parameters
    ----------
    spec
        Which stage.
    card
        Cuts and limits.
    engine
        The stage's network; None for a stage without one.
    """
    cuts, limits = card.cuts, card.limits
    if spec.name == "graph":
        search = partial(knn_graph, k=cuts.k) if cuts.graph == "knn" else radius_graph
        return partial(search, radius=cuts.radius, windows=cuts.windows, max_pairs=limits.max_pairs)
    if spec.name == "labelling":
        return partial(LABELLINGS[cuts.labelling], cut=cuts.gnn_cut)
    if engine is None:
        raise CardError(f"stage {spec.name} needs an engine")
    network = partial(_run_network, engine, spec, card)
    if spec is not FILTER_STAGE:
        return network

    def run_filter(hits: NDArray[np.float32], edge_index: NDArray[np.int32]) -> NDArray[np.int32]:
        scores = score_pairs(network, hits, edge_index)
        return select_edges(edge_index, scores, cut=cuts.filter_cut, max_edges=limits.max_edges)

    return run_filter


def _run_network(
    engine: Engine, spec: StageSpec, card: ModelCard, *inputs: NDArray[Any]
) -> NDArray[np.float32]:
    # An engine never sees zero rows: not every engine takes them, and the answer is known.
    n_rows = inputs[-1].shape[-1] if EDGE_INDEX in spec.inputs else inputs[0].shape[0]
    if n_rows == 0:
        (output,) = spec.engine
        shape = (0, card.networks.embedding_dim) if output is EMBEDDING else (0,)
        return np.empty(shape, dtype=np.float32)
    return engine(*inputs)


def load_stage(name: str, folder: Path, *, threads: int) -> Stage:
    """Load a stage from a folder with the model card and, for a stage with a network, ``NAME.onnx``.

    Parameters
    ----------
    name
        Name of the stage.
    folder
        A folder of engines, or a version folder of a model in the server's repository.
    threads
        Threads of the engine, and of the compiled loops.

    Raises
    ------
    CardError
        Where the card or the engine file is missing or does not fit.
    """
    spec = next(spec for spec in STAGES if spec.name == name)
    card = read_card(folder)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    engine = None
    if spec.engine:
        path = folder / engine_file(name)
        if not path.exists():
            raise CardError(f"{path}: no engine there")
        engine = OnnxEngine(path, spec=spec, threads=threads)
    return Stage(spec, card=card, function=stage_function(spec, card=card, engine=engine))
