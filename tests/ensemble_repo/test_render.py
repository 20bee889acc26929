from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

pytest.importorskip("onnxruntime")

from tritrack.ensemble_repo.config import model_configs
from tritrack.ensemble_repo.images import PINNED, find_image
from tritrack.ensemble_repo.plan import ADAPTER_FILE, Instances, plan_fused, plan_steps
from tritrack.ensemble_repo.render import RepositoryError, render_repository
from tritrack.ensemble_repo.steps import load_step
from tritrack.rules.finder import RuleFinder
from tritrack.rules.windows import RulesError
from tritrack.stages.card import ENSEMBLE, CardError, ensemble_name, read_card
from tritrack.stages.contract import EVENT_OFFSETS, HITS, NATIVE_STEPS, TRACK_LABEL, ContractError
from tritrack.stages.engine import OnnxEngine
from tritrack.stages.pipeline import Pipeline
from tritrack.stages.plan_file import Gpu, PlanFacts

SHIPPED = Path(__file__).parents[2] / "weights" / "default"


def render(engines: Path, out: Path, **changes: Any) -> None:
    options: dict[str, Any] = {"server": "embedded", "device": "cpu", "threads": 2}
    render_repository(engines=engines, out=out, **(options | changes))


def draw_hits(n_hits: int, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phi, z = rng.uniform(-np.pi, np.pi, n_hits), rng.uniform(-1000, 1000, n_hits)
    r = rng.choice([32, 72, 116, 172, 260, 360, 500, 660, 820, 1020], n_hits)
    return np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1).astype(np.float32)


@pytest.mark.parametrize("server", ["embedded", "container"])
def test_a_repository_holds_what_each_step_needs(small_engines: Path, tmp_path: Path, server: Any) -> None:
    out = tmp_path / "repository"
    render(small_engines, out, server=server)
    card = read_card(small_engines)
    steps, ensembles = plan_steps(card, server), {ENSEMBLE, *map(ensemble_name, card.points)}
    assert {path.name for path in out.iterdir()} == ensembles | {step.name for step in steps}
    assert all((out / ensemble / "1").is_dir() for ensemble in ensembles)
    for step in steps:
        assert {path.name for path in (out / step.name / "1").iterdir()} == set(step.files)
        for file in set(step.files) - {ADAPTER_FILE}:
            assert (out / step.name / "1" / file).read_bytes() == (small_engines / file).read_bytes()


def test_fused_models_hold_no_code(small_engines: Path, tmp_path: Path) -> None:
    render(small_engines, tmp_path / "repository", fused=True)
    card = read_card(small_engines)
    fused = plan_fused(card)
    assert [model.working_point for model in fused] == ["fast", "balanced", "best", "balanced"]
    for model in fused:
        files = {path.name for path in (tmp_path / "repository" / model.name / "1").iterdir()}
        assert files == set(model.files) == {"card.json", "embedding.onnx", "filter.onnx", "gnn.onnx"}
        folder, hits = tmp_path / "repository" / model.name / "1", draw_hits(2000, seed=3)
        found = load_step(model.computes, folder, threads=2, working_point=model.working_point)(
            {"HITS": hits}
        )
        expected = Pipeline.load(small_engines, threads=2, working_point=model.working_point).find(hits)
        np.testing.assert_array_equal(found["TRACK_LABEL"], expected)


def test_the_rule_finder_holds_rules_and_no_code(
    small_engines: Path, rules_folder: Path, tmp_path: Path, draw_helices: Any
) -> None:
    out = tmp_path / "repository"
    render(small_engines, out, rules=rules_folder)
    folder = out / "rule_finder" / "1"
    assert [path.name for path in folder.iterdir()] == ["rules.json"]
    assert (folder / "rules.json").read_bytes() == (rules_folder / "rules.json").read_bytes()
    hits = draw_helices(n=50, pt=2.0, seed=5, scattering=True).hits
    found = load_step("rule_finder", folder, threads=1)({"HITS": hits})["TRACK_LABEL"]
    np.testing.assert_array_equal(found, RuleFinder.load(rules_folder).find(hits))
    assert found.max() > 30


