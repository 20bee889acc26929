"""Triton model configurations, built as protobuf messages from the contract and the model card."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import np_to_triton_dtype

from tritrack.ensemble_repo.plan import (
    BACKEND,
    GPU,
    NATIVE,
    ON_GPU,
    ONE_EACH,
    REQUEST,
    plan_chain,
    plan_fused,
    plan_rules,
    plan_steps,
)
from tritrack.rules.windows import N_COLUMNS
from tritrack.stages.card import ENSEMBLE, ensemble_name
from tritrack.stages.contract import (
    CONTRACT_VERSION,
    EDGE_INDEX,
    EDGE_SCORE,
    EMBEDDING,
    TRACK_LABEL,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tritrack.ensemble_repo.plan import DeviceKind, EngineKind, Instances, ServerKind, Step
    from tritrack.rules.windows import Rules
    from tritrack.stages.card import ModelCard, WorkingPointName
    from tritrack.stages.contract import TensorSpec


def model_configs(
    *,
    card: ModelCard | None,
    server: ServerKind,
    device: DeviceKind,
    threads: int,
    engine: EngineKind = "onnx",
    fused: bool = False,
    rules: Rules | None = None,
    gpu_memory: int | None = None,
    instances: Instances = ONE_EACH,
) -> dict[str, Any]:
    """Build the configuration of every model of the repository.

    Parameters
    ----------
    card
        Card of the weights; fixes the sizes that the contract leaves to the model. None for rules alone.
    server
        Kind of server that will load the repository.
    device
        Where the steps run.
    threads
        Threads of each step.
    engine
        What the networks were exported to.
    fused
        Whether the chain in one process is there as well.
    rules
        Those of the rule-based finder and of the fit; None for a repository without them.
    gpu_memory
        MB of the GPU that the ``onnxruntime`` backend may take for each network; None for no limit.
    instances
        Instances of each step.

    Returns
    -------
    dict
        ``ModelConfig`` messages by model name: the steps in order, the ensemble of each working point, and
        that of the default one under the name that goes without saying; then the fused models likewise, and what
        takes the rules.
    """

    def of_card(step: Step, card: ModelCard) -> Any:
        config = _step_config(
            step,
            sizes=_sizes(card),
            identity=_identity(card),
            device=device,
            threads=threads,
            count=instances.count(step),
            on_gpu=_made_on_gpu(server, engine) if device == "gpu" else (),
        )
        if step.backend in NATIVE:
            _set_native(config, step, device=device, threads=threads, gpu_memory=gpu_memory)
        return config

    configs = {}
    if card is not None:
        configs = {step.name: of_card(step, card) for step in plan_steps(card, server, engine)}
        ensembles = {ensemble_name(point): point for point in card.points} | {ENSEMBLE: card.default}
        for name, point in ensembles.items():
            configs[name] = _ensemble_config(name, plan_chain(card, server, point, engine), card, point)
        for step in plan_fused(card, engine) if fused else ():
            configs[step.name] = of_card(step, card)
            _set_parameters(configs[step.name], _service(card, step.working_point))
    if rules is not None:
        configs |= {
            step.name: _rules_config(step, rules, threads, instances.count(step)) for step in plan_rules()
        }
    return configs


def config_text(config: Any) -> str:
    """Write a ``ModelConfig`` as ``config.pbtxt``.

    The text writer leaves out zeros, but tensors without rows pass through Triton only where
    ``max_batch_size: 0`` is written out.
    """
    if config.max_batch_size != 0:
        raise ValueError(f"{config.name}: max_batch_size is {config.max_batch_size}, it must be 0")
    text: str = text_format.MessageToString(config)
    return "max_batch_size: 0\n" + text


def _step_config(
    step: Step,
    *,
    sizes: Mapping[str, int],
    identity: dict[str, str],
    device: DeviceKind,
    threads: int,
    count: int,
    on_gpu: Sequence[TensorSpec] = (),
) -> Any:
    config = triton.ModelConfig(
        name=step.name,
        backend=step.backend,
        input=_tensors(triton.ModelInput, step.inputs, sizes),
        output=_tensors(triton.ModelOutput, step.outputs, sizes),
        instance_group=[
            triton.ModelInstanceGroup(
                count=count, kind=f"KIND_{device.upper()}", gpus=[GPU] if device == "gpu" else []
            )
        ],
    )
    if step.backend in ("python", BACKEND):
        _set_parameters(config, identity | {"threads": str(threads), "computes": step.computes})
        if step.working_point is not None:
            _set_parameters(config, {"working_point": step.working_point})
        if device == "gpu":
            _set_parameters(config, {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"})
        if there := " ".join(spec.name for spec in step.inputs if spec in on_gpu):
            _set_parameters(config, {ON_GPU: there})
    return config


def _made_on_gpu(server: ServerKind, engine: EngineKind) -> tuple[TensorSpec, ...]:
    """Return the tensors that are made on a GPU whatever the machine has besides; where a native backend leaves its is its matter."""
    if engine == "tensorrt" and server == "embedded":
        return (EMBEDDING, EDGE_INDEX, EDGE_SCORE)
    return (EDGE_INDEX,)


def _set_native(config: Any, step: Step, *, device: DeviceKind, threads: int, gpu_memory: int | None) -> None:
    """Configure a container's own backend, which runs a network alone.

    It is warmed up with two rows, so that what cannot run fails at the start, and what a GPU loads at first use
    is loaded before the first event.
    """
    config.default_model_filename = step.files[0]
    # A sample of batch size 0 is skipped; without batching, 1 is no dimension.
    warmup = config.model_warmup.add(name="two rows", batch_size=1, count=1)
    for tensor in config.input:
        data = warmup.inputs[tensor.name]
        data.data_type = tensor.data_type
        data.dims.extend(dim if dim >= 0 else 2 for dim in tensor.dims)
        data.zero_data = True
    if step.backend != "onnxruntime":
        return
    # The arena keeps the largest buffer of every shape it ever saw, the patterns a plan of buffers for each, and each
    # event has another. On a GPU the arena cannot be left out: there it grows by what is asked for, not to the next
    # power of two.
    parameters = {
        "intra_op_thread_count": str(threads),
        "inter_op_thread_count": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
    }
    if device == "gpu":
        parameters["arena_extend_strategy"] = "1"
        if gpu_memory is not None:
            parameters["gpu_mem_limit"] = str(gpu_memory << 20)
        # TF32 would round hit coordinates in mm to three digits. The backend takes it here alone; of what is among the
        # parameters, those win.
        cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
        cuda.parameters["use_tf32"] = "0"
    _set_parameters(config, parameters)


def _rules_config(step: Step, rules: Rules, threads: int, count: int) -> Any:
    """Configure a model of the rules, which are followed on the CPU whatever the device of the networks."""
    identity = {
        "contract_version": str(CONTRACT_VERSION),
        "card_name": rules.name,
        "card_sha256": rules.hash,
    }
    config = _step_config(
        step,
        sizes={"n_columns": N_COLUMNS},
        identity=identity,
        device="cpu",
        threads=threads,
        count=count,
    )
    metrics = json.dumps(rules.metrics, sort_keys=True)
    _set_parameters(config, {"max_hits": str(rules.max_hits), "metrics": metrics})
    return config


def _ensemble_config(name: str, steps: tuple[Step, ...], card: ModelCard, point: WorkingPointName) -> Any:
    """Wire the steps: each takes the latest tensor of a name, and a name that is taken gets the step's prefix."""
    config = triton.ModelConfig(
        name=name,
        platform="ensemble",
        input=_tensors(triton.ModelInput, REQUEST, _sizes(card)),
        output=_tensors(triton.ModelOutput, [TRACK_LABEL], _sizes(card)),
    )
    latest = {spec.name: spec.name for spec in REQUEST}
    for step in steps:
        inputs = {spec.name: latest[spec.name] for spec in step.inputs}
        outputs = {
            spec.name: f"{step.computes}_{spec.name}" if spec.name in latest else spec.name
            for spec in step.outputs
        }
        latest |= outputs
        config.ensemble_scheduling.step.add(
            model_name=step.name, model_version=-1, input_map=inputs, output_map=outputs
        )
    _set_parameters(config, _identity(card) | _service(card, point))
    return config


def _sizes(card: ModelCard) -> dict[str, int]:
    """Return the sizes that the card fixes."""
    return {"n_columns": len(card.columns), "d": card.networks.embedding_dim}


def _tensors(message: Any, specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> list[Any]:
    return [
        message(
            name=spec.name,
            data_type=f"TYPE_{np_to_triton_dtype(spec.dtype)}",
            dims=[dim if isinstance(dim, int) else sizes.get(dim, -1) for dim in spec.dims],
            **({"optional": True} if spec.optional else {}),
        )
        for spec in specs
    ]


def _identity(card: ModelCard) -> dict[str, str]:
    """Return what tells a client which model it speaks to."""
    return {"contract_version": str(card.contract_version), "card_name": card.name, "card_sha256": card.hash}


def _service(card: ModelCard, point: WorkingPointName | None) -> dict[str, str]:
    """Return what a client wants to know of the model that it sends events to."""
    limits = {name: str(limit) for name, limit in asdict(card.limits).items()}
    return limits | {
        "working_point": point or card.default,
        "working_points": " ".join(card.points),
        "metrics": json.dumps(card.point(point).metrics, sort_keys=True),
    }


def _set_parameters(config: Any, values: dict[str, str]) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value
