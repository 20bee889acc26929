"""A whole training of tiny networks on events of a few helices."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from tritrack.events.event import EventError
from tritrack.events.parquet import event_file, write_event
from tritrack.events.simulation import SETTINGS_KEY, SimulationSettings
from tritrack.stages.card import CARD_FILE, Limits, Networks, TrainingSet, Windows
from tritrack.stages.weights import load_weights
from tritrack.training import loop
from tritrack.training.loop import Schedule
from tritrack.training.train import Plan, Trainer, TrainingError, training_sets
from tritrack.training.working_point import DEMANDS

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
    # The same names in all folders, as simulated events have them.
    for name, first in (("train", 1), ("more", 5), ("validation", 3)):
        (folder / name).mkdir()
        for i in range(2):
            event = replace(helices(first + i, n_particles=6, n_noise=4), event_id=i)
            origin = {SETTINGS_KEY: '{"seed":5,"pileup":0}'} if name == "train" else None
            write_event(event, folder / name / event_file(i), metadata=origin)
    return folder


@pytest.fixture
def plan(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    return Plan(
        events=(folders / "train", folders / "more"),
        validation=(folders / "validation",),
        work=tmp_path / "work",
        out=tmp_path / "out",
        name="tiny",
        seed=1,
        embedding=Schedule(steps=6),
        filter=Schedule(steps=5),
        gnn=Schedule(steps=4),
        networks=SIZES,
        windows=Windows(max_z0=200.0, max_curvature=1.8e-3, overlap=15.0),
        limits=Limits(max_hits=1000, max_pairs=10_000, max_edges=10_000),
        default="balanced",
    )


def train(plan, *, last="gnn", kill_after=None):
    """Run a plan; return its card and the networks of the steps that it took."""
    steps: list[str] = []
    notes: list[str] = []

    def on_step(what, done, total, note):
        assert 1 <= done <= total
        if what.endswith("wedges"):
            return
        assert note.startswith("loss ")
        steps.append(what)
        if len(steps) == kill_after:
            raise Killed

    card = Trainer(plan, on_step=on_step, on_note=notes.append).run(last)
    assert notes[0].startswith("embedding: loss ")
    assert notes[1].startswith("radius: ")
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
    assert card.default == "balanced"
    assert set(card.working_points) == {"fast", "balanced", "best"}
    for name, point in card.working_points.items():
        assert point.cuts.radius > 0
        assert point.cuts.windows == replace(plan.windows, min_chain=DEMANDS[name].min_chain)
        assert 0 <= point.metrics["validation"]["efficiency"] <= 1
    assert set(card.training.minutes) == {"embedding", "filter", "gnn"}
    settings = asdict(SimulationSettings(seed=5, pileup=0))
    assert card.training.sets == (
        TrainingSet(n_events=2, simulation=settings),
        TrainingSet(n_events=2, simulation=None),
    )
    assert {"python", "tritrack", "torch", "numpy"} <= set(card.training.versions)
    # Each wedge's pairs are kept once.
    for stage in ("graph", "filter"):
        files = sorted(str(path.relative_to(plan.work / stage)) for path in plan.work.rglob(f"{stage}/*/*"))
        assert files == [f"{number:05d}/000.npy" for number in range(4)]
    curves = json.loads((plan.out / "training.json").read_text())
    assert [point["step"] for point in curves["filter"]] == [1, 2, 3, 4, 5]
    assert (plan.out / "training.png").stat().st_size > 10_000


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


@pytest.mark.parametrize("change", [{"seed": 2}, {"default": "fast"}, {"gnn": Schedule(steps=9)}])
def test_the_work_of_another_plan_is_refused(plan, change):
    train(plan, last="embedding")
    with pytest.raises(TrainingError, match=r"plan\.json: the checkpoints there belong to another plan"):
        train(replace(plan, **change))


def test_the_work_of_other_events_is_refused(plan, folders, tmp_path, helices):
    """Wedges and pairs are kept by the place of an event among all."""
    shutil.copytree(folders / "more", tmp_path / "more")
    plan = replace(plan, events=(tmp_path / "more",))
    train(plan, last="embedding")
    write_event(replace(helices(9, n_particles=6), event_id=2), tmp_path / "more" / event_file(2))
    with pytest.raises(
        TrainingError, match=r"plan\.json: the checkpoints there belong to another plan, or other"
    ):
        train(plan)


def test_a_folder_of_events_from_two_simulations_is_two_sets(tmp_path, helices):
    for number, origin in enumerate(
        ('{"seed":5,"pileup":0}', '{"seed":6,"pileup":40}', '{"seed":6,"pileup":40}')
    ):
        write_event(
            replace(helices(1, n_particles=2), event_id=number),
            tmp_path / event_file(number),
            metadata={SETTINGS_KEY: origin},
        )
    first, second = training_sets(tmp_path)
    assert (first.n_events, first.simulation["pileup"]) == (1, 0)
    assert (second.n_events, second.simulation["pileup"]) == (2, 40)


def test_the_gnn_of_another_model_to_begin_with(plan, tmp_path):
    first, _ = train(plan)
    assert first.training.gnn_from is None
    going_on = replace(
        plan,
        seed=2,
        work=tmp_path / "work2",
        out=tmp_path / "out2",
        gnn=Schedule(steps=3, learning_rate=0.0),
        gnn_from=plan.out,
    )
    second, _ = train(going_on)
    assert second.training.gnn_from == f"tiny {first.hash}"
    same = {name for name in first.sha256 if first.sha256[name] == second.sha256[name]}
    assert same == {"gnn.safetensors"}
    with pytest.raises(TrainingError, match="its GNN has width 4 and 1 steps, not this plan's"):
        train(replace(going_on, work=tmp_path / "work3", networks=replace(SIZES, gnn_steps=2)))


def test_the_seed_matters(plan, tmp_path):
    first, _ = train(plan)
    other, _ = train(replace(plan, seed=2, work=tmp_path / "work2", out=tmp_path / "out2"))
    assert first.sha256 != other.sha256


def test_one_event_to_validate_on(plan, tmp_path, helices):
    (tmp_path / "one").mkdir()
    write_event(helices(1), tmp_path / "one" / event_file(1))
    with pytest.raises(EventError, match="one: one event there"):
        train(replace(plan, validation=(tmp_path / "one",)))
