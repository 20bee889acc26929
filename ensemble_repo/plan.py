"""Which steps serve the chain: one table, from which every combination of server and device follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tritrack.stages.card import CARD_FILE, engine_file
from tritrack.stages.contract import HITS, STAGES

if TYPE_CHECKING:
    from tritrack.stages.contract import StageSpec, TensorSpec

ENSEMBLE = "track_finder"
"""Name of the ensemble: HITS in, TRACK_LABEL out."""

ADAPTER_FILE = "model.py"

ServerKind = Literal["embedded", "container"]
"""embedded: a server with the Python backend alone. container: one that runs the engines itself as well."""

DeviceKind = Literal["cpu", "gpu"]

Backend = Literal["python", "onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One Triton model of the ensemble.

    Attributes
    ----------
    name
        Name of the model.
    backend
        Triton backend that runs it.
    inputs, outputs
        Its tensors.
    files
        What its version folder holds.
    """

    name: str
    backend: Backend
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]


def plan_steps(server: ServerKind) -> tuple[Step, ...]:
    """Return the steps of the ensemble, in order.

    An embedded server runs each stage as one Python step. A container runs the networks natively; what a
    stage does beside its network is then a Python step of its own: ``entry`` checks HITS before anything
    else sees them, ``cut`` follows the filter's network.
    """
    if server == "embedded":
        return tuple(_stage_step(stage) for stage in STAGES)
    steps = [_python_step("entry", inputs=(HITS,), outputs=(HITS,))]
    for stage in STAGES:
        if not stage.engine:
            steps.append(_stage_step(stage))
            continue
        steps.append(
            Step(
                name=stage.name,
                backend="onnxruntime",
                inputs=stage.inputs,
                outputs=stage.engine,
                files=(engine_file(stage.name),),
            )
        )
        if stage.engine != stage.outputs:
            cut_inputs = tuple(spec for spec in stage.inputs if spec in stage.outputs) + stage.engine
            steps.append(_python_step("cut", inputs=cut_inputs, outputs=stage.outputs))
    return tuple(steps)


def _stage_step(stage: StageSpec) -> Step:
    return _python_step(
        stage.name,
        inputs=stage.inputs,
        outputs=stage.outputs,
        files=(engine_file(stage.name),) if stage.engine else (),
    )


def _python_step(
    name: str,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    files: tuple[str, ...] = (),
) -> Step:
    return Step(
        name=name,
        backend="python",
        inputs=inputs,
        outputs=outputs,
        files=(ADAPTER_FILE, CARD_FILE, *files),
    )
