from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from tritrack.ensemble_repo.config import config_text, model_configs
from tritrack.ensemble_repo.plan import (
    BACKEND,
    CUTS_OF_STEP,
    ON_GPU,
    REQUEST,
    RULE_FINDER,
    PlanError,
    Step,
    plan_chain,
    plan_fused,
    plan_rules,
    plan_steps,
    read_instances,
)
from tritrack.events.layers import Layers
from tritrack.rules.windows import Rules
from tritrack.rules.windows import Windows as RuleWindows
from tritrack.stages.card import (
    ENSEMBLE,
    FUSED,
    Cuts,
    Limits,
    ModelCard,
    Networks,
    Windows,
    WorkingPoint,
    ensemble_name,
)
from tritrack.stages.contract import (
    CONTRACT_VERSION,
    EVENT_OFFSETS,
    FIT_STEP,
    FITTED,
    HITS,
    NATIVE_STEPS,
    STAGES,
    TRACK_LABEL,
    StageSpec,
)

REFERENCE = Path(__file__).parent / "reference"
UPDATE = "TRITRACK_UPDATE_REFERENCE"

WINDOWS = Windows(max_z0=200.0, max_curvature=1.8e-3, overlap=15.0)
CUTS = Cuts(
    graph="radius", radius=0.5, windows=WINDOWS, k=50, filter_cut=0.1, gnn_cut=0.5, labelling="components"
)
CARD = ModelCard(
    name="reference",
    networks=Networks(),
    # fast has the filter's cut of balanced, best its graph.
    working_points={
        "fast": WorkingPoint(cuts=replace(CUTS, radius=0.3, labelling="walkthrough"), metrics={}),
        "balanced": WorkingPoint(cuts=CUTS, metrics={"pileup 200": {"efficiency": 0.9, "n_edges": 5e5}}),
        "best": WorkingPoint(cuts=replace(CUTS, filter_cut=0.05, gnn_cut=0.4), metrics={}),
    },
    default="balanced",
    limits=Limits(max_hits=200_000, max_pairs=5_000_000, max_edges=1_000_000),
    sha256={},
)
RULES = Rules(
    name="reference",
    layers=Layers(**{f.name: np.zeros(2, dtype=bool if f.name == "disk" else float) for f in fields(Layers)}),
    field=2.0,
    steps=np.array([[0, 1]]),
    windows=RuleWindows(
        max_curvature=8e-4,
        max_z0=200.0,
        max_d0=0.4,
        join=6.0,
        follow=30.0,
        min_layers=4,
        long=7,
        max_chi2=2.0,
        max_holes=2,
        max_shared=2,
    ),
    max_hits=100_000,
    metrics={"pileup 200": {"efficiency_targets": 0.9}},
)
ENSEMBLES = {ensemble_name(point): point for point in CARD.points} | {ENSEMBLE: CARD.default}
FUSED_MODELS = {ensemble_name(point, ensemble=FUSED): point for point in CARD.points} | {FUSED: CARD.default}
OF_RULES = {step.name: step for step in plan_rules()}
COMBINATIONS = list(itertools.product(["embedded", "container"], ["cpu", "gpu"]))


def rendered(server: Any, device: Any) -> dict[str, str]:
    configs = model_configs(card=CARD, server=server, device=device, threads=2, fused=True, rules=RULES)
    return {name: config_text(config) for name, config in configs.items()}


@pytest.mark.parametrize(("server", "device"), COMBINATIONS)
def test_configurations_are_the_reference(server: str, device: str) -> None:
    folder = REFERENCE / f"{server}_{device}"
    texts = rendered(server, device)
    if os.environ.get(UPDATE):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.iterdir():
            stale.unlink()
        for name, text in texts.items():
            (folder / f"{name}.pbtxt").write_text(text)
    reference = {path.stem: path.read_text() for path in folder.glob("*.pbtxt")}
    drift = [
        line
        for name in sorted(reference.keys() | texts.keys())
        for line in difflib.unified_diff(
            reference.get(name, "").splitlines(),
            texts.get(name, "").splitlines(),
            f"reference/{folder.name}/{name}.pbtxt",
            "rendered now",
            lineterm="",
        )
    ]
    hint = f"\nIf this is what you want: {UPDATE}=1 pytest tests/ensemble_repo/test_config.py"
    assert not drift, "\n".join(drift) + hint


