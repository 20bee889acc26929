"""A network whose inner layers compute in 16 bits; what goes in and comes out stays float32."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tritrack.stages.card import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

AFTER_SUMS = ("incoming", "outgoing")
"""Layers of the GNN that see the sums over edges: of a hit with many, they leave the range of float16."""


class Typed(nn.Module):
    """A layer whose input is cast to the dtype that it computes in."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., n_in] of any float -> [..., n_out] of the layer's dtype."""
        result: Tensor = self.layer(x.to(self.dtype))
        return result


def typed_network(network: nn.Module, precision: Precision) -> nn.Module:
    """Return a network with the weights and activations of its inner layers in a precision.

    In float32 stay the features and the layers that see them (a hit's place takes six digits, float16 has
    three), the normalisations, the sums over edges and the layers that see these, and the last layer: a
    logit of 8 has steps of 1/16 in bfloat16.

    Parameters
    ----------
    network
        One of `tritrack.stages.networks`, in float32.
    precision
        That of the inner layers; for fp32 the network itself is returned.

    Returns
    -------
    Module
        A copy with the same inputs and outputs.
    """
    if precision == "fp32":
        return network
    exact = exact_layers(network)
    typed = copy.deepcopy(network)
    for parent_name, parent in list(typed.named_modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                path = f"{parent_name}.{name}".lstrip(".")
                inner = isinstance(layer, nn.Linear) and path not in exact
                setattr(parent, name, Typed(layer, DTYPES[precision] if inner else torch.float32))
    return typed


def exact_layers(network: nn.Module) -> set[str]:
    """Return the names of the linear layers that stay in float32."""
    linear = {layer: name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    names = list(linear.values())
    first_layers: Callable[[], list[nn.Module]] | None = getattr(network, "first_layers", None)
    first = first_layers() if first_layers is not None else []
    features = {linear[layer] for module in first for layer in module.modules() if layer in linear}
    sums = {name for name in names if name.rpartition(".")[2] in AFTER_SUMS}
    return (features or {names[0]}) | sums | {names[-1]}
