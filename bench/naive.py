"""The plain export of the networks: what the engines are measured against.

The same weights, computed as they are commonly written: a first linear layer over [x_inner, x_outer, e], put together
for every pair, and sums over edges by ScatterElements with a reduction.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tritrack.stages.networks import PairLinear

if TYPE_CHECKING:
    from tritrack.export.edge_sum import Rendering

SUM: Rendering = "scatter"
"""The sum over edges of a plain export."""


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


def joined_network(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose layers over pairs take joined features."""
    joined = copy.deepcopy(network)
    for parent in list(joined.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, PairLinear):
                setattr(parent, name, JoinedLinear(layer))
    return joined
