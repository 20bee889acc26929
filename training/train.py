"""Train the three networks in order; each learns on what the ones before it give."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, cast

import msgspec
import numpy as np
import torch

from tritrack.events.simulation import read_settings
from tritrack.stages.card import Limits, ModelCard, Networks, Training, TrainingSet, Windows, WorkingPointName
from tritrack.stages.networks import build_networks
from tritrack.stages.weights import load_weights, save_weights
from tritrack.training.curves import write_curves
from tritrack.training.graphs import filtered_pairs, graph_pairs, kept
from tritrack.training.loop import Fitted, Schedule, draw, fit
from tritrack.training.losses import embedding_loss, filter_loss, gnn_loss
from tritrack.training.validation import (
    FILTER_RECALL,
    GRAPH_RECALL,
    choose_filter_cut,
    choose_radius,
    validate_embedding,
    validate_filter,
    validate_gnn,
)
from tritrack.training.wedges import event_files, make_wedges, read_wedge
from tritrack.training.working_point import choose_working_points, validation_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork
    from tritrack.training.loop import Validation
    from tritrack.training.sample import Sample

    Pairs = NDArray[np.int32]
    OnStep = Callable[[str, int, int, str], None]
    OnNote = Callable[[str], None]

NetworkName = Literal["embedding", "filter", "gnn"]

N_VALIDATION_WEDGES = 12
"""Wedges, from all over the validation events, that the curves and the cuts during the training are of."""


class TrainingError(ValueError):
    """A training that cannot go on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training.

    Attributes
    ----------
    events, validation
        Folders of Parquet events, of any pile-up; at least two events to validate on in each.
    work
        Folder for wedges, pairs and checkpoints; a stopped training resumes from it.
    out
        Folder that the weights go to.
    name
        Name of the model.
    seed
        Seed of the first weights, the order of the wedges and every draw.
    embedding, filter, gnn
        Steps and learning rate of each network.
    gnn_from
        Folder of weights whose GNN the training of the GNN begins with (a curriculum, say from sparse events to dense
        ones); None for a fresh one.
    networks
        Sizes of the networks.
    windows
        Geometry of candidate pairs.
    limits
        Largest event that the model will take.
    default
        The working point that is served where none is named.
    """

    events: tuple[Path, ...]
    validation: tuple[Path, ...]
    work: Path
    out: Path
    name: str
    seed: int
    embedding: Schedule
    filter: Schedule
    gnn: Schedule
    gnn_from: Path | None = None
    networks: Networks
    windows: Windows
    limits: Limits
    default: WorkingPointName


class Trainer:
    """Carries out a plan.

    Parameters
    ----------
    plan
        What to train.
    on_step
        Called with what is going on (cutting the events into wedges, or a network's name), how much of it is
        done, all of it, and a remark.
    on_note
        Called with each result worth telling.

    Raises
    ------
    TrainingError
        Where the plan's work folder belongs to another plan, or the GNN to begin with has other sizes.
    CardError
        Where the weights to begin with cannot be used.
    EventError
        Where there are no events, or too few to validate on.
    """

    def __init__(self, plan: Plan, *, on_step: OnStep, on_note: OnNote) -> None:
        self.plan = plan
        self._on_step = on_step
        self._on_note = on_note
        self._fitted: dict[str, Fitted] = {}
        self._train_files = [path for folder in plan.events for path in event_files(folder)]
        self._validation_files = validation_sets(plan.validation)
        torch.manual_seed(plan.seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._networks = {name: net.to(device) for name, net in build_networks(plan.networks).items()}
        self._gnn_from = None if plan.gnn_from is None else _take_over(self._networks["gnn"], plan.gnn_from)
        plan.work.mkdir(parents=True, exist_ok=True)
        _claim(plan)

    def run(self, last: NetworkName = "gnn") -> ModelCard | None:
        """Train up to and including one network; finished ones are taken from their checkpoints.

        Returns
        -------
        ModelCard or None
            The card of the weights, written once the last of the three is trained.
        """
        plan = self.plan
        embedding = cast("EmbeddingNetwork", self._networks["embedding"])
        filter_ = cast("FilterNetwork", self._networks["filter"])
        gnn = cast("GnnNetwork", self._networks["gnn"])
        wedges = self._wedges("train", self._train_files)
        held_out = self._wedges(
            "validation", [path for files in self._validation_files.values() for path in files]
        )
        chosen = np.linspace(0, len(held_out) - 1, min(N_VALIDATION_WEDGES, len(held_out))).astype(np.int64)
        samples = [read_wedge(held_out[position]) for position in np.unique(chosen)]

        def on_embedding(sample: Sample, path: Path, rng: np.random.Generator) -> Tensor:
            return embedding_loss(embedding, sample, rng, windows=plan.windows)

        self._fit(
            "embedding",
            wedges,
            on_embedding,
            lambda: validate_embedding(embedding, samples, windows=plan.windows),
        )
        radius = choose_radius(embedding, samples, recall=GRAPH_RECALL)
        self._on_note(f"radius: {radius:.3f}")
        if last == "embedding":
            return None

        def graph(sample: Sample) -> Pairs:
            return graph_pairs(embedding, sample.hits, radius=radius, windows=plan.windows)

        def on_filter(sample: Sample, path: Path, rng: np.random.Generator) -> Tensor:
            pairs = kept(self._pairs_file("graph", path), lambda: graph(sample))
            return filter_loss(filter_, sample, pairs, rng)

        graphs = [(sample, graph(sample)) for sample in samples]
        self._fit("filter", wedges, on_filter, lambda: validate_filter(filter_, graphs))
        filter_cut = choose_filter_cut(filter_, graphs, recall=FILTER_RECALL)
        self._on_note(f"filter cut: {filter_cut:.4f}")
        if last == "filter":
            return None

        def filtered(sample: Sample, pairs: Pairs) -> Pairs:
            return filtered_pairs(filter_, sample.hits, pairs, cut=filter_cut)

        def on_gnn(sample: Sample, path: Path, rng: np.random.Generator) -> Tensor:
            pairs = kept(self._pairs_file("filter", path), lambda: filtered(sample, graph(sample)))
            return gnn_loss(gnn, sample, pairs)

        left = [(sample, filtered(sample, pairs)) for sample, pairs in graphs]
        self._fit("gnn", wedges, on_gnn, lambda: validate_gnn(gnn, left))
        return self._save()

    def _wedges(self, name: str, files: list[Path]) -> list[Path]:
        done = 0

        def on_event() -> None:
            nonlocal done
            done += 1
            self._on_step(f"{name} wedges", done, len(files), "")

        return make_wedges(files, self.plan.work / "wedges" / name, on_event=on_event)

    def _pairs_file(self, stage: str, wedge: Path) -> Path:
        return self.plan.work / stage / wedge.parent.name / wedge.with_suffix(".npy").name

    def _fit(
        self,
        name: NetworkName,
        wedges: list[Path],
        loss: Callable[[Sample, Path, np.random.Generator], Tensor],
        validate: Callable[[], Validation],
    ) -> None:
        schedule: Schedule = getattr(self.plan, name)

        def on_draw(step: int) -> Tensor:
            position, rng = draw(seed=self.plan.seed, step=step, n_wedges=len(wedges))
            return loss(read_wedge(wedges[position]), wedges[position], rng)

        self._fitted[name] = fit(
            self._networks[name],
            loss=on_draw,
            validate=validate,
            schedule=schedule,
            checkpoint=self.plan.work / f"{name}.pt",
            on_step=lambda step, value: self._on_step(name, step + 1, schedule.steps, f"loss {value:.4f}"),
        )
        point = self._fitted[name].curve[-1]
        self._on_note(
            f"{name}: loss {point.loss:.4f}, edge efficiency {point.edge_efficiency:.4f}, "
            f"edge purity {point.edge_purity:.4f} on the validation wedges"
        )

    def _save(self) -> ModelCard:
        plan = self.plan
        networks: dict[str, nn.Module] = {name: net.cpu() for name, net in self._networks.items()}
        points = choose_working_points(
            networks, windows=plan.windows, sets=self._validation_files, on_note=self._on_note
        )
        card = ModelCard(
            name=plan.name,
            networks=plan.networks,
            working_points=points,
            default=plan.default,
            limits=plan.limits,
            training=Training(
                seed=plan.seed,
                sets=tuple(each for folder in plan.events for each in training_sets(folder)),
                steps={name: getattr(plan, name).steps for name in self._fitted},
                minutes={name: round(fitted.minutes, 1) for name, fitted in self._fitted.items()},
                versions={
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("tritrack", "torch", "numpy")},
                },
                gnn_from=self._gnn_from,
            ),
            sha256={},
        )
        card = save_weights(networks, card=card, folder=plan.out)
        write_curves({name: fitted.curve for name, fitted in self._fitted.items()}, folder=plan.out)
        return card


def training_sets(folder: Path) -> Iterator[TrainingSet]:
    """Yield the events of a folder by what they were simulated with."""
    for settings, n_events in Counter(map(read_settings, event_files(folder))).items():
        # Floats, as a card that was read has them: an integer's JSON, and with it the card's hash, would be another.
        simulation = (
            None if settings is None else {name: float(value) for name, value in asdict(settings).items()}
        )
        yield TrainingSet(n_events=n_events, simulation=simulation)


def _take_over(gnn: nn.Module, folder: Path) -> str:
    """Load the GNN of a folder of weights; return the model's name and hash."""
    card, networks = load_weights(folder)
    wanted, there = gnn.state_dict(), networks["gnn"].state_dict()
    if {name: value.shape for name, value in wanted.items()} != {
        n: value.shape for n, value in there.items()
    }:
        raise TrainingError(
            f"{folder}: its GNN has width {card.networks.gnn_width} and {card.networks.gnn_steps} steps, not this plan's"
        )
    gnn.load_state_dict(there)
    return f"{card.name} {card.hash}"


def _claim(plan: Plan) -> None:
    """Refuse a work folder whose checkpoints and wedges are another plan's, or of other events."""
    path = plan.work / "plan.json"
    events = {str(file): _digest(file) for folder in plan.events for file in event_files(folder)}
    claim = {"plan": plan, "events": events}
    described = msgspec.json.format(msgspec.json.encode(claim, enc_hook=str), indent=2)
    if not path.exists():
        path.write_bytes(described)
    elif path.read_bytes() != described:
        raise TrainingError(
            f"{path}: the checkpoints there belong to another plan, or other events; choose another folder"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
