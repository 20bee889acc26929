"""What each stage must do on an event: bytes and operations, from its definition and not from how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.stages.contract import (
    EDGE_INDEX,
    EMBEDDING,
    FILTER_STAGE,
    GNN_STAGE,
    GRAPH_STAGE,
    HITS,
    STAGES,
)
from tritrack.stages.filtering import PAIRS_AT_ONCE
from tritrack.stages.graph import count_compared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.bench.costs.traffic import NetworkCost
    from tritrack.stages.pipeline import Pipeline

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a stage must do on one event.

    Attributes
    ----------
    bytes
        Inputs and weights read once, outputs written once.
    operations
        Of a network its matrix products, of the radius graph three for each axis of each pair that it compares;
        otherwise 0.
    unfused_bytes
        What the operators of a plain ONNX export move where each goes to memory; None for a stage without a network.
    """

    bytes: int
    operations: float = 0.0
    unfused_bytes: float | None = None


def tensors_of(pipeline: Pipeline, hits: NDArray[np.float32]) -> list[dict[str, NDArray[Any]]]:
    """Return, for each stage, the tensors that are there when it begins, and at the end all (raises ContractError)."""
    tensors: list[dict[str, NDArray[Any]]] = [{HITS.name: hits}]
    for stage in pipeline.stages:
        tensors.append(tensors[-1] | stage(tensors[-1]))
    return tensors


def count_stages(
    pipeline: Pipeline, tensors: Sequence[Arrays], costs: Mapping[str, NetworkCost]
) -> dict[str, Count]:
    """Count what each stage must do on an event.

    Parameters
    ----------
    pipeline
        The chain.
    tensors
        Of :func:`tensors_of`.
    costs
        By stage, of its network.
    """
    counts = {}
    for spec, before, after in zip(STAGES, tensors[:-1], tensors[1:], strict=True):
        moved = sum(before[each.name].nbytes for each in spec.inputs)
        moved += sum(after[each.name].nbytes for each in spec.outputs)
        if spec.engine:
            counts[spec.name] = _count_network(costs[spec.name], spec.name, before, moved)
        else:
            operations = _compared(pipeline, before) if spec is GRAPH_STAGE else 0.0
            counts[spec.name] = Count(bytes=moved, operations=operations)
    return counts


def _compared(pipeline: Pipeline, tensors: Arrays) -> float:
    cuts = pipeline.card.point(pipeline.working_point).cuts
    if cuts.graph != "radius":
        return 0.0
    embedding = tensors[EMBEDDING.name]
    # An axis of a pair is a difference, its square and a sum.
    return 3.0 * embedding.shape[1] * count_compared(embedding, radius=cuts.radius)


def _count_network(cost: NetworkCost, stage: str, tensors: Arrays, moved: int) -> Count:
    n_hits = tensors[HITS.name].shape[0]
    pieces = [0]
    if stage == FILTER_STAGE.name:
        n_pairs = tensors[EDGE_INDEX.name].shape[1]
        pieces = [min(PAIRS_AT_ONCE, n_pairs - start) for start in range(0, n_pairs, PAIRS_AT_ONCE)]
    elif stage == GNN_STAGE.name:
        # It sees the hits that have an edge alone.
        n_hits = np.unique(tensors[EDGE_INDEX.name]).size
        pieces = [tensors[EDGE_INDEX.name].shape[1]]
    return Count(
        bytes=moved + cost.weight_bytes,
        operations=sum(cost.operations.at(n_hits=n_hits, n_edges=n) for n in pieces),
        unfused_bytes=sum(cost.unfused_bytes.at(n_hits=n_hits, n_edges=n) for n in pieces),
    )
