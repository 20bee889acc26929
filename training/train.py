"""Train the three networks in order; each learns on what the ones before it give."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, cast

import msgspec
import numpy as np
import torch

from tritrack.stages.card import Cuts, Limits, ModelCard, Networks, Training, WorkingPoint
from tritrack.stages.networks import build_networks
from tritrack.stages.weights import save_weights
from tritrack.training.graphs import filtered_pairs, graph_pairs, kept
from tritrack.training.loop import Schedule, draw, fit
from tritrack.training.losses import embedding_loss, filter_loss, gnn_loss
from tritrack.training.sample import EventFiles, Sample, pairs_within, wedge
from tritrack.training.working_point import (
    choose_filter_cut,
    choose_gnn_cut,
    choose_radius,
    measure,
    score_graphs,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork
    from tritrack.training.working_point import Scored

    Pairs = NDArray[np.int32]
    OnStep = Callable[[str, int, int, float], None]
    OnNote = Callable[[str], None]

NetworkName = Literal["embedding", "filter", "gnn"]

WEDGE = np.pi / 2
"""Part of an event that a step sees, in radians of phi: four small steps teach more than a large one."""


class TrainingError(ValueError):
    """A training that cannot go on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training.

    Attributes
    ----------
    events, validation
        Folders of simulated Parquet events; at least two events to validate on.
    n_events
        Train on the first so many.
    work
        Folder for checkpoints and pairs; a stopped training resumes from it.
    out
        Folder that the weights go to.
    name
        Name of the model.
    seed
        Seed of the first weights, the order of the events and every draw.
    data_seed, first_event, pileup
        Of the simulated events; recorded in the card.
    embedding, filter, gnn
        Steps and learning rate of each network.
    networks
        Sizes of the networks.
    limits
        Largest event that the model will take.
    """

    events: Path
    validation: Path
    n_events: int
    work: Path
    out: Path
    name: str
    seed: int
    data_seed: int
    first_event: int
    pileup: float
    embedding: Schedule
    filter: Schedule
    gnn: Schedule
    networks: Networks
    limits: Limits


class Trainer:
    """Carries out a plan.

    Parameters
    ----------
    plan
        What to train.
    on_step
        Called after each step with the network's name, the steps done, all steps and the loss.
    on_note
        Called with each result worth telling.

    Raises
    ------
    TrainingError
        Where the plan's work folder belongs to another plan.
    EventError
        Where there are no events.
    """

    def __init__(self, plan: Plan, *, on_step: OnStep, on_note: OnNote) -> None:
        self.plan = plan
        self._on_step = on_step
        self._on_note = on_note
        self._minutes: dict[str, float] = {}
        self._events = EventFiles(plan.events, name="train", part=slice(plan.n_events))
        # Every other validation event chooses the cuts; the card's metrics are of those between.
        self._tuning = EventFiles(plan.validation, name="tuning", part=slice(0, None, 2))
        self._held_out = EventFiles(plan.validation, name="held-out", part=slice(1, None, 2))
        torch.manual_seed(plan.seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._networks = {name: net.to(device) for name, net in build_networks(plan.networks).items()}
        plan.work.mkdir(parents=True, exist_ok=True)
        _claim(plan)

    def run(self, last: NetworkName = "gnn") -> ModelCard | None:
        """Train up to and including one network; finished ones are taken from their checkpoints.

        Returns
        -------
        ModelCard or None
            The card of the weights, written once the last of the three is trained.
        """
        embedding = cast("EmbeddingNetwork", self._networks["embedding"])
        filter_ = cast("FilterNetwork", self._networks["filter"])
        gnn = cast("GnnNetwork", self._networks["gnn"])

        def on_embedding(step: int) -> Tensor:
            position, rng = self._draw(step)
            part, _ = _random_wedge(self._events[position], rng)
            return embedding_loss(embedding, part, rng)

        self._fit("embedding", on_embedding, self.plan.embedding)
        radius = choose_radius(embedding, self._tuning)
        self._on_note(f"radius: {radius:.3f}")
        if last == "embedding":
            return None

        def graph(files: EventFiles, position: int) -> tuple[Sample, Pairs]:
            sample = files[position]
            source = files.paths[position]
            path = self.plan.work / "graph" / files.name / source.with_suffix(".npy").name
            return sample, kept(path, lambda: graph_pairs(embedding, sample.hits, radius=radius))

        def on_filter(step: int) -> Tensor:
            position, rng = self._draw(step)
            sample, pairs = graph(self._events, position)
            part, place = _random_wedge(sample, rng)
            return filter_loss(filter_, part, pairs_within(pairs, place), rng)

        self._fit("filter", on_filter, self.plan.filter)
        filter_cut = choose_filter_cut(filter_, map(partial(graph, self._tuning), range(len(self._tuning))))
        self._on_note(f"filter cut: {filter_cut:.4f}")
        if last == "filter":
            return None

        def filtered(sample: Sample, pairs: Pairs) -> Pairs:
            return filtered_pairs(filter_, sample.hits, pairs, cut=filter_cut)

        def on_gnn(step: int) -> Tensor:
            position, rng = self._draw(step)
            path = self.plan.work / "filter" / self._events.paths[position].with_suffix(".npy").name
            pairs = kept(path, lambda: filtered(*graph(self._events, position)))
            part, place = _random_wedge(self._events[position], rng)
            return gnn_loss(gnn, part, pairs_within(pairs, place))

        self._fit("gnn", on_gnn, self.plan.gnn)

        def scored(files: EventFiles) -> list[Scored]:
            graphs = (graph(files, position) for position in range(len(files)))
            return score_graphs(gnn, ((sample, filtered(sample, pairs)) for sample, pairs in graphs))

        labelling, gnn_cut = choose_gnn_cut(scored(self._tuning))
        metrics = measure(scored(self._held_out), labelling=labelling, cut=gnn_cut)
        self._on_note(f"labelling: {labelling}, GNN cut: {gnn_cut:.2f}, held-out events: {metrics}")
        cuts = Cuts(
            graph="radius", radius=radius, k=0, filter_cut=filter_cut, gnn_cut=gnn_cut, labelling=labelling
        )
        return self._save(cuts, metrics)

    def _draw(self, step: int) -> tuple[int, np.random.Generator]:
        return draw(seed=self.plan.seed, step=step, n_events=len(self._events))

    def _fit(self, name: NetworkName, loss: Callable[[int], Tensor], schedule: Schedule) -> None:
        self._minutes[name] = fit(
            self._networks[name],
            loss=loss,
            schedule=schedule,
            checkpoint=self.plan.work / f"{name}.pt",
            on_step=lambda step, value: self._on_step(name, step + 1, schedule.steps, value),
        )

    def _save(self, cuts: Cuts, metrics: dict[str, float]) -> ModelCard:
        plan = self.plan
        card = ModelCard(
            name=plan.name,
            networks=plan.networks,
            working_points={
                "balanced": WorkingPoint(cuts=cuts, metrics={f"pileup {plan.pileup:g}": metrics})
            },
            default="balanced",
            limits=plan.limits,
            training=Training(
                seed=plan.seed,
                data_seed=plan.data_seed,
                first_event=plan.first_event,
                n_events=len(self._events),
                pileup=plan.pileup,
                steps={name: getattr(plan, name).steps for name in self._minutes},
                minutes={name: round(minutes, 1) for name, minutes in self._minutes.items()},
                versions={
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("tritrack", "torch", "numpy")},
                },
            ),
            sha256={},
        )
        return save_weights(
            {name: net.cpu() for name, net in self._networks.items()}, card=card, folder=plan.out
        )


def _random_wedge(sample: Sample, rng: np.random.Generator) -> tuple[Sample, NDArray[np.int64]]:
    return wedge(sample, start=rng.uniform(-np.pi, np.pi), width=WEDGE)


def _claim(plan: Plan) -> None:
    """Refuse a work folder whose checkpoints are another plan's."""
    path = plan.work / "plan.json"
    described = msgspec.json.format(msgspec.json.encode(plan, enc_hook=str), indent=2)
    if not path.exists():
        path.write_bytes(described)
    elif path.read_bytes() != described:
        raise TrainingError(f"{path}: the checkpoints there belong to another plan; choose another folder")
