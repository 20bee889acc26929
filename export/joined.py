"""A first layer over the joined features of a pair: for few features, and for the plain export of the benchmarks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tritrack.stages.networks import PairLinear

FEW = 32
"""Features of a hit up to which a joined layer is the faster one: rows of intermediate sums are longer than they are."""


class JoinedLinear(nn.Module):
    """A `PairLinear` as one layer over the joined features of each pair."""

    def __init__(self, split: PairLinear) -> None:
        super().__init__()
        weight = torch.cat([split.inner.weight, split.outer.weight, split.edge.weight], dim=1)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(split.edge.bias)

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> Tensor:
        """[n_hits, n_hit], [2, n_edges], [n_edges, n_edge] -> [n_edges, n_out]."""
        result: Tensor = self.linear(torch.cat([x[edge_index[0]], x[edge_index[1]], e], dim=1))
        return result


def joined_network(network: nn.Module, *, most_features: int = FEW) -> nn.Module:
    """Return a copy of a network, which computes the same, with joined layers where hits have few features.

    Parameters
    ----------
    network
        One of `tritrack.stages.networks`.
    most_features
        Features of a hit up to which a layer over pairs is joined.
    """
    joined = copy.deepcopy(network)
    for parent in list(joined.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, PairLinear) and layer.inner.in_features <= most_features:
                setattr(parent, name, JoinedLinear(layer))
    return joined
