"""A whole training of tiny networks on events of a few helices."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.events.parquet import event_file, write_event
from tritrack.stages.card import CARD_FILE, Limits, Networks
from tritrack.stages.weights import load_weights
from tritrack.training import loop
from tritrack.training.loop import Schedule
from tritrack.training.train import Plan, Trainer, TrainingError

SIZES = Networks(
    embedding_width=16,
    embedding_layers=2,
    embedding_dim=3,
    filter_widths=(8, 4),
    gnn_width=4,
    gnn_steps=1,
)
ORDER = ["embedding"] * 6 + ["filter"] * 5 + ["gnn"] * 4


class Killed(BaseException):
    """A stop that no handler takes for an error."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, helices):
    folder = tmp_path_factory.mktemp("events")
    # The same names in both folders, as simulated events have them.
    for name, first in (("train", 1), ("validation", 3)):
        (folder / name).mkdir()
        for i in range(2):
            event = replace(helices(first + i, n_particles=6, n_noise=4), event_id=i)
            write_event(event, folder / name / event_file(i))
    return folder


@pytest.fixture
def plan(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    return Plan(
        events=folders / "train",
        validation=folders / "validation",
        n_events=2,
        work=tmp_path / "work",
        out=tmp_path / "out",
        name="tiny",
        seed=1,
        data_seed=5,
        first_event=0,
        pileup=0.0,
        embedding=Schedule(steps=6),
        filter=Schedule(steps=5),
        gnn=Schedule(steps=4),
        networks=SIZES,
        limits=Limits(max_hits=1000, max_pairs=10_000, max_edges=10_000),
    )


def train(plan, *, last="gnn", kill_after=None):
    """Run a plan; return its card and the networks of the steps that it took."""
    steps: list[str] = []
    notes: list[str] = []

    def on_step(name, done, total, loss):
        assert 1 <= done <= total
        steps.append(name)
        if len(steps) == kill_after:
            raise Killed

    card = Trainer(plan, on_step=on_step, on_note=notes.append).run(last)
    assert notes[0].startswith("radius: ")
    return card, steps


def test_a_whole_training(plan):
    card, steps = train(plan)
    assert steps == ORDER
    loaded, networks = load_weights(plan.out)
    assert loaded == card
    assert set(networks) == {"embedding", "filter", "gnn"}
    assert card.name == "tiny"
    assert card.networks == SIZES
    assert card.limits == plan.limits
    assert card.point().cuts.radius > 0
    assert set(card.training.minutes) == {"embedding", "filter", "gnn"}
    assert (card.training.seed, card.training.data_seed, card.training.n_events) == (1, 5, 2)
    assert {"python", "tritrack", "torch", "numpy"} <= set(card.training.versions)
    assert 0 <= card.point().metrics["pileup 0"]["efficiency"] <= 1
    # Each event's pairs are kept once; those of equal names do not meet.
    assert sorted(str(path.relative_to(plan.work / "graph")) for path in plan.work.rglob("graph/*/*")) == [
        "held-out/event000000001.npy",
        "train/event000000000.npy",
        "train/event000000001.npy",
        "tuning/event000000000.npy",
    ]


def test_a_killed_training_resumes_to_the_same_weights(plan, tmp_path):
    straight, _ = train(plan)
    halves = replace(plan, work=tmp_path / "work2", out=tmp_path / "out2")
    with pytest.raises(Killed):
        train(halves, kill_after=4)
    with pytest.raises(Killed):
        train(halves, kill_after=2 + 5 + 3)  # resumes after step 4 - 2 of the embedding, ends within the GNN
    resumed, steps = train(halves)
    assert set(steps) == {"gnn"}
    assert resumed.sha256 == straight.sha256
    assert resumed.working_points == straight.working_points


@pytest.mark.parametrize(("last", "n_steps"), [("embedding", 6), ("filter", 11)])
def test_up_to_a_network(plan, last, n_steps):
    card, steps = train(plan, last=last)
    assert card is None
    assert steps == ORDER[:n_steps]
    assert not (plan.out / CARD_FILE).exists()
    card, steps = train(plan)
    assert card is not None
    assert steps == ORDER[n_steps:]


@pytest.mark.parametrize("change", [{"seed": 2}, {"n_events": 1}, {"gnn": Schedule(steps=9)}])
def test_the_work_of_another_plan_is_refused(plan, change):
    train(plan, last="embedding")
    with pytest.raises(TrainingError, match=r"plan\.json: the checkpoints there belong to another plan"):
        train(replace(plan, **change))


def test_the_seed_matters(plan, tmp_path):
    first, _ = train(plan)
    other, _ = train(replace(plan, seed=2, work=tmp_path / "work2", out=tmp_path / "out2"))
    assert first.sha256 != other.sha256