@pytest.mark.parametrize(("server", "device"), COMBINATIONS)
def test_parsed_back_every_tensor_is_the_contracts(server: Any, device: str) -> None:
    sizes = {"n_hits": -1, "n_edges": -1, "n_columns": 3, "d": 8, "n_events + 1": -1, "n_tracks": -1}
    texts = rendered(server, device)
    steps = plan_steps(CARD, server)
    assert list(texts) == [*(step.name for step in steps), *ENSEMBLES, *FUSED_MODELS, *OF_RULES]
    wanted = {step.name: (step.inputs, step.outputs) for step in steps}
    wanted |= dict.fromkeys([*ENSEMBLES, *FUSED_MODELS, RULE_FINDER.name], (REQUEST, (TRACK_LABEL,)))
    wanted[FIT_STEP.name] = ((HITS, TRACK_LABEL, EVENT_OFFSETS), (FITTED,))
    for name, text in texts.items():
        assert re.search(r"^max_batch_size: 0$", text, re.MULTILINE)
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert config.name == name
        for tensors, specs in zip((config.input, config.output), wanted[name], strict=True):
            assert [tensor.name for tensor in tensors] == [spec.name for spec in specs]
            for tensor, spec in zip(tensors, specs, strict=True):
                wire = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
                assert np.dtype(triton_to_np_dtype(wire)) == spec.dtype
                assert list(tensor.dims) == [sizes.get(dim, dim) for dim in spec.dims]
                assert getattr(tensor, "optional", False) == spec.optional


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize(("server", "device"), COMBINATIONS)
def test_the_ensemble_is_wired(server: Any, device: Any, name: str) -> None:
    configs = model_configs(card=CARD, server=server, device=device, threads=2)
    ensemble = configs[name]
    known = {spec.name for spec in REQUEST}
    for step in ensemble.ensemble_scheduling.step:
        config = configs[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in config.input}
        assert set(step.output_map) == {tensor.name for tensor in config.output}
        assert set(step.input_map.values()) <= known, f"{step.model_name} wants what nobody gave"
        assert not set(step.output_map.values()) & known, f"{step.model_name} gives what is there"
        known |= set(step.output_map.values())
    assert TRACK_LABEL.name in known
    # What sees HITS first checks them, and what follows the filter sees the surviving pairs.
    by_name = {step.model_name.split("_")[0]: step for step in ensemble.ensemble_scheduling.step}
    kept = {"embedded": "filter_EDGE_INDEX", "container": "cut_EDGE_INDEX"}[server]
    assert by_name["gnn"].input_map["EDGE_INDEX"] == by_name["labelling"].input_map["EDGE_INDEX"] == kept
    assert by_name["filter"].input_map["EDGE_INDEX"] == "EDGE_INDEX"
    checked = {"embedded": "HITS", "container": "entry_HITS"}[server]
    assert {by_name[stage.name].input_map["HITS"] for stage in STAGES} == {checked}
    # Whatever runs in Python knows the events of a pack.
    packs = {name for name, step in by_name.items() if "EVENT_OFFSETS" in step.input_map}
    native = {stage.name for stage in STAGES if stage.engine and server == "container"}
    assert packs == set(by_name) - native


@pytest.mark.parametrize(("server", "device"), COMBINATIONS)
def test_parameters_say_what_is_served(server: Any, device: Any) -> None:
    configs = model_configs(card=CARD, server=server, device=device, threads=3, fused=True)
    for step in (*plan_steps(CARD, server), *plan_fused(CARD)):
        config = configs[step.name]
        values = {key: value.string_value for key, value in config.parameters.items()}
        kind = model_config_pb2.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
        assert kind == f"KIND_{device.upper()}"
        assert list(config.instance_group[0].gpus) == ([0] if device == "gpu" else [])
        assert config.backend == step.backend
        if step.backend != "onnxruntime":
            assert values["card_sha256"] == CARD.hash
            assert values["contract_version"] == str(CONTRACT_VERSION)
            assert values["threads"] == "3"
            assert values["computes"] == step.computes
            assert values.get("working_point") == step.working_point
            assert (values.get("FORCE_CPU_ONLY_INPUT_TENSORS") == "no") == (device == "gpu")
            assert device == "gpu" or ON_GPU not in values
        else:
            assert values["intra_op_thread_count"] == "3"
            assert config.default_model_filename == f"{step.name}.onnx"
            assert values["enable_mem_arena"] == values["enable_mem_pattern"] == "0"
            assert (values.get("arena_extend_strategy") == "1") == (device == "gpu")
            assert "gpu_mem_limit" not in values
            accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
            found = {accelerator.name: dict(accelerator.parameters) for accelerator in accelerators}
            # Whatever the backend sets from the parameters must not stand here: it would be overwritten without a word.
            assert found == ({"cuda": {"use_tf32": "0"}} if device == "gpu" else {})
    assert [step.backend for step in plan_fused(CARD)] == [BACKEND] * 4
    for name, point in (ENSEMBLES | FUSED_MODELS).items():
        values = {key: value.string_value for key, value in configs[name].parameters.items()}
        limits = [values[name] for name in ("max_hits", "max_pairs", "max_edges")]
        assert limits == ["200000", "5000000", "1000000"]
        assert values["card_sha256"] == CARD.hash
        assert values["working_point"] == point
        assert values["working_points"] == "fast balanced best"
        assert json.loads(values["metrics"]) == CARD.point(point).metrics