def test_rules_that_cannot_be_used_leave_nothing(small_engines: Path, tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"no rules\.json there"):
        render(small_engines, tmp_path / "repository", rules=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def plans(small_engines: Path, tmp_path: Path) -> Path:
    """Return a folder that looks as an export to TensorRT leaves it; what the engines hold does not matter here."""
    folder = tmp_path / "plans"
    folder.mkdir()
    facts = PlanFacts(
        tensorrt=find_image(PINNED).tensorrt,
        gpu=Gpu(name="NVIDIA H100", compute_capability="9.0"),
        precision="fp32",
        profile={},
        onnx_sha256="",
        card_sha256="",
    )
    for name in ("embedding", "filter", "gnn"):
        (folder / f"{name}.plan").write_bytes(b"engine")
        (folder / f"{name}.plan.json").write_bytes(facts.to_json())
    (folder / "card.json").write_bytes((small_engines / "card.json").read_bytes())
    return folder


def test_a_container_runs_plans_in_its_tensorrt_backend(plans: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    render(plans, out, server="container", device="gpu")
    for name in ("embedding", "filter", "gnn"):
        assert {path.name for path in (out / name / "1").iterdir()} == {f"{name}.plan", f"{name}.plan.json"}
        lines = (out / name / "config.pbtxt").read_text().splitlines()
        assert {'backend: "tensorrt"', f'default_model_filename: "{name}.plan"'} <= set(lines)
        assert not any("parameters" in line for line in lines)
        assert any("model_warmup" in line for line in lines)
    card = read_card(plans)
    backends = {
        engine: {step.name: step.backend for step in plan_steps(card, "container", engine)}
        for engine in ("onnx", "tensorrt")
    }
    differ = {name for name, backend in backends["onnx"].items() if backends["tensorrt"][name] != backend}
    assert differ == {"embedding", "filter", "gnn"}


def test_plans_need_a_gpu(plans: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RepositoryError, match="holds TensorRT's engines, which run on a GPU only: --device gpu"
    ):
        render(plans, tmp_path / "repository", server="container", device="cpu")


def test_a_containers_fused_models_run_no_plans(plans: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    with pytest.raises(
        RepositoryError, match=r"holds TensorRT's engines, and the fused .*: leave out --fused"
    ):
        render(plans, out, server="container", device="gpu", fused=True)
    assert not out.exists()
    render(plans, out, server="embedded", device="gpu", fused=True)


def test_a_containers_gpu_runs_no_loops_for_a_cpu(
    small_engines: Path, scattered_engines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repository"
    refused = r"embedding\.onnx: made of loops for a CPU's cache, .*: tritrack export --engine onnx --edge-sum scatter$"
    with pytest.raises(RepositoryError, match=refused):
        render(small_engines, out, server="container", device="gpu")
    assert not out.exists()
    render(scattered_engines, out, server="container", device="gpu")
    # Whether the wheel's server has an ONNX Runtime with CUDA is not known here: without, these are the right ones.
    render(small_engines, out, server="embedded", device="gpu")
    foreign = shutil.copytree(scattered_engines, tmp_path / "foreign")
    model = onnx.load(foreign / "gnn.onnx")
    del model.metadata_props[:]  # a file from elsewhere says nothing of its sums
    onnx.save(model, foreign / "gnn.onnx")
    render(foreign, out, server="container", device="gpu")


@pytest.mark.parametrize("n_hits", [0, 1, 2, 300, 3000])
@pytest.mark.parametrize("working_point", [None, "fast", "balanced", "best"])
@pytest.mark.parametrize("server", ["embedded", "container"])
def test_every_plan_finds_the_chains_tracks(
    small_engines: Path, tmp_path: Path, server: Any, working_point: Any, n_hits: int
) -> None:
    render(small_engines, tmp_path / "repository", server=server)
    hits = draw_hits(n_hits, seed=n_hits)
    expected = Pipeline.load(small_engines, threads=2, working_point=working_point).find(hits)
    found = walk(tmp_path / "repository", {HITS.name: hits}, server=server, working_point=working_point)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("server", "equal"), [("embedded", 1.0), ("container", 0.99)])
def test_every_plan_takes_packs(small_engines: Path, tmp_path: Path, server: Any, equal: float) -> None:
    """A native GNN sees the pack as one event, and its sums round differently."""
    render(small_engines, tmp_path / "repository", server=server)
    events = [draw_hits(n_hits, seed=n_hits) for n_hits in (1500, 0, 1, 1200)]
    offsets = np.array([0, 1500, 1500, 1501, 2701])
    chain = Pipeline.load(small_engines, threads=2)
    expected = np.concatenate([chain.find(hits) for hits in events])
    request = {HITS.name: np.concatenate(events), EVENT_OFFSETS.name: offsets}
    found = walk(tmp_path / "repository", request, server=server, working_point=None)
    assert (found == expected).mean() >= equal


def walk(repository: Path, tensors: dict[str, np.ndarray], *, server: Any, working_point: Any) -> np.ndarray:
    """Follow the ensemble's maps in process: the steps' functions, and the engines as a native backend runs them."""
    tensors = dict(tensors)
    card = read_card(repository / "graph_fast" / "1")
    specs = {spec.name: spec for spec in NATIVE_STEPS if spec.engine}
    native = {step.name for step in plan_steps(card, server) if step.backend != "python"}
    configs = model_configs(card=card, server=server, device="cpu", threads=2)
    ensemble = configs[ensemble_name(working_point)]
    for step in ensemble.ensemble_scheduling.step:
        folder = repository / step.model_name / "1"
        inputs = {name: tensors[source] for name, source in step.input_map.items() if source in tensors}
        if step.model_name in native:
            spec = specs[step.model_name]
            engine = OnnxEngine(folder / f"{spec.name}.onnx", spec=spec, threads=2)
            outputs = {spec.engine[0].name: engine(*(inputs[tensor.name] for tensor in spec.inputs))}
        else:
            values = {key: v.string_value for key, v in configs[step.model_name].parameters.items()}
            point: Any = values.get("working_point")
            outputs = load_step(values["computes"], folder, threads=2, working_point=point)(inputs)
        tensors |= {target: outputs[name] for name, target in step.output_map.items()}
    return tensors[TRACK_LABEL.name]


@pytest.mark.parametrize(
    ("hits", "sentence"),
    [
        (np.full((2, 3), np.nan, dtype=np.float32), "rows 0, 1"),
        (np.zeros((5001, 3), dtype=np.float32), "5001 hits, the model's limit max_hits is 5000"),
        (np.zeros((2, 4), dtype=np.float32), "axis 1"),
    ],
)
def test_the_entry_step_checks_the_hits(small_engines: Path, hits: np.ndarray, sentence: str) -> None:
    step = load_step("entry", small_engines, threads=1)
    with pytest.raises(ContractError, match=sentence):
        step({HITS.name: hits})


def test_the_cut_step_wants_a_score_per_pair(small_engines: Path) -> None:
    step = load_step("cut", small_engines, threads=1, working_point="balanced")
    edges = np.array([[0, 1, 2], [1, 2, 3]], dtype=np.int32)
    kept = step({"EDGE_INDEX": edges, "PAIR_SCORE": np.array([0.9, 0.1, 0.4], dtype=np.float32)})
    np.testing.assert_array_equal(kept["EDGE_INDEX"], edges[:, [0, 2]])  # the card's filter_cut is 0.4
    with pytest.raises(ContractError, match="PAIR_SCORE"):
        step({"EDGE_INDEX": edges, "PAIR_SCORE": np.zeros(2, dtype=np.float32)})


def test_an_earlier_repository_is_replaced(small_engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    render(small_engines, out, server="container")
    render(small_engines, out, server="embedded")
    assert not (out / "entry").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_failure_keeps_the_earlier_repository(small_engines: Path, tmp_path: Path) -> None:
    out, engines = tmp_path / "repository", tmp_path / "engines"
    render(small_engines, out)
    engines.mkdir()
    for name in ("card.json", "embedding.onnx"):
        (engines / name).write_bytes((small_engines / name).read_bytes())
    with pytest.raises(RepositoryError, match=r"filter\.onnx: missing, the step filter_fast needs it"):
        render(engines, out)
    assert (out / "gnn" / "1" / "gnn.onnx").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "engines"}


@pytest.mark.parametrize(
    ("stuck", "kept"),
    [
        ({"repository"}, "repository"),  # as a mount point is
        ({".partial"}, "repository"),
        ({".partial", ".old"}, ".old"),
    ],
)
def test_a_repository_that_cannot_be_replaced_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: set[str], kept: str
) -> None:
    engines, out, rename = tmp_path / "engines", tmp_path / "repository", Path.rename
    engines.mkdir()
    shutil.copy(SHIPPED / "card.json", engines)
    for name in ("embedding", "filter", "gnn"):
        (engines / f"{name}.onnx").touch()  # they are copied and not read
    render(engines, out)
    (out / "earlier").touch()

    def fail(path: Path, target: Path) -> Path:
        if stuck & {path.name, path.suffix}:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(
        RepositoryError, match=r"repository: cannot be put in place: Device or .*busy"
    ) as caught:
        render(engines, out)
    (there,) = (path for path in tmp_path.iterdir() if path != engines)
    assert kept in (there.name, there.suffix)
    assert (there / "earlier").exists()
    assert str(caught.value).endswith(f"what was there is in {there}") is (kept == ".old")


def test_what_lies_beside_a_repository_is_left_alone(small_engines: Path, tmp_path: Path) -> None:
    beside = tmp_path / "repository.new"
    beside.mkdir()
    (beside / "thesis.tex").write_text("years of work")
    render(small_engines, tmp_path / "repository")
    assert (beside / "thesis.tex").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "repository.new"}


@pytest.mark.parametrize(
    ("server", "name"),
    [("embedded", "cut"), ("embedded", "chain"), ("embedded", "gn"), ("container", "track_fit")],
)
def test_instances_of_a_step_that_is_not_there(
    small_engines: Path, tmp_path: Path, server: Any, name: str
) -> None:
    with pytest.raises(RepositoryError, match=f"instances: no step {name} here, there are .*gnn"):
        render(small_engines, tmp_path / "repository", server=server, instances=Instances(of={name: 2}))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_elses_is_left_alone(small_engines: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RepositoryError, match="name another folder"):
        render(small_engines, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_what_the_user_did_wrong_is_said(small_engines: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="threads: 0 given"):
        render(small_engines, tmp_path / "repository", threads=0)
    with pytest.raises(CardError, match="no model card there"):
        render(tmp_path, tmp_path / "repository")
