"""The command line in this process, and small events for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tritrack.cli import main
from tritrack.events.event import NOISE, Event, Particles, Truth
from tritrack.events.parquet import event_file, write_event
from tritrack.events.tracks import write_tracks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = np.array([32, 72, 116, 172, 260, 360, 500, 660, 820, 1020])  # mm


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``run("find", path, "--local")`` -> Result."""

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["tritrack", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Result(code=int(ended.value.code or 0), out=printed.out, err=printed.err)

    return command


def draw_event(event_id: int, *, n_particles: int, n_noise: int) -> Event:
    """Straight particles of 2 GeV from the origin, a hit on each of ten cylinders, and noise; ids from 100."""
    rng = np.random.default_rng(event_id)
    phi, slope = rng.uniform(-np.pi, np.pi, n_particles), rng.uniform(-1, 1, n_particles)
    way = np.stack([np.cos(phi), np.sin(phi), slope], axis=1)
    hits = (way[:, None] * LAYERS[:, None]).reshape(-1, 3)
    hits = np.concatenate([hits, rng.uniform(-700, 700, (n_noise, 3))]).astype(np.float32)
    ids = np.arange(100, 100 + n_particles, dtype=np.int64)
    of_hit = np.concatenate([np.repeat(ids, LAYERS.size), np.full(n_noise, NOISE)])
    row = rng.permutation(len(hits))
    order = np.linalg.norm(hits, axis=1) * (of_hit != NOISE)
    return Event(
        event_id=event_id,
        hits=hits[row],
        hit_id=rng.permutation(len(hits)) + 100,
        modules=np.zeros((len(hits), 3), dtype=np.int32),
        truth=Truth(
            particle_id=of_hit[row],
            order=order[row].astype(np.float32),
            particles=Particles(
                particle_id=ids,
                charge=np.ones(n_particles, dtype=np.float32),
                vertex=np.zeros((n_particles, 3), dtype=np.float32),
                momentum=(2 * way).astype(np.float32),
                primary=np.ones(n_particles, dtype=np.bool_),
            ),
        ),
    )


@pytest.fixture(scope="session")
def events() -> tuple[Event, ...]:
    return tuple(draw_event(event_id, n_particles=150, n_noise=100) for event_id in (100, 101))


@pytest.fixture(scope="session")
def event_folder(events: tuple[Event, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``events`` as Parquet files."""
    folder = tmp_path_factory.mktemp("events")
    for event in events:
        write_event(event, folder / event_file(event.event_id))
    return folder


@pytest.fixture(scope="session")
def true_tracks(events: tuple[Event, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A track file that has every particle of ``events`` as a track."""
    path = tmp_path_factory.mktemp("tracks") / "true.parquet"
    with write_tracks(path) as writer:
        for event in events:
            assert event.truth is not None
            particle_id = event.truth.particle_id
            writer.add(event, np.where(particle_id == NOISE, -1, particle_id - 100))
    return path
