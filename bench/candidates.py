"""The engines that `tritrack.bench.engines` sets side by side: each ready to run, or with what it lacks."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

from tritrack.bench.engine_rows import COMPILED, OURS, PLAIN, REFERENCE, EngineRow
from tritrack.bench.precision import in_onnx
from tritrack.bench.weights import check_card
from tritrack.export.cases import drawn_cases
from tritrack.export.gates import GateError, gate_network, require
from tritrack.export.joined import joined_network
from tritrack.export.precision import typed_network
from tritrack.export.tensorrt import NoTensorRTError, find_tensorrt
from tritrack.stages.card import CardError
from tritrack.stages.contract import STAGES
from tritrack.stages.engine import CUDA, cuda_is_there, load_engine
from tritrack.stages.networks import run_network
from tritrack.stages.plan_file import plan_file, read_facts
from tritrack.stages.stage import run_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from tritrack.export.edge_sum import Rendering
    from tritrack.stages.card import ModelCard, Precision
    from tritrack.stages.contract import StageSpec
    from tritrack.stages.engine import Engine

    Loader = Callable[[StageSpec], Engine]
    """Stage -> its network, ready to run."""

NETWORKS = tuple(spec for spec in STAGES if spec.engine)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine: its row before any event, and by stage what runs; nothing where it is missing."""

    row: EngineRow
    networks: dict[str, Timed] = field(default_factory=dict)


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
    row: EngineRow, load: Loader, *, networks: Mapping[str, nn.Module], card: ModelCard
) -> Candidate:
    """Load every network of an engine, and hold it to the gates that engines pass (raises GateError)."""
    cases = drawn_cases()
    ready: dict[str, Timed] = {}
    load_seconds, warm_up_seconds, deviation = {}, {}, {}
    for spec in NETWORKS:
        start = time.perf_counter()
        engine = load(spec)
        loaded = time.perf_counter()
        results = gate_network(
            partial(run_engine, engine, spec, card),
            spec=spec,
            network=networks[spec.name],
            cases=cases,
            precision=row.precision,
        )
        require(results)
        load_seconds[spec.name] = loaded - start
        warm_up_seconds[spec.name] = time.perf_counter() - loaded
        deviation[spec.name] = max(result.deviation for result in results)
        ready[spec.name] = Timed(engine)
    return Candidate(
        row=replace(
            row, load_seconds=load_seconds, warm_up_seconds=warm_up_seconds, gate_deviation=deviation
        ),
        networks=ready,
    )


def candidates(
    *,
    card: ModelCard,
    networks: Mapping[str, nn.Module],
    engines: Path,
    plans: Sequence[Path],
    compiled: bool,
    threads: int,
) -> Iterator[Candidate]:
    """Yield every engine, ready to run or with what it lacks; the first is the reference."""

    def plain(spec: StageSpec) -> Engine:
        # As such networks are commonly written: every layer over pairs takes [x_inner, x_outer, e] put together for
        # every pair, sums over edges are ScatterElements, and each layer runs over all rows.
        joined = joined_network(networks[spec.name], most_features=sys.maxsize)
        return in_onnx(joined, spec, card, rendering="scatter", threads=threads)

    def ours(spec: StageSpec, *, precision: Precision = "fp32", device: str | None = None) -> Engine:
        # In loops over blocks of rows for a cache, in layers over all of them for a GPU.
        rendering: Rendering = "sorted" if device is None else "scatter"
        typed = typed_network(joined_network(networks[spec.name]), precision)
        return in_onnx(
            typed, spec, card, precision=precision, rendering=rendering, threads=threads, device=device
        )

    ready = partial(load_candidate, networks=networks, card=card)
    yield ready(EngineRow(engine=REFERENCE), lambda spec: partial(run_network, networks[spec.name]))
    yield compiled_candidate(lambda spec: compile_network(networks[spec.name]), ready=ready, wanted=compiled)
    yield ready(EngineRow(engine=PLAIN), plain)
    yield ready(EngineRow(engine=OURS), partial(load_engine, folder=engines, threads=threads))
    yield ready(EngineRow(engine=f"{OURS}, fp16", precision="fp16"), partial(ours, precision="fp16"))
    on_gpu: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in on_gpu:
        load = partial(ours, precision=precision, device="cuda")
        yield cuda_candidate(precision, load, ready=ready)
    for precision in on_gpu:
        yield tensorrt_candidate(precision, plans, ready=ready, card=card, threads=threads)


def compile_network(network: nn.Module) -> Engine:
    """Return a network that torch compiles at its first call, for events of all sizes."""
    return partial(run_network, torch.compile(network, dynamic=True))  # type: ignore[arg-type]


def compiled_candidate(
    load: Loader, *, ready: Callable[[EngineRow, Loader], Candidate], wanted: bool
) -> Candidate:
    """Return the compiled networks, or why the compiler does not give them."""
    row = EngineRow(engine=COMPILED)
    if not wanted:
        return Candidate(row=replace(row, missing="left out: --no-compile"))
    try:
        return ready(row, load)
    except Exception as error:  # noqa: BLE001 (a compiler's failures share no other class)
        reason = next(iter(str(error).splitlines()), "")
        return Candidate(row=replace(row, missing=f"{type(error).__name__}: {reason}"))


def cuda_candidate(
    precision: Precision, load: Loader, *, ready: Callable[[EngineRow, Loader], Candidate]
) -> Candidate:
    """Return the networks in ONNX Runtime on a GPU, or why they do not run there."""
    row = EngineRow(engine=_named(f"{OURS}, CUDA", precision), precision=precision, device="gpu")
    if not cuda_is_there():
        here = onnxruntime.get_available_providers()
        return Candidate(row=replace(row, missing=f"ONNX Runtime has no {CUDA} here, only {', '.join(here)}"))
    try:
        return ready(row, load)
    except (CardError, GateError) as error:
        return Candidate(row=replace(row, missing=str(error)))


def tensorrt_candidate(
    precision: Precision,
    plans: Sequence[Path],
    *,
    ready: Callable[[EngineRow, Loader], Candidate],
    card: ModelCard,
    threads: int,
) -> Candidate:
    """Return the engines of that precision among folders of TensorRT engines, or why there are none."""
    row = EngineRow(engine=_named("tensorrt", precision), precision=precision, device="gpu")
    try:
        find_tensorrt()
    except NoTensorRTError as error:
        return Candidate(row=replace(row, missing=str(error)))
    for folder in plans:
        if read_facts(folder / plan_file("gnn")).precision == precision:
            check_card(folder, card=card)
            return ready(row, partial(load_engine, folder=folder, threads=threads))
    return Candidate(
        row=replace(row, missing=f"no folder of TensorRT engines in {precision} was given: --plans")
    )


def _named(engine: str, precision: Precision) -> str:
    return engine if precision == "fp32" else f"{engine}, {precision}"
