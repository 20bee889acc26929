"""The model card: what travels with a set of weights (cuts, limits, network sizes, where they come from)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec

from tritrack.stages.contract import CONTRACT_VERSION

if TYPE_CHECKING:
    from pathlib import Path

CARD_FILE = "card.json"

ENSEMBLE = "track_finder"
"""Name of what a server answers with: HITS in, TRACK_LABEL out, at the default working point."""

FUSED = "track_finder_fused"
"""Name of the same, computed in one process."""


def engine_file(stage: str) -> str:
    """Name of the file that a stage's network is exported to; it lies beside the card."""
    return f"{stage}.onnx"


GraphMethod = Literal["radius", "knn"]
LabellingMethod = Literal["components", "walkthrough", "helix"]
WorkingPointName = Literal["fast", "balanced", "best"]
Precision = Literal["fp32", "fp16", "bf16"]
"""What the inner layers of an engine compute in; its tensors at the boundary are the contract's in each."""

NetworkName = Literal["embedding", "filter", "gnn"]
"""The stages that have a network."""

WORKING_POINTS: tuple[WorkingPointName, ...] = get_args(WorkingPointName)
"""The names, from the least time to the most tracks."""


def ensemble_name(working_point: WorkingPointName | None, *, ensemble: str = ENSEMBLE) -> str:
    """Name of what a server answers with at one working point; None is the default one."""
    return ensemble if working_point is None else f"{ensemble}_{working_point}"


