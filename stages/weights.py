"""A folder of weights: one safetensors file per network, and the model card with their hashes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save

from tritrack.stages.card import CARD_FILE, CardError, ModelCard, read_card
from tritrack.stages.networks import build_networks

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def save_weights(networks: dict[str, nn.Module], *, card: ModelCard, folder: Path) -> ModelCard:
    """Write the networks and their card; return the card with the files' hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = {}
    for name, network in networks.items():
        data = save({key: value.contiguous() for key, value in network.state_dict().items()})
        (folder / f"{name}.safetensors").write_bytes(data)
        sha256[f"{name}.safetensors"] = hashlib.sha256(data).hexdigest()
    card = replace(card, sha256=sha256)
    (folder / CARD_FILE).write_bytes(card.to_json())
    return card


def load_weights(folder: Path) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Read a folder of weights; the networks come in evaluation mode.

    Raises
    ------
    CardError
        Where a file is missing, is not the one that the card was written for, or does not fit it.
    """
    card = read_card(folder)
    networks = build_networks(card.networks)
    for name, network in networks.items():
        path = folder / f"{name}.safetensors"
        if not path.exists():
            raise CardError(f"{path}: no weights there")
        if hashlib.sha256(path.read_bytes()).hexdigest() != card.sha256.get(path.name):
            raise CardError(
                f"{path}: not the file that {folder / CARD_FILE} was written for (sha256 differs)"
            )
        try:
            network.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise CardError(f"{path}: does not fit the card's network sizes: {error}") from None
        network.eval()
    return card, networks
