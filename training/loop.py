"""The training loop: steps, checkpoints and resuming, for any of the networks."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

CHECKPOINT_EVERY = 50
"""Steps between checkpoints; a kill loses at most these."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a network is trained.

    Attributes
    ----------
    steps
        Optimiser steps, at least 3; a wedge of one event each.
    learning_rate
        Peak of the one-cycle schedule (arXiv:1708.07120) of AdamW (arXiv:1711.05101).
    """

    steps: int
    learning_rate: float = 2e-3


def draw(*, seed: int, step: int, n_events: int) -> tuple[int, np.random.Generator]:
    """Return the event of a step and the step's random numbers.

    Both depend on the seed and the step alone, so a resumed training goes on as if never stopped. Every
    epoch visits all events, each in its own order.
    """
    epoch, position = divmod(step, n_events)
    order = np.random.default_rng([seed, 0, epoch]).permutation(n_events)
    return int(order[position]), np.random.default_rng([seed, 1, step])


def fit(
    network: nn.Module,
    *,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> float:
    """Train a network, or go on with its training.

    Parameters
    ----------
    network
        Trained in place.
    loss
        Step -> scalar loss.
    schedule
        Steps and learning rate.
    checkpoint
        File that the state is kept in; training resumes from it where it exists.
    on_step
        Called after each step with its number and loss.

    Returns
    -------
    float
        Minutes of training, those before a resume included.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=schedule.learning_rate,
        total_steps=schedule.steps,
        pct_start=max(0.1, 2 / schedule.steps),  # the rise takes a step at least
    )
    first, minutes = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        rate.load_state_dict(state["rate"])
        first, minutes = state["step"], state["minutes"]
    _keep_memory()
    network.train()
    start = time.monotonic()
    for step in range(first, schedule.steps):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm=1.0)
        optimizer.step()
        rate.step()
        on_step(step, float(value.detach()))
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == schedule.steps:
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rate": rate.state_dict(),
                    "step": step + 1,
                    "minutes": minutes + (time.monotonic() - start) / 60,
                },
                partial,
            )
            partial.replace(checkpoint)
    network.eval()
    return minutes + (time.monotonic() - start) / 60


def _keep_memory() -> None:
    """Have glibc keep the memory that is freed.

    Each step frees and wants hundreds of MB; asking the system for them anew took a quarter of the time.
    """
    m_trim_threshold, m_mmap_threshold, gigabyte = -1, -3, 1 << 30
    libc = ctypes.CDLL(None)
    libc.mallopt(m_trim_threshold, 2 * gigabyte - 1)
    libc.mallopt(m_mmap_threshold, gigabyte)
