"""Mixed precision: the layers of a network in bfloat16 where that loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn


def mixed_precision(network: nn.Module) -> AbstractContextManager[Any]:
    """Return the context to train a network in.

    Matrix products run in bfloat16, but for the layers that see features (``network.first_layers``): bfloat16
    has three digits, and where a hit lies takes six. A network without ``first_layers`` (the embedding, whose
    every layer carries positions) stays in float32.
    """
    device = next(network.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=hasattr(network, "first_layers"))


def keep_first_layers(network: nn.Module) -> None:
    """Have the first layers of a network compute in float32 within :func:`mixed_precision`, once and for all."""
    first_layers: Callable[[], list[nn.Module]] | None = getattr(network, "first_layers", None)
    if first_layers is None:
        return
    device = next(network.parameters()).device.type

    def leave(*_: object) -> None:
        if torch.is_autocast_enabled(device):
            torch.set_autocast_enabled(device, False)
            left.append(True)

    def enter(*_: object) -> None:
        if left:
            torch.set_autocast_enabled(device, left.pop())

    left: list[bool] = []
    for layer in first_layers():
        layer.register_forward_pre_hook(leave)
        layer.register_forward_hook(enter)
