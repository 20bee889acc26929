"""The training loop: steps, validation, checkpoints and resuming, for any of the networks."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tritrack.training.memory import keep_memory
from tritrack.training.precision import keep_first_layers, mixed_precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

CHECKPOINT_EVERY = 50
"""Steps between checkpoints; a kill loses at most these."""

N_VALIDATIONS = 20
"""Points of a validation curve."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a network is trained.

    Attributes
    ----------
    steps
        Optimiser steps, at least 3; a wedge of an event each.
    learning_rate
        Peak of the one-cycle schedule (arXiv:1708.07120) of AdamW (arXiv:1711.05101).
    """

    steps: int
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How good a network is on events that it is not trained on.

    Attributes
    ----------
    loss
        Its loss.
    edge_efficiency
        Share of the consecutive pairs of particles of pT >= 1 GeV that it keeps.
    edge_purity
        Share of the kept pairs that are to be found.
    """

    loss: float
    edge_efficiency: float
    edge_purity: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Validation):
    """One point of a network's curve.

    Attributes
    ----------
    step
        Steps done.
    minutes
        Wall time of them.
    training_loss
        Mean loss of the steps since the point before.
    """

    step: int
    minutes: float
    training_loss: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training of one network.

    Attributes
    ----------
    minutes
        Wall time, that before a resume included.
    curve
        Validation on the way.
    """

    minutes: float
    curve: tuple[CurvePoint, ...]


def draw(*, seed: int, step: int, n_wedges: int) -> tuple[int, np.random.Generator]:
    """Return the wedge of a step and the step's random numbers.

    Both depend on the seed and the step alone, so a resumed training goes on as if never stopped. Every
    epoch visits all wedges, each in its own order.
    """
    epoch, position = divmod(step, n_wedges)
    order = np.random.default_rng([seed, 0, epoch]).permutation(n_wedges)
    return int(order[position]), np.random.default_rng([seed, 1, step])


def fit(
    network: nn.Module,
    *,
    loss: Callable[[int], Tensor],
    validate: Callable[[], Validation],
    schedule: Schedule,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> Fitted:
    """Train a network, or go on with its training.

    Parameters
    ----------
    network
        Trained in place.
    loss
        Step -> scalar loss.
    validate
        Judges the network; called some twenty times.
    schedule
        Steps and learning rate.
    checkpoint
        File that the state is kept in; training resumes from it where it exists.
    on_step
        Called after each step with its number and loss.
    """
    state = _State(network, schedule, checkpoint)
    keep_first_layers(network)
    keep_memory()
    network.train()
    start = time.monotonic() - 60 * state.minutes
    every = max(schedule.steps // N_VALIDATIONS, 1)
    for step in range(state.step, schedule.steps):
        with mixed_precision(network):
            value = loss(step)
        state.update(value)
        on_step(step, state.losses[-1])
        state.minutes = (time.monotonic() - start) / 60
        last = step + 1 == schedule.steps
        if (step + 1) % every == 0 or last:
            network.eval()
            with torch.inference_mode():
                state.add_point(validate())
            network.train()
        if (step + 1) % CHECKPOINT_EVERY == 0 or last:
            state.save()
    network.eval()
    return Fitted(minutes=state.minutes, curve=tuple(state.curve))


class _State:
    """What a checkpoint holds."""

    def __init__(self, network: nn.Module, schedule: Schedule, checkpoint: Path) -> None:
        self._network = network
        self._checkpoint = checkpoint
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=schedule.learning_rate, weight_decay=1e-4
        )
        self._rate = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=schedule.learning_rate,
            total_steps=schedule.steps,
            pct_start=max(0.1, 2 / schedule.steps),  # the rise takes a step at least
        )
        self.step, self.minutes = 0, 0.0
        self.losses: list[float] = []  # since the curve's last point
        self.curve: list[CurvePoint] = []
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location="cpu")
            network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._rate.load_state_dict(state["rate"])
            self.step, self.minutes, self.losses = state["step"], state["minutes"], state["losses"]
            self.curve = [CurvePoint(**point) for point in state["curve"]]

    def update(self, loss: Tensor) -> None:
        """Take an optimiser step."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), max_norm=1.0)
        self._optimizer.step()
        self._rate.step()
        self.losses.append(float(loss.detach()))
        self.step += 1

    def add_point(self, validation: Validation) -> None:
        """Note a point of the curve."""
        mean = float(np.mean(self.losses)) if self.losses else float("nan")
        self.losses = []
        self.curve.append(
            CurvePoint(
                **asdict(validation), step=self.step, minutes=round(self.minutes, 2), training_loss=mean
            )
        )

    def save(self) -> None:
        """Write the checkpoint; an earlier one stays until this one is whole."""
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(
            {
                "network": self._network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "rate": self._rate.state_dict(),
                "step": self.step,
                "minutes": self.minutes,
                "losses": self.losses,
                "curve": [asdict(point) for point in self.curve],
            },
            partial,
        )
        partial.replace(self._checkpoint)
