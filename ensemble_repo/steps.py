"""What each model that runs in Python computes."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from tritrack.ensemble_repo.plan import CHAIN, ENTRY_STEP, RULE_FINDER
from tritrack.rules.windows import N_COLUMNS, read_rules
from tritrack.stages.card import read_card
from tritrack.stages.contract import (
    CUT_STEP,
    EVENT_OFFSETS,
    FIT_STEP,
    FITTED,
    HITS,
    STAGES,
    TRACK_LABEL,
    ContractError,
    check_hits,
    check_labels,
    in_event,
)
from tritrack.stages.packing import join_pack, split_pack
from tritrack.stages.placement import to_host
from tritrack.stages.stage import load_stage
from tritrack.stages.warm_up import small_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.rules.finder import RuleFinder
    from tritrack.rules.windows import Rules
    from tritrack.stages.card import ModelCard, WorkingPointName
    from tritrack.stages.contract import TensorSpec
    from tritrack.stages.pipeline import Pipeline

    Tensors = Mapping[str, Any]
    Outputs = dict[str, Any]


def load_step(
    computes: str,
    folder: Path,
    *,
    threads: int,
    working_point: WorkingPointName | None = None,
    device: str | None = None,
) -> Callable[[Tensors], Outputs]:
    """Load a step from its version folder, and run it once on a small event.

    Parameters
    ----------
    computes
        One of the contract's stages, ``cut``, ``entry``, ``chain``, ``rule_finder``, or ``track_fit``.
    folder
        Holds the model card and the engine of each network in it; of the last two the rules.
    threads
        Threads of the step; the rule-based finder and the fit have one.
    working_point
        Whose cuts it takes.
    device
        Torch's name of the device that the card's stages compute on where they can; None for the host.

    Returns
    -------
    callable
        Named tensors in, named tensors out, wherever they lie (`tritrack.stages.placement`); raises ContractError on
        inputs that break the contract.

    Raises
    ------
    CardError
        Where the card, the engine or the working point is missing or does not fit.
    RulesError
        Where the rules are missing or cannot be used.
    """
    if computes == ENTRY_STEP.name:
        return partial(_enter, read_card(folder))
    if computes == CHAIN.name:
        from tritrack.stages.pipeline import Pipeline  # here: it imports ONNX Runtime

        chain = Pipeline.load(folder, threads=threads, working_point=working_point, device=device)
        _warm_up(chain.stages, _event_of(chain.card))
        return partial(_find, chain)
    if computes in (RULE_FINDER.name, FIT_STEP.name):
        step = _load_rules(computes, folder)
        _warm_up([step], small_event(n_columns=N_COLUMNS, embedding_dim=1))
        return step
    spec = next(spec for spec in (*STAGES, CUT_STEP) if spec.name == computes)
    stage = load_stage(spec, folder, threads=threads, working_point=working_point, device=device)
    _warm_up([stage], _event_of(stage.card))
    return stage


def _load_rules(computes: str, folder: Path) -> Callable[[Tensors], Outputs]:
    if computes == FIT_STEP.name:
        return partial(_fit, read_rules(folder))
    from tritrack.rules.finder import RuleFinder  # here: it imports numba

    return partial(_find_by_rules, RuleFinder.load(folder))


def _event_of(card: ModelCard) -> Tensors:
    return small_event(n_columns=len(card.columns), embedding_dim=card.networks.embedding_dim)


def _warm_up(steps: Iterable[Callable[[Tensors], Outputs]], event: Tensors) -> None:
    for step in steps:
        with suppress(ContractError):  # the limits are smaller than this event
            step(event)


def _enter(card: ModelCard, tensors: Tensors) -> Outputs:
    """Check the hits, on the host, wherever Triton put them; memory of another process cannot be handed on."""
    hits, event_offsets = to_host(tensors[HITS.name]), tensors.get(EVENT_OFFSETS.name)
    check_hits(
        hits,
        n_columns=len(card.columns),
        max_hits=card.limits.max_hits,
        event_offsets=None if event_offsets is None else to_host(event_offsets),
    )
    return {HITS.name: hits}


def _find(chain: Pipeline, tensors: Tensors) -> Outputs:
    return {TRACK_LABEL.name: chain.find(tensors[HITS.name], event_offsets=tensors.get(EVENT_OFFSETS.name))}


def _find_by_rules(finder: RuleFinder, tensors: Tensors) -> Outputs:
    hits, event_offsets = tensors[HITS.name], tensors.get(EVENT_OFFSETS.name)
    if event_offsets is None:
        return {TRACK_LABEL.name: finder.find(hits)}
    check_hits(hits, n_columns=N_COLUMNS, max_hits=finder.rules.max_hits, event_offsets=event_offsets)
    parts = [finder.find(event[HITS]) for event in split_pack({HITS: hits}, event_offsets, {})]
    return {TRACK_LABEL.name: join_pack(parts, spec=TRACK_LABEL, event_offsets=event_offsets, sizes={})}


def _fit(rules: Rules, tensors: Tensors) -> Outputs:
    """Fit the tracks of an event, or of each event of a pack, whose rows follow one another."""
    hits, event_offsets = tensors[HITS.name], tensors.get(EVENT_OFFSETS.name)
    check_hits(hits, n_columns=N_COLUMNS, max_hits=rules.max_hits, event_offsets=event_offsets)
    inputs = {HITS: hits, TRACK_LABEL: tensors[TRACK_LABEL.name]}
    if event_offsets is None:
        return {FITTED.name: _fit_event(rules, inputs)}
    parts = []
    for event, part in enumerate(split_pack(inputs, event_offsets, {})):
        with in_event(event):
            parts.append(_fit_event(rules, part))
    return {FITTED.name: join_pack(parts, spec=FITTED, event_offsets=event_offsets, sizes={})}


def _fit_event(rules: Rules, inputs: Mapping[TensorSpec, NDArray[Any]]) -> NDArray[np.float32]:
    from tritrack.physics.fit import fit_tracks  # here: it imports numba

    hits, labels = inputs[HITS], inputs[TRACK_LABEL]
    check_labels(labels, n_hits=hits.shape[0])
    return fit_tracks(hits=hits, labels=labels, layers=rules.layers, field=rules.field).fitted
