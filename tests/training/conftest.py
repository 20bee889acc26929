"""Small events: one by hand, and helices through the cylinders of a barrel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tritrack.events.event import NOISE, Event, Particles, Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray

LAYERS = np.array([32, 72, 116, 172, 260, 360, 500, 660, 820, 1020], dtype=np.float64)  # mm
GEV_TO_MM = 1000 / (0.3 * 2)  # radius of curvature of 1 GeV in 2 T


def by_hand() -> Event:
    """Nine hits in no order, ids from 100: particle 100 has four of them, 103 two, 101 one, 200 none."""
    momentum = {200: (0, 7, 0), 103: (0.3, -0.4, 2), 100: (2, 0, 1), 101: (0, 0.05, 0)}
    n_particles = len(momentum)
    return Event(
        event_id=7,
        hits=np.arange(27, dtype=np.float32).reshape(9, 3),
        hit_id=np.arange(100, 109, dtype=np.int64),
        modules=np.zeros((9, 3), dtype=np.int32),
        truth=Truth(
            particle_id=np.array([103, 100, NOISE, 100, 103, 100, 100, NOISE, 101], dtype=np.int64),
            order=np.array([2, 5, 0, 1, 1, 3, 9, 0, 4], dtype=np.float32),
            particles=Particles(
                particle_id=np.array(list(momentum), dtype=np.int64),
                charge=np.ones(n_particles, dtype=np.float32),
                vertex=np.zeros((n_particles, 3), dtype=np.float32),
                momentum=np.array(list(momentum.values()), dtype=np.float32),
                primary=np.ones(n_particles, dtype=np.bool_),
            ),
        ),
    )


def draw_helices(event_id: int, *, n_particles: int = 20, n_noise: int = 10) -> Event:
    """Charged particles from the beam line in 2 T, ten hits each, and noise; hits in no order, ids from 100."""
    rng = np.random.default_rng(event_id)
    charge = rng.choice([-1.0, 1.0], n_particles)
    pt, phi = rng.uniform(1.0, 5.0, n_particles), rng.uniform(-np.pi, np.pi, n_particles)
    sinh_eta, z0 = np.sinh(rng.uniform(-1, 1, n_particles)), rng.normal(0, 30, n_particles)
    turned = np.arcsin(LAYERS / (2 * pt[:, None] * GEV_TO_MM))
    at = phi[:, None] - charge[:, None] * turned
    path = 2 * pt[:, None] * GEV_TO_MM * turned
    z = z0[:, None] + path * sinh_eta[:, None]
    hits = np.stack([LAYERS * np.cos(at), LAYERS * np.sin(at), z], axis=-1).reshape(-1, 3)
    hits = np.concatenate([hits, rng.uniform(-700, 700, (n_noise, 3))]).astype(np.float32)
    ids = np.arange(100, 100 + n_particles, dtype=np.int64)
    of_hit = np.concatenate([np.repeat(ids, LAYERS.size), np.full(n_noise, NOISE)])
    order = np.concatenate([path.ravel(), np.zeros(n_noise)]).astype(np.float32)
    shuffled = rng.permutation(len(hits))
    return Event(
        event_id=event_id,
        hits=hits[shuffled],
        hit_id=np.arange(100, 100 + len(hits), dtype=np.int64),
        modules=np.zeros((len(hits), 3), dtype=np.int32),
        truth=Truth(
            particle_id=of_hit[shuffled],
            order=order[shuffled],
            particles=Particles(
                particle_id=ids,
                charge=charge.astype(np.float32),
                vertex=np.stack([0 * z0, 0 * z0, z0], axis=1).astype(np.float32),
                momentum=np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * sinh_eta], axis=1).astype(
                    np.float32
                ),
                primary=np.ones(n_particles, dtype=np.bool_),
            ),
        ),
    )


@pytest.fixture(scope="session")
def hand_made() -> Event:
    return by_hand()


@pytest.fixture(scope="session")
def helices() -> Callable[..., Event]:
    """Return an event of helices: ``helices(event_id, n_particles=..., n_noise=...)``."""
    return draw_helices


@pytest.fixture(scope="session")
def known() -> Callable[..., torch.nn.Module]:
    """Return a network that answers with a function of its arrays: ``known(function)``."""
    import torch

    class Known(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(()))
            self.function = function

        def forward(self, *tensors):
            return torch.from_numpy(
                np.asarray(self.function(*(t.numpy() for t in tensors)), dtype=np.float32)
            )

    return Known


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., NDArray[np.int32]]:
    """Return the true pairs of consecutive hits and as many wrong ones, inner hit first: ``graph_of(sample)``."""
    from tritrack.training.sample import pair_targets, path_pairs

    def graph(sample):
        right = path_pairs(sample, gap=1)
        wrong = np.random.default_rng(1).integers(0, len(sample.hits), right.shape)
        wrong = wrong[:, ~pair_targets(sample, wrong)[0]]
        pairs = np.concatenate([right, wrong], axis=1)
        r = np.linalg.norm(sample.hits, axis=1)
        inner_first = np.where(r[pairs[0]] <= r[pairs[1]], pairs, pairs[::-1])
        return np.unique(inner_first, axis=1).astype(np.int32)

    return graph


@pytest.fixture(autouse=True)
def one_thread_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compared to the last bit is computed there, on machines with a GPU and many cores too."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("faiss")
    pytest.importorskip("numba")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