@pytest.mark.parametrize(
    ("server", "engine", "inputs"),
    [
        (
            "embedded",
            "onnx",
            {"filter_fast": "EDGE_INDEX", "gnn": "EDGE_INDEX", "labelling_fast": "EDGE_INDEX"},
        ),
        (
            "embedded",
            "tensorrt",
            {
                "graph_fast": "EMBEDDING",
                "filter_fast": "EDGE_INDEX",
                "gnn": "EDGE_INDEX",
                "labelling_fast": "EDGE_INDEX EDGE_SCORE",
            },
        ),
        (
            "container",
            "tensorrt",
            {"graph_fast": "", "cut_fast": "EDGE_INDEX", "labelling_fast": "EDGE_INDEX"},
        ),
    ],
)
def test_steps_know_what_must_come_on_the_gpu(server: Any, engine: Any, inputs: dict[str, str]) -> None:
    configs = model_configs(card=CARD, server=server, device="gpu", threads=2, engine=engine)
    found = {name: configs[name].parameters[ON_GPU].string_value for name in inputs}
    assert found == inputs


def test_native_networks_are_warmed_up() -> None:
    configs = model_configs(card=CARD, server="container", device="gpu", threads=2, gpu_memory=4096)
    warmed = {name: config for name, config in configs.items() if config.model_warmup}
    assert list(warmed) == ["embedding", "filter", "gnn"]
    for config in warmed.values():
        (warmup,) = config.model_warmup
        assert warmup.batch_size == 1  # the server skips a sample of size 0
        assert set(warmup.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            data = warmup.inputs[tensor.name]
            assert data.data_type == tensor.data_type
            assert list(data.dims) == [2 if dim == -1 else dim for dim in tensor.dims]
            assert data.zero_data
        assert config.parameters["gpu_mem_limit"].string_value == str(4096 * 2**20)


@pytest.mark.parametrize("step", plan_rules(), ids=lambda step: step.name)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_rules_run_on_the_cpu(device: Any, step: Step) -> None:
    configs = model_configs(card=CARD, server="embedded", device=device, threads=2, rules=RULES)
    config = configs[step.name]
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert config.backend == step.backend
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert values == {
        "contract_version": str(CONTRACT_VERSION),
        "card_name": RULES.name,
        "card_sha256": RULES.hash,
        "threads": "2",
        "computes": step.computes,
        "max_hits": "100000",
        "metrics": json.dumps(RULES.metrics),
    }


@pytest.mark.parametrize(
    ("server", "first", "filters"),
    [
        ("embedded", ["embedding"], {"fast": ["filter_fast"], "best": ["filter_best"]}),
        (
            "container",
            ["entry", "embedding"],
            {"fast": ["filter", "cut_fast"], "best": ["filter", "cut_best"]},
        ),
    ],
)
def test_points_share_equal_steps(server: Any, first: list[str], filters: dict[str, list[str]]) -> None:
    """Of the card's points, balanced filters as fast does, and has the graph of best."""
    chains = {point: [step.name for step in plan_chain(CARD, server, point)] for point in CARD.points}
    assert chains == {
        "fast": [*first, "graph_fast", *filters["fast"], "gnn", "labelling_fast"],
        "balanced": [*first, "graph_balanced", *filters["fast"], "gnn", "labelling_balanced"],
        "best": [*first, "graph_balanced", *filters["best"], "gnn", "labelling_best"],
    }
    steps = [step.name for step in plan_steps(CARD, server)]
    assert len(steps) == len(set(steps))
    assert set(steps) == set(itertools.chain.from_iterable(chains.values()))
    assert steps[: len(first) + 2] == [*first, "graph_fast", "graph_balanced"]


@pytest.mark.parametrize("chain", [STAGES, NATIVE_STEPS])
def test_every_cut_belongs_to_one_step(chain: tuple[StageSpec, ...]) -> None:
    taken = [cut for spec in chain for cut in CUTS_OF_STEP.get(spec, ())]
    assert sorted(taken) == sorted(field.name for field in fields(Cuts))


def test_a_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_size is 8"):
        config_text(model_config_pb2.ModelConfig(name="graph", max_batch_size=8))


@pytest.mark.parametrize(("server", "device"), COMBINATIONS)
def test_instances_of_each_step(server: Any, device: Any) -> None:
    instances = read_instances(["2", "gnn=3", "graph=4", "chain=5", "track_fit=6"])
    wanted = {"gnn": 3, "graph": 4, "chain": 5, "track_fit": 6}
    configs = model_configs(
        card=CARD, server=server, device=device, threads=2, fused=True, rules=RULES, instances=instances
    )
    steps = [*plan_steps(CARD, server), *plan_fused(CARD), *plan_rules()]
    for step in steps:
        (group,) = configs[step.name].instance_group
        assert group.count == wanted.get(step.computes, 2)
    others = set(configs) - {step.name for step in steps}
    assert others == set(ENSEMBLES)
    assert not any(configs[name].instance_group for name in others)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["two"], "instances: two given, a number or STEP=NUMBER wanted"),
        (["gnn=-1"], "instances: gnn=-1 given, a number or STEP=NUMBER wanted"),
        (["0"], "instances: 0 given for each, at least 1 wanted"),
        (["2", "gnn=0"], "instances: 0 given for gnn, at least 1 wanted"),
    ],
)
def test_instances_that_cannot_be(words: list[str], sentence: str) -> None:
    with pytest.raises(PlanError, match=f"^{sentence}$"):
        read_instances(words)