def default_name(ensemble: str, working_point: WorkingPointName | None) -> str:
    """Name of the same at the default working point, whether or not this name has its working point's."""
    return ensemble.removesuffix(ensemble_name(working_point, ensemble=""))


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
class Windows:
    """Geometry of a candidate pair of hits: on its own (loose: what could be a particle of some momentum), and with others.

    Attributes
    ----------
    max_z0
        Largest distance from the origin, in mm, at which the straight line through both hits in r-z meets the
        beam line.
    max_curvature
        Largest curvature, in 1/mm, of the circle through the beam line and both hits: 6e-4 / (pT in GeV) in 2 T.
    overlap
        Pairs at most so far apart, in mm, pass whatever their direction: hits on overlapping modules, whose
        distance is too small to tell one.
    min_chain
        Pairs, at least, of the chain that a pair must be part of (:mod:`tritrack.stages.chains`), 64 at most; 1 asks
        for none.
    max_d0
        Largest distance, in mm, at which the particle of a chain passes the beam line.
    """

    max_z0: float
    max_curvature: float
    overlap: float
    min_chain: Annotated[int, msgspec.Meta(le=64)] = 1
    max_d0: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What the chain keeps on its way.

    Attributes
    ----------
    graph
        "radius": every pair within ``radius``. "knn": of those, the ``k`` nearest of each hit.
    radius
        Euclidean distance in the learned space.
    windows
        Geometry that a pair must have as well.
    k
        Neighbours of a hit; used by "knn".
    filter_cut, gnn_cut
        Lowest score that is kept.
    labelling
        How edges become tracks.
    """

    graph: GraphMethod
    radius: float
    windows: Windows
    k: int
    filter_cut: float
    gnn_cut: float
    labelling: LabellingMethod


@dataclass(frozen=True, kw_only=True)
class WorkingPoint:
    """Cuts, and what they give: efficiency is bought with time.

    Attributes
    ----------
    cuts
        The cuts.
    metrics
        Physics and sizes on validation events, by name, for each set of events ("pileup 200"); may be empty.
    """

    cuts: Cuts
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest event that the model takes: hits, pairs that the graph search finds, edges out of the filter.

    A pair costs the filter 8 bytes, an edge costs the GNN some kilobytes.
    """

    max_hits: int
    max_pairs: int
    max_edges: int


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """One folder of events.

    Attributes
    ----------
    n_events
        How many.
    simulation
        The settings that they were simulated with; None for events from elsewhere.
    """

    n_events: int
    simulation: dict[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where the weights come from.

    Attributes
    ----------
    seed
        Seed of the training itself.
    sets
        The events trained on.
    steps
        Optimiser steps of each network.
    minutes
        Wall time of each network's training.
    versions
        Versions of the libraries used.
    gnn_from
        Name and card hash of the model whose GNN the training began with; None for fresh weights.
    """

    seed: int
    sets: tuple[TrainingSet, ...]
    steps: dict[str, int]
    minutes: dict[str, float]
    versions: dict[str, str]
    gnn_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignStage:
    """How an ONNX file from elsewhere stands for a stage's network; types and sizes are the file's own.

    Attributes
    ----------
    inputs
        The file's names of the network's inputs, in the contract's order: hits, then pairs where it takes them.
    output
        The file's name of what the stage gives; other outputs are left out.
    sigmoid
        Whether the file gives logits, so that a sigmoid is still to be applied.
    """

    inputs: tuple[str, ...]
    output: str
    sigmoid: bool = False


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
    networks, limits
        See the classes.
    working_points
        By name, one at least.
    default
        The one that is used where none is named.
    training
        None for weights that were not trained (tests).
    sha256
        Hash of each weights file, by file name; of a foreign stage, of its ONNX file.
    foreign
        Stages whose networks come from elsewhere.
    """

    name: str
    contract_version: int = CONTRACT_VERSION
    columns: tuple[str, ...] = ("x [mm]", "y [mm]", "z [mm]")
    networks: Networks
    working_points: dict[WorkingPointName, WorkingPoint]
    default: WorkingPointName
    limits: Limits
    training: Training | None = None
    sha256: dict[str, str]
    foreign: dict[NetworkName, ForeignStage] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the card as JSON, in one canonical form."""
        fields = msgspec.to_builtins(self)
        if not self.foreign:
            del fields["foreign"]  # cards from before there were any keep their hash
        return msgspec.json.format(msgspec.json.encode(fields, order="sorted"), indent=2) + b"\n"

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: names this card on a server."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def points(self) -> tuple[WorkingPointName, ...]:
        """Names of the working points there, in the order of ``WORKING_POINTS``."""
        return tuple(name for name in WORKING_POINTS if name in self.working_points)

    def point(self, name: WorkingPointName | None = None) -> WorkingPoint:
        """Return a working point, the default one where none is named (raises CardError)."""
        point = self.working_points.get(name or self.default)
        if point is None:
            raise CardError(
                f"model {self.name}: has no working point {name}, it has {', '.join(self.points)}"
            )
        return point


def read_card(folder: Path) -> ModelCard:
    """Read the card of a folder of weights or engines (raises CardError)."""
    return read_card_file(folder / CARD_FILE)


def read_card_file(path: Path) -> ModelCard:
    """Read a card.

    Raises
    ------
    CardError
        Where there is no card, it does not parse, it has a field that no card has, it lacks its default working
        point, or it speaks another version of the contract.
    """
    try:
        written = path.read_bytes()
        card = msgspec.json.decode(written, type=ModelCard)
    except FileNotFoundError:
        raise CardError(f"{path}: no model card there") from None
    except msgspec.MsgspecError as error:
        raise CardError(f"{path}: {error}") from None
    if card.contract_version != CONTRACT_VERSION:
        raise CardError(
            f"{path}: speaks contract version {card.contract_version}, this tritrack {CONTRACT_VERSION}"
        )
    if (unknown := _unknown_field(msgspec.json.decode(written), msgspec.to_builtins(card))) is not None:
        raise CardError(f"{path}: a card has no field {unknown}")
    if card.default not in card.working_points:
        there = ", ".join(card.points) or "none"
        raise CardError(f"{path}: default is {card.default}, but the working points there are: {there}")
    return card


def _unknown_field(written: Any, read: Any) -> str | None:
    """Return the first field that was written and not read, as a path: one with a wrong name is its default else."""
    if isinstance(written, list):
        pairs = [(str(place), value, read[place]) for place, value in enumerate(written)]
    elif isinstance(written, dict):
        if absent := [name for name in written if name not in read]:
            return str(absent[0])
        pairs = [(name, value, read[name]) for name, value in written.items()]
    else:
        return None
    found = ((name, _unknown_field(value, known)) for name, value, known in pairs)
    return next((f"{name}.{unknown}" for name, unknown in found if unknown is not None), None)
