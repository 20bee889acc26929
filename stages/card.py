"""The model card: what travels with a set of weights (cuts, limits, network sizes, where they come from)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from tritrack.stages.contract import CONTRACT_VERSION

if TYPE_CHECKING:
    from pathlib import Path

CARD_FILE = "card.json"


def engine_file(stage: str) -> str:
    """Name of the file that a stage's network is exported to; it lies beside the card."""
    return f"{stage}.onnx"


GraphMethod = Literal["radius", "knn"]
LabellingMethod = Literal["components", "walkthrough", "helix"]


class CardError(ValueError):
    """A model card that cannot be used; the message names the file and the field."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Sizes of the three networks.

    Attributes
    ----------
    embedding_width, embedding_layers, embedding_dim
        Hidden width, hidden layers and output dimension of the embedding MLP.
    filter_widths
        Hidden widths of the filter MLP.
    gnn_width, gnn_steps
        Latent width and number of message-passing steps of the interaction network.
    """

    embedding_width: int = 256
    embedding_layers: int = 3
    embedding_dim: int = 8
    filter_widths: tuple[int, ...] = (128, 128, 64)
    gnn_width: int = 64
    gnn_steps: int = 6


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Working point of the chain.

    Attributes
    ----------
    graph
        "radius": every pair within ``radius``. "knn": of those, the ``k`` nearest of each hit.
    radius
        Euclidean distance in the learned space.
    k
        Neighbours of a hit; used by "knn".
    filter_cut, gnn_cut
        Lowest score that is kept.
    labelling
        How edges become tracks.
    """

    graph: GraphMethod
    radius: float
    k: int
    filter_cut: float
    gnn_cut: float
    labelling: LabellingMethod


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest event that the model takes: hits, pairs out of the graph stage, edges out of the filter.

    A pair costs the filter 8 bytes, an edge costs the GNN some kilobytes.
    """

    max_hits: int
    max_pairs: int
    max_edges: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where the weights come from.

    Attributes
    ----------
    seed
        Seed of the training itself.
    data_seed, first_event, n_events, pileup
        The simulated events trained on.
    steps
        Optimiser steps of each network.
    minutes
        Wall time of each network's training.
    versions
        Versions of the libraries used.
    """

    seed: int
    data_seed: int
    first_event: int
    n_events: int
    pileup: float
    steps: dict[str, int]
    minutes: dict[str, float]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The card of one set of weights.

    Attributes
    ----------
    name
        Name of the model.
    contract_version
        Version of the tensor contract that the model speaks.
    columns
        Columns of HITS, in order, with their units.
    networks, cuts, limits
        See the classes.
    training
        None for weights that were not trained (tests).
    metrics
        Physics on events that nothing was trained or chosen on, by name.
    sha256
        Hash of each weights file, by file name.
    """

    name: str
    contract_version: int = CONTRACT_VERSION
    columns: tuple[str, ...] = ("x [mm]", "y [mm]", "z [mm]")
    networks: Networks
    cuts: Cuts
    limits: Limits
    training: Training | None = None
    metrics: dict[str, float]
    sha256: dict[str, str]

    def to_json(self) -> bytes:
        """Return the card as JSON, in one canonical form."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: names this card on a server."""
        return hashlib.sha256(self.to_json()).hexdigest()


def read_card(folder: Path) -> ModelCard:
    """Read the card of a folder of weights or engines.

    Raises
    ------
    CardError
        Where there is no card, it does not parse, or it speaks another version of the contract.
    """
    path = folder / CARD_FILE
    try:
        card = msgspec.json.decode(path.read_bytes(), type=ModelCard)
    except FileNotFoundError:
        raise CardError(f"{path}: no model card there") from None
    except msgspec.MsgspecError as error:
        raise CardError(f"{path}: {error}") from None
    if card.contract_version != CONTRACT_VERSION:
        raise CardError(
            f"{path}: speaks contract version {card.contract_version}, this tritrack {CONTRACT_VERSION}"
        )
    return card
