"""The training loop: the order of the wedges, checkpoints and resuming."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tritrack.training import loop
from tritrack.training.loop import Schedule, Validation, draw, fit


@pytest.mark.parametrize("n_wedges", [1, 2, 7])
def test_every_epoch_visits_all_wedges(n_wedges):
    positions = [draw(seed=1, step=step, n_wedges=n_wedges)[0] for step in range(5 * n_wedges)]
    for epoch in np.reshape(positions, (5, n_wedges)):
        assert sorted(epoch) == list(range(n_wedges))
    assert all(type(position) is int for position in positions)


def test_draws_depend_on_seed_and_step_alone():
    def numbers(seed, step):
        position, rng = draw(seed=seed, step=step, n_wedges=50)
        return position, rng.random()

    assert numbers(1, 30) == numbers(1, 30)
    others = {numbers(1, 30), numbers(2, 30), numbers(1, 31), numbers(1, 80)}
    assert len(others) == 4


def test_epochs_differ_in_order():
    orders = {tuple(draw(seed=1, step=10 * e + i, n_wedges=10)[0] for i in range(10)) for e in range(3)}
    assert len(orders) == 3


class Killed(BaseException):
    """A stop that no handler takes for an error."""


def make_network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


def run(network, checkpoint, *, steps=20, kill_at=None, seen=None):
    """Fit towards a plane through random points, the step's own."""

    def loss(step):
        if step == kill_at:
            raise Killed
        _, rng = draw(seed=1, step=step, n_wedges=5)
        points = torch.from_numpy(rng.normal(size=(32, 4)).astype(np.float32))
        return (network(points)[:, 0] - points.sum(dim=1)).square().mean()

    return fit(
        network,
        loss=loss,
        validate=lambda: Validation(loss=0.5, edge_efficiency=1.0, edge_purity=0.25),
        schedule=Schedule(steps=steps, learning_rate=1e-2),
        checkpoint=checkpoint,
        on_step=lambda step, value: (seen if seen is not None else []).append((step, value)),
    )


@pytest.mark.parametrize("kill_at", [0, 2, 3, 7, 19])
def test_a_resumed_training_gives_the_same_weights(tmp_path, monkeypatch, kill_at):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 3)
    straight, whole = make_network(), []
    run(straight, tmp_path / "straight.pt", seen=whole)
    with pytest.raises(Killed):
        run(make_network(), tmp_path / "killed.pt", kill_at=kill_at)
    resumed, rest = make_network(), []
    run(resumed, tmp_path / "killed.pt", seen=rest)
    first = kill_at // 3 * 3
    assert rest == whole[first:]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_training_is_taken_from_its_checkpoint(tmp_path):
    network, seen = make_network(), []
    run(network, tmp_path / "done.pt")
    again = make_network()
    run(again, tmp_path / "done.pt", seen=seen)
    assert seen == []
    assert not again.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["done.pt"]


def test_minutes_before_a_resume_count(tmp_path, monkeypatch):
    clock = itertools.count(step=60)  # a minute goes by with every look at the clock
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 10)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    with pytest.raises(Killed):
        run(make_network(), tmp_path / "clock.pt", kill_at=15)  # checkpoint at 10, after 10 minutes
    resumed = run(make_network(), tmp_path / "clock.pt")
    assert resumed.minutes == 10 + 10
    assert [point.minutes for point in resumed.curve] == list(range(1, 21))


def test_the_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "N_VALIDATIONS", 4)
    seen = []
    curve = run(make_network(), tmp_path / "curve.pt", steps=22, seen=seen).curve
    assert [point.step for point in curve] == [5, 10, 15, 20, 22]
    assert all((point.loss, point.edge_efficiency, point.edge_purity) == (0.5, 1.0, 0.25) for point in curve)
    values = [value for _, value in seen]
    for first, point in zip([0, 5, 10, 15, 20], curve, strict=True):
        assert point.training_loss == pytest.approx(np.mean(values[first : point.step]))
    assert run(make_network(), tmp_path / "curve.pt", steps=22).curve == curve


@pytest.mark.parametrize("steps", [3, 4, 10, 11, 19, 20])
def test_short_schedules(tmp_path, steps):
    seen = []
    run(make_network(), tmp_path / "short.pt", steps=steps, seen=seen)
    assert [step for step, _ in seen] == list(range(steps))


def test_the_loss_falls(tmp_path):
    seen = []
    run(make_network(), tmp_path / "fall.pt", steps=60, seen=seen)
    assert seen[-1][1] < 0.5 * seen[0][1]
