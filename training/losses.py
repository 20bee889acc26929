"""The loss of each network on a wedge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from tritrack.stages.windows import possible_pairs
from tritrack.training.sample import Sample, pair_targets, path_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tritrack.stages.card import Windows
    from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork

MARGIN = 1.0
"""Distance in the learned space that pairs of two particles are pushed apart to."""

NEGATIVE_WEIGHT = 0.01
"""Cost of a stranger at distance 0: more keeps neighbourhoods small, less keeps pairs together."""

N_QUERIES = 768
N_HARD_NEGATIVES = 200_000
N_FILTER_NEGATIVES = 75_000
GAP_WEIGHT = (1.0, 0.3)
"""Weight of the attraction of consecutive hits, and of hits that skip one."""


def embedding_loss(
    network: EmbeddingNetwork, sample: Sample, rng: np.random.Generator, *, windows: Windows
) -> Tensor:
    """Metric learning: pull the pairs of a particle together, push its nearest strangers away.

    The negatives are the neighbours, within the margin, of random hits in the current embedding
    (hard negatives; arXiv:2007.00149), but for those that the windows throw out anyway.
    """
    device = next(network.parameters()).device
    embedding: Tensor = network(torch.from_numpy(sample.hits).to(device))
    loss: Tensor = embedding.new_zeros(())
    for gap, gap_weight in enumerate(GAP_WEIGHT, start=1):
        pairs = path_pairs(sample, gap=gap)
        # Squared: the radius is set by the targets, and soft particles are spread most.
        weight = torch.from_numpy(np.minimum(sample.weight[pairs[0]], 1.0) ** 2).to(device)
        squared = (embedding[pairs[0]] - embedding[pairs[1]]).square().sum(dim=1)
        loss = loss + gap_weight * (weight * squared).sum() / weight.sum().clamp(min=1.0)
    queries = rng.choice(sample.hits.shape[0], size=min(N_QUERIES, sample.hits.shape[0]), replace=False)
    with torch.no_grad():
        near = (torch.cdist(embedding[queries], embedding) < MARGIN).cpu().numpy()
    query, neighbour = np.divmod(np.flatnonzero(near), sample.hits.shape[0])
    pairs = np.stack([queries[query], neighbour])
    particle = sample.particle[pairs]
    stranger = ((particle[0] != particle[1]) | (particle[0] < 0)) & (pairs[0] != pairs[1])
    strangers = pairs[:, stranger]
    strangers = strangers[:, possible_pairs(sample.hits, strangers, windows=windows)]
    n_strangers = strangers.shape[1]
    if n_strangers > N_HARD_NEGATIVES:
        strangers = strangers[:, rng.choice(n_strangers, size=N_HARD_NEGATIVES, replace=False)]
    if n_strangers:
        difference = embedding[strangers[0]] - embedding[strangers[1]]
        distance = torch.sqrt(difference.square().sum(dim=1) + 1e-12)
        # By the number of queries, not of neighbours: what costs is how many neighbours a hit has.
        scale = n_strangers / strangers.shape[1] / queries.size
        loss = loss + NEGATIVE_WEIGHT * scale * functional.relu(MARGIN - distance).square().sum()
    return loss


def filter_loss(
    network: FilterNetwork, sample: Sample, pairs: NDArray[np.int32], rng: np.random.Generator
) -> Tensor:
    """Binary cross-entropy on the graph's pairs: all true ones and a share of the others."""
    target, weight = pair_targets(sample, pairs)
    negatives = np.flatnonzero(~target & (weight > 0))
    if negatives.size > N_FILTER_NEGATIVES:
        negatives = rng.choice(negatives, size=N_FILTER_NEGATIVES, replace=False)
    chosen = np.concatenate([np.flatnonzero(target), negatives])
    return _cross_entropy(network, sample, pairs[:, chosen], target[chosen], weight[chosen])


def gnn_loss(network: GnnNetwork, sample: Sample, pairs: NDArray[np.int32]) -> Tensor:
    """Binary cross-entropy on every pair that the filter left."""
    return _cross_entropy(network, sample, pairs, *pair_targets(sample, pairs))


def _cross_entropy(
    network: FilterNetwork | GnnNetwork,
    sample: Sample,
    pairs: NDArray[np.int32],
    target: NDArray[np.bool_],
    weight: NDArray[np.float32],
) -> Tensor:
    device = next(network.parameters()).device
    logits = network.logits(torch.from_numpy(sample.hits).to(device), torch.from_numpy(pairs).to(device))
    weights = torch.from_numpy(weight).to(device)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), torch.from_numpy(target).to(device, torch.float32), weight=weights, reduction="sum"
    )
    return losses / weights.sum().clamp(min=1.0)
