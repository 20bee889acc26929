"""Which steps serve the chain: one table, from which every combination of server and device follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tritrack.rules.windows import RULES_FILE
from tritrack.stages.card import CARD_FILE, FUSED, engine_file, ensemble_name
from tritrack.stages.contract import (
    CUT_STEP,
    EVENT_OFFSETS,
    FILTER_STAGE,
    FIT_STEP,
    GRAPH_STAGE,
    HITS,
    LABELLING_STAGE,
    NATIVE_STEPS,
    STAGES,
    TRACK_LABEL,
    StageSpec,
)
from tritrack.stages.plan_file import facts_file, plan_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tritrack.stages.card import ModelCard, WorkingPointName
    from tritrack.stages.contract import TensorSpec

ADAPTER_FILE = "model.py"

CONFIG_FILE = "config.pbtxt"
"""A model's configuration, beside its version folders."""

Backend = Literal["python", "onnxruntime", "tensorrt", "tritrack"]

NATIVE: tuple[Backend, ...] = ("onnxruntime", "tensorrt")
"""A container's own."""

BACKEND: Backend = "tritrack"
"""The Triton backend that runs any step, or the whole chain: the adapter, in a folder of the server's backends."""

BACKEND_FILE = Path(__file__).with_name(ADAPTER_FILE)
"""What that folder holds."""

REQUEST = (HITS, EVENT_OFFSETS)
"""What a client sends."""

ENTRY_STEP = StageSpec(name="entry", inputs=(HITS,), outputs=(HITS,))
"""Checks HITS where the first stage runs in a native backend, which does not."""

CHAIN = StageSpec(name="chain", inputs=(HITS,), outputs=(TRACK_LABEL,))
"""The five stages in one process."""

RULE_FINDER = StageSpec(name="rule_finder", inputs=(HITS,), outputs=(TRACK_LABEL,))
"""The rule-based finder."""

PYTHON_FILES = (CARD_FILE, RULES_FILE)
"""The version folder of every model that runs in Python holds one of these."""

CUTS_OF_STEP = {
    GRAPH_STAGE: ("graph", "radius", "windows", "k"),
    FILTER_STAGE: ("filter_cut",),
    CUT_STEP: ("filter_cut",),
    LABELLING_STAGE: ("gnn_cut", "labelling"),
}
"""The fields of ``Cuts`` that each step takes; a step that is not here is the same at every working point."""

ON_GPU = "on_gpu"
"""Parameter of a step: its inputs that the steps before it leave on the GPU."""

GPU = 0
"""Which GPU the steps run on. Triton would put an instance on each, and tensors would go from one to the other."""

IN_FLIGHT = 4
"""Events at the model's limits that a server's pool of GPU memory has room for, if nothing else is said."""

ServerKind = Literal["embedded", "container"]
"""embedded: a server with the Python backend alone. container: one that runs the engines itself as well."""

DeviceKind = Literal["cpu", "gpu"]

EngineKind = Literal["onnx", "tensorrt"]


class PlanError(ValueError):
    """A plan that no server can follow; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Instances:
    """How many instances of each step a server runs; each is a process of its own, but for a native backend's.

    Attributes
    ----------
    each
        Of every step that is not named.
    of
        Of the steps that compute something (`Step.computes`), at whatever working point.
    """

    each: int = 1
    of: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, count in {"each": self.each, **self.of}.items():
            if count < 1:
                raise PlanError(f"instances: {count} given for {name}, at least 1 wanted")

    def count(self, step: Step) -> int:
        """Return the instances of a step."""
        return self.of.get(step.computes, self.each)


ONE_EACH = Instances()
"""What a repository has if nothing else is said."""


def read_instances(words: Iterable[str]) -> Instances:
    """Read counts as a person gives them: ``2`` for every step, ``gnn=2`` for one (raises PlanError)."""
    each, of = 1, {}
    for word in words:
        name, _, count = word.rpartition("=")
        if not count.isdecimal():
            raise PlanError(f"instances: {word} given, a number or STEP=NUMBER wanted")
        if name:
            of[name] = int(count)
        else:
            each = int(count)
    return Instances(each=each, of=of)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One Triton model: a step of the ensembles, or the chain as a whole.

    Attributes
    ----------
    name
        Name of the model: what it computes, and the working point where that matters.
    computes
        ``entry``, one of the contract's stages, ``cut``, ``chain``, ``rule_finder``, or ``track_fit``.
    working_point
        Whose cuts it takes; None for a step without.
    backend
        Triton backend that runs it.
    inputs, outputs
        Its tensors.
    files
        What its version folder holds.
    """

    name: str
    computes: str
    working_point: WorkingPointName | None
    backend: Backend
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]


