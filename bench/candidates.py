"""The engines that `tritrack.bench.engines` sets side by side: each ready to run, or with what it lacks."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tritrack.bench.precision import in_onnx
from tritrack.export.cases import drawn_cases
from tritrack.export.gates import gate_network, require
from tritrack.export.joined import joined_network
from tritrack.export.precision import typed_network
from tritrack.export.tensorrt import NoTensorRTError, find_tensorrt
from tritrack.failures import UsageError
from tritrack.stages.card import engine_file, read_card
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import OnnxEngine, load_engine
from tritrack.stages.networks import run_network
from tritrack.stages.plan_file import plan_file, read_facts
from tritrack.stages.stage import run_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.stages.card import ModelCard, Precision
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine

    Loader = Callable[[StageSpec], Engine]
    """Stage -> its network, ready to run."""

NETWORKS = tuple(spec for spec in STAGES if spec.engine)

REFERENCE = "torch"
"""The engine that the others are set against."""


@dataclass(kw_only=True)
class Candidate:
    """An engine that is measured, or what keeps it from that.

    Attributes
    ----------
    name
        Its name.
    precision
        What its inner layers compute in.
    missing
        Why it is not here; None for one that is.
    load_seconds
        By stage, the time to load or export the network.
    warm_up_seconds
        By stage, the time of the gates' cases, the first calls of all: a compiler compiles in them.
    gate
        By stage, the largest deviation on the gates' cases.
    networks
        By stage, what runs.
    """

    name: str
    precision: Precision = "fp32"
    missing: str | None = None
    load_seconds: dict[str, float] = field(default_factory=dict)
    warm_up_seconds: dict[str, float] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    networks: dict[str, Timed] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it before any event."""
        return {
            "engine": self.name,
            "precision": self.precision,
            "missing": self.missing,
            "load_seconds": self.load_seconds,
            "warm_up_seconds": self.warm_up_seconds,
            "gate_deviation": self.gate,
        }


class Timed:
    """A network whose calls are timed, and noted down where asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._spent = np.zeros(2)
        self.calls: list[tuple[NDArray[Any], ...]] | None = None

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network once."""
        start = now()
        output = self._engine(*inputs)
        self._spent += now() - start
        if self.calls is not None:
            self.calls.append(inputs)
        return output

    def take(self) -> NDArray[np.float64]:
        """Return the time since this was asked last, as :func:`now` counts it."""
        spent, self._spent = self._spent, np.zeros(2)
        return spent


def now() -> NDArray[np.float64]:
    """Return wall time and this process' processor time in seconds, float64 [2]; only differences mean anything."""
    return np.array([time.perf_counter(), time.process_time()])


def load_candidate(
    candidate: Candidate, load: Loader, *, networks: Mapping[str, nn.Module], card: ModelCard
) -> Candidate:
    """Load every network of an engine, and hold it to the gates that engines pass (raises GateError)."""
    cases = drawn_cases()
    for spec in NETWORKS:
        start = time.perf_counter()
        engine = load(spec)
        loaded = time.perf_counter()
        results = gate_network(
            partial(run_engine, engine, spec, card),
            spec=spec,
            network=networks[spec.name],
            cases=cases,
            precision=candidate.precision,
        )
        require(results)
        candidate.load_seconds[spec.name] = loaded - start
        candidate.warm_up_seconds[spec.name] = time.perf_counter() - loaded
        candidate.gate[spec.name] = max(result.deviation for result in results)
        candidate.networks[spec.name] = Timed(engine)
    return candidate


def candidates(
    *,
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    engines: Path,
    plans: Path | None,
    compiled: bool,
    threads: int,
) -> Iterator[Candidate]:
    """Yield every engine, ready to run or with what it lacks; the first is the reference."""

    def naive(spec: StageSpec) -> Engine:
        # As such networks are commonly written: every layer over pairs takes [x_inner, x_outer, e] put together for
        # every pair, sums over edges are ScatterElements, and each layer runs over all rows.
        joined = joined_network(networks[spec.name], most_features=sys.maxsize)
        return in_onnx(joined, spec, card, rendering="scatter", threads=threads)

    def ours(spec: StageSpec) -> Engine:
        return OnnxEngine(engines / engine_file(spec.name), spec=spec, threads=threads)

    def half(spec: StageSpec) -> Engine:
        typed = typed_network(joined_network(networks[spec.name]), "fp16")
        return in_onnx(typed, spec, card, precision="fp16", threads=threads)

    ready = partial(load_candidate, networks=networks, card=card)
    yield ready(Candidate(name=REFERENCE), lambda spec: partial(run_network, networks[spec.name]))
    yield compiled_candidate(lambda spec: compile_network(networks[spec.name]), ready=ready, wanted=compiled)
    yield ready(Candidate(name="onnx, plain export"), naive)
    yield ready(Candidate(name="onnx"), ours)
    yield ready(Candidate(name="onnx, fp16", precision="fp16"), half)
    yield _tensorrt(plans, ready=ready, card=card, threads=threads)


def compile_network(network: nn.Module) -> Engine:
    """Return a network that torch compiles at its first call, for events of all sizes."""
    return partial(run_network, torch.compile(network, dynamic=True))  # type: ignore[arg-type]


def compiled_candidate(
    load: Loader, *, ready: Callable[[Candidate, Loader], Candidate], wanted: bool
) -> Candidate:
    """Return the compiled networks, or why the compiler does not give them."""
    name = "torch.compile"
    if not wanted:
        return Candidate(name=name, missing="left out: --no-compile")
    try:
        return ready(Candidate(name=name), load)
    except Exception as error:  # noqa: BLE001 (a compiler's failures share no other class)
        reason = next(iter(str(error).splitlines()), "")
        return Candidate(name=name, missing=f"{type(error).__name__}: {reason}")


def _tensorrt(
    plans: Path | None, *, ready: Callable[[Candidate, Loader], Candidate], card: ModelCard, threads: int
) -> Candidate:
    name = "tensorrt"
    try:
        find_tensorrt()
    except NoTensorRTError as error:
        return Candidate(name=name, missing=str(error))
    if plans is None:
        return Candidate(name=name, missing="no folder of engines for TensorRT was given: --plans")
    check_card(plans, card=card)
    precision = read_facts(plans / plan_file("gnn")).precision
    return ready(
        Candidate(name=name, precision=precision), lambda spec: load_engine(spec, plans, threads=threads)
    )


def check_card(folder: Path, *, card: ModelCard) -> None:
    """Refuse engines of other weights (raises UsageError)."""
    found = read_card(folder)
    if found.hash != card.hash:
        raise UsageError(
            f"bench.engines: {folder}: these engines are of {found.name}, not of the weights given ({card.name})"
        )
