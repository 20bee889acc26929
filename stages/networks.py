"""The three networks. Each takes and gives the tensors of the contract: scaling and features live inside."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tritrack.stages.edge_sum import sum_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.stages.card import Networks

N_HIT_FEATURES = 7
N_PAIR_FEATURES = 11

# Units of the features: they bring each to about one over the detector (r < 1.1 m, |z| < 3.1 m).
R_UNIT = 1000.0  # mm
Z_UNIT = 1000.0  # mm
ETA_UNIT = 2.0
Z0_UNIT = 50.0  # mm, the beam spot's length
CURVATURE_UNIT = 6e-4  # 1/mm, a charged particle of 1 GeV in 2 T
OVERLAP_UNIT = 2.0  # mm, the distance of two hits on overlapping modules of one layer
TINY = 1e-3  # mm; keeps a hit on the beam line, or two hits at one place, finite


def hit_features(hits: Tensor) -> Tensor:
    """Features of single hits.

    Parameters
    ----------
    hits
        float32 [n_hits, 3], x, y, z in mm.

    Returns
    -------
    Tensor
        float32 [n_hits, 7]: r, cos phi, sin phi, z, eta, x, y, scaled to about one.
    """
    x, y, z = hits[:, 0], hits[:, 1], hits[:, 2]
    r = torch.sqrt(x * x + y * y).clamp(min=TINY)
    return torch.stack(
        [r / R_UNIT, x / r, y / r, z / Z_UNIT, torch.asinh(z / r) / ETA_UNIT, x / R_UNIT, y / R_UNIT], dim=1
    )


def pair_features(features: Tensor, edge_index: Tensor) -> Tensor:
    """Geometry of pairs of hits, from the features of their hits.

    Parameters
    ----------
    features
        float32 [n_hits, 7], of :func:`hit_features`.
    edge_index
        int64 [2, n_edges], inner hit first.

    Returns
    -------
    Tensor
        float32 [n_edges, 11]: dr, dz, sin and cos of dphi, deta, the sine of the slope in r-z, the pair's
        z at the beam line, the curvature of the circle through the beam line and both hits; then dr, dz and
        the arc r dphi on a logarithmic scale, because a third of all consecutive hits lie millimetres apart,
        on overlapping modules, and the others up to a metre.
    """
    inner, outer = features[edge_index[0]], features[edge_index[1]]
    r_inner, r_outer = inner[:, 0], outer[:, 0]
    dz = outer[:, 3] - inner[:, 3]
    dx, dy = outer[:, 5] - inner[:, 5], outer[:, 6] - inner[:, 6]
    # dr and the arc (so sin(dphi)) from dx and dy: the differences of r and of the angles' sines and cosines lose all
    # their digits for hits close to each other, and with them an engine's agreement with another's.
    dr = (dx * (outer[:, 5] + inner[:, 5]) + dy * (outer[:, 6] + inner[:, 6])) / (r_outer + r_inner)
    arc = (inner[:, 5] * dy - inner[:, 6] * dx) / r_inner
    sin_dphi = arc / r_outer
    cos_dphi = inner[:, 1] * outer[:, 1] + inner[:, 2] * outer[:, 2]
    deta = outer[:, 4] - inner[:, 4]
    length = torch.sqrt(dr * dr + dz * dz).clamp(min=TINY / R_UNIT)
    safe_dr = torch.where(dr >= 0, dr.clamp(min=TINY / R_UNIT), dr.clamp(max=-TINY / R_UNIT))
    z0 = (inner[:, 3] - r_inner * dz / safe_dr) * (Z_UNIT / Z0_UNIT)
    # A chord of length d seen under dphi from a point of its circle: curvature = 2 sin(dphi) / d.
    chord = torch.sqrt(dx * dx + dy * dy).clamp(min=TINY / R_UNIT)
    curvature = 2.0 * sin_dphi / (chord * R_UNIT * CURVATURE_UNIT)
    close = torch.asinh(torch.stack([dr, dz, arc], dim=1) * (R_UNIT / OVERLAP_UNIT))
    far = [dr, dz, sin_dphi, cos_dphi, deta, dz / length, torch.asinh(z0), torch.asinh(curvature)]
    return torch.cat([torch.stack(far, dim=1), close], dim=1)


def mlp(*widths: int, norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, optionally normalised before each ReLU."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        if i:
            layers += [nn.LayerNorm(n_in)] if norm else []
            layers.append(nn.ReLU())
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


class PairLinear(nn.Module):
    """A linear layer over [x_inner, x_outer, e], as three: the hits' parts are computed once per hit."""

    def __init__(self, *, n_hit: int, n_edge: int, n_out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(n_hit, n_out, bias=False)
        self.outer = nn.Linear(n_hit, n_out, bias=False)
        self.edge = nn.Linear(n_edge, n_out)

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> Tensor:
        """[n_hits, n_hit], [2, n_edges], [n_edges, n_edge] -> [n_edges, n_out]."""
        result: Tensor = self.edge(e) + self.inner(x)[edge_index[0]] + self.outer(x)[edge_index[1]]
        return result


class EmbeddingNetwork(nn.Module):
    """HITS -> EMBEDDING: an MLP per hit (metric learning as in arXiv:2007.00149)."""

    def __init__(self, *, width: int, layers: int, dim: int) -> None:
        super().__init__()
        self.net = mlp(N_HIT_FEATURES, *[width] * layers, dim)

    def forward(self, hits: Tensor) -> Tensor:
        """float32 [n_hits, 3] in mm -> float32 [n_hits, d]."""
        embedding: Tensor = self.net(hit_features(hits))
        return embedding


class FilterNetwork(nn.Module):
    """HITS, EDGE_INDEX -> PAIR_SCORE: an MLP per pair."""

    def __init__(self, *, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first = PairLinear(n_hit=N_HIT_FEATURES, n_edge=N_PAIR_FEATURES, n_out=widths[0])
        self.rest = nn.Sequential(nn.ReLU(), mlp(*widths, 1))

    def first_layers(self) -> list[nn.Module]:
        """Layers that see features: they need float32."""
        return [self.first]

    def logits(self, hits: Tensor, edge_index: Tensor) -> Tensor:
        """Score before the sigmoid, float32 [n_edges]; what training uses."""
        edge_index = edge_index.long()
        x = hit_features(hits)
        logits: Tensor = self.rest(self.first(x, edge_index, pair_features(x, edge_index)))
        return logits[:, 0]

    def forward(self, hits: Tensor, edge_index: Tensor) -> Tensor:
        """float32 [n_hits, 3] in mm, int32 [2, n_edges] -> float32 [n_edges]."""
        return torch.sigmoid(self.logits(hits, edge_index))


class InteractionStep(nn.Module):
    """One step of message passing with residual updates (interaction network, arXiv:1612.00222)."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.pair = PairLinear(n_hit=width, n_edge=width, n_out=width)
        self.message = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        self.node = nn.Linear(width, width)
        self.incoming = nn.Linear(width, width, bias=False)
        self.outgoing = nn.Linear(width, width, bias=False)
        self.update = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, e: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """[n_hits, width], [n_edges, width], [2, n_edges] -> both, updated."""
        e = e + self.message(self.pair(x, edge_index, e))
        terms = e.to(torch.promote_types(e.dtype, torch.float32))  # where the layers compute in 16 bits, too
        outgoing = self.outgoing(sum_edges(terms, edge_index[0], x))
        incoming = self.incoming(sum_edges(terms, edge_index[1], x))
        return x + self.update(self.node(x) + incoming + outgoing), e


class GnnNetwork(nn.Module):
    """HITS, EDGE_INDEX -> EDGE_SCORE: an interaction network over the graph that the filter left."""

    def __init__(self, *, width: int, steps: int) -> None:
        super().__init__()
        self.encode_hits = mlp(N_HIT_FEATURES, width, width, norm=True)
        self.encode_pairs = mlp(N_PAIR_FEATURES, width, width, norm=True)
        self.steps = nn.ModuleList(InteractionStep(width=width) for _ in range(steps))
        self.decode = mlp(width, width, 1, norm=True)

    def first_layers(self) -> list[nn.Module]:
        """Layers that see features: they need float32."""
        return [self.encode_hits[0], self.encode_pairs[0]]

    def logits(self, hits: Tensor, edge_index: Tensor) -> Tensor:
        """Score before the sigmoid, float32 [n_edges]; what training uses."""
        edge_index = edge_index.long()
        features = hit_features(hits)
        x = self.encode_hits(features)
        e = self.encode_pairs(pair_features(features, edge_index))
        for step in self.steps:
            x, e = step(x, e, edge_index)
        logits: Tensor = self.decode(e)
        return logits[:, 0]

    def forward(self, hits: Tensor, edge_index: Tensor) -> Tensor:
        """float32 [n_hits, 3] in mm, int32 [2, n_edges] -> float32 [n_edges]."""
        return torch.sigmoid(self.logits(hits, edge_index))


def run_network(network: nn.Module, *inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Run a network in torch, on the device that it is on, in float32: the reference of its engines."""
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in inputs)
        output: NDArray[np.float32] = network(*tensors).cpu().numpy()
    return output


def build_networks(sizes: Networks) -> dict[str, nn.Module]:
    """Return the three networks by the name of their stage, with fresh weights."""
    return {
        "embedding": EmbeddingNetwork(
            width=sizes.embedding_width, layers=sizes.embedding_layers, dim=sizes.embedding_dim
        ),
        "filter": FilterNetwork(widths=sizes.filter_widths),
        "gnn": GnnNetwork(width=sizes.gnn_width, steps=sizes.gnn_steps),
    }