def plan_chain(
    card: ModelCard, server: ServerKind, working_point: WorkingPointName, engine: EngineKind = "onnx"
) -> tuple[Step, ...]:
    """Return the steps of one working point's ensemble, in order.

    An embedded server runs the stages, each of them in Python. A container runs the networks natively: ``entry``
    checks HITS before anything else sees them, and the filter's cut is a step of its own. Working points with the
    same cuts of a step share the step, named by the first of them; what takes no cuts all of them share.
    """
    native = server == "container"
    specs = (ENTRY_STEP, *NATIVE_STEPS) if native else STAGES
    return tuple(_step(spec, card, working_point, native=native, engine=engine) for spec in specs)


def plan_steps(card: ModelCard, server: ServerKind, engine: EngineKind = "onnx") -> tuple[Step, ...]:
    """Return the steps of all working points, each once, in order."""
    chains = [plan_chain(card, server, point, engine) for point in card.points]
    return tuple(dict.fromkeys(step for alternatives in zip(*chains, strict=True) for step in alternatives))


def plan_fused(card: ModelCard, engine: EngineKind = "onnx") -> tuple[Step, ...]:
    """Return the models that run the chain in one process, by the names that clients ask for.

    There is one of each working point, and one of the default under the name that goes without saying.
    """
    engines = (_engine_files(spec.name, engine) for spec in STAGES if spec.engine)
    files = (CARD_FILE, *chain.from_iterable(engines))
    return tuple(
        Step(
            name=ensemble_name(point, ensemble=FUSED),
            computes=CHAIN.name,
            working_point=point or card.default,
            backend=BACKEND,
            inputs=REQUEST,
            outputs=CHAIN.outputs,
            files=files,
        )
        for point in (*card.points, None)
    )


def plan_rules() -> tuple[Step, ...]:
    """Return the models that take rules and no card: the finder, and the fit of any finder's tracks.

    The fit is no step of the ensembles. Triton leaves out a step whose outputs a request does not ask for, and
    then the one that gives its inputs, even where the request asks for these.
    """
    return tuple(
        Step(
            name=spec.name,
            computes=spec.name,
            working_point=None,
            backend=BACKEND,
            inputs=(*spec.inputs, EVENT_OFFSETS),
            outputs=spec.outputs,
            files=(RULES_FILE,),
        )
        for spec in (RULE_FINDER, FIT_STEP)
    )


def _step(
    spec: StageSpec, card: ModelCard, working_point: WorkingPointName, *, native: bool, engine: EngineKind
) -> Step:
    owner = _owner(spec, card, working_point)
    files = _engine_files(spec.name, engine) if spec.engine else ()
    in_python = not (native and files)
    return Step(
        name=spec.name if owner is None else f"{spec.name}_{owner}",
        computes=spec.name,
        working_point=owner,
        backend="python" if in_python else "tensorrt" if engine == "tensorrt" else "onnxruntime",
        # A native backend sees a pack as one large event, which its network may.
        inputs=(*spec.inputs, EVENT_OFFSETS) if in_python else spec.inputs,
        outputs=spec.outputs,
        files=(ADAPTER_FILE, CARD_FILE, *files) if in_python else files,
    )


def _engine_files(stage: str, engine: EngineKind) -> tuple[str, ...]:
    """Return what the engine of a stage's network consists of, the engine itself first."""
    if engine == "onnx":
        return (engine_file(stage),)
    return (plan_file(stage), facts_file(plan_file(stage)))


def _owner(spec: StageSpec, card: ModelCard, working_point: WorkingPointName) -> WorkingPointName | None:
    """Return the first working point that has this one's cuts of a step."""
    fields = CUTS_OF_STEP.get(spec)
    if fields is None:
        return None

    def cuts_of(point: WorkingPointName) -> list[object]:
        return [getattr(card.point(point).cuts, field) for field in fields]

    return next(point for point in card.points if cuts_of(point) == cuts_of(working_point))
