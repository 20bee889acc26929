"""What each Python step of the repository computes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tritrack.stages.card import read_card
from tritrack.stages.contract import EDGE_INDEX, HITS, PAIR_SCORE, STAGES, check_hits, check_tensor
from tritrack.stages.filtering import select_edges
from tritrack.stages.stage import load_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.stages.card import ModelCard

    Tensors = Mapping[str, NDArray[Any]]
    Outputs = dict[str, NDArray[Any]]


def load_step(name: str, folder: Path, *, threads: int) -> Callable[[Tensors], Outputs]:
    """Load a step from its version folder.

    Parameters
    ----------
    name
        A stage of the contract, or one of the steps beside native engines: ``entry``, ``cut``.
    folder
        Holds the model card and, for a stage with a network, its engine.
    threads
        Threads of the step.

    Returns
    -------
    callable
        Named tensors in, named tensors out; raises ContractError on inputs that break the contract.

    Raises
    ------
    CardError
        Where the card or the engine is missing or does not fit.
    """
    for stage in STAGES:
        if stage.name == name:
            return load_stage(stage, folder, threads=threads)
    return partial({"entry": _enter, "cut": _cut}[name], read_card(folder))


def _enter(card: ModelCard, tensors: Tensors) -> Outputs:
    hits = tensors[HITS.name]
    check_hits(hits, n_columns=len(card.columns), max_hits=card.limits.max_hits)
    return {HITS.name: hits}


def _cut(card: ModelCard, tensors: Tensors) -> Outputs:
    edge_index, pair_score = tensors[EDGE_INDEX.name], tensors[PAIR_SCORE.name]
    check_tensor(pair_score, PAIR_SCORE, check_tensor(edge_index, EDGE_INDEX, {}))
    cut, limit = card.point().cuts.filter_cut, card.limits.max_edges
    return {EDGE_INDEX.name: select_edges(edge_index, pair_score, cut=cut, max_edges=limit)}
