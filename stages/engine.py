"""Run an engine file: what a stage's network was exported to."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

# Read when it is imported: without this it keeps a telemetry database in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tritrack.stages.card import CardError, engine_file
from tritrack.stages.parallel_loops import ParallelModel, has_parallel_loops
from tritrack.stages.plan_file import check_plan, plan_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.stages.contract import StageSpec

Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
CPU: Provider = "CPUExecutionProvider"
CUDA: Provider = "CUDAExecutionProvider"
"""Where ONNX Runtime computes."""

PARALLEL_ROWS = 10_000
"""Hits, or pairs, from which on the turns of a file's loops run in threads. With fewer there are few turns to share, and
one thread computes: two would gain some milliseconds of one event, and cost many events at once half the throughput."""


class Engine(Protocol):
    """A network that runs: the stage's inputs in the contract's order -> its output."""

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network once."""


class OnnxEngine:
    """An ONNX file in ONNX Runtime, on the host.

    Parameters
    ----------
    path
        The file.
    spec
        The stage, which names its inputs and output.
    threads
        Threads that compute: where the file has loops over blocks of rows, those that run their turns, and one for an
        event of few rows; else those of the session. The answer is the same.

    Raises
    ------
    CardError
        Where the file cannot be loaded.
    """

    def __init__(self, path: Path, *, spec: StageSpec, threads: int) -> None:
        self._inputs = [tensor.name for tensor in spec.inputs]
        # One thread gains nothing by parts (docs/engines.md).
        model = _model_with_loops(path) if threads > 1 else None
        self._whole = open_session(path, threads=threads if model is None else 1, provider=CPU)
        self._parts: ParallelModel | None = None
        if model is not None:
            open_part = partial(open_session, path, threads=1, provider=CPU)
            self._parts = ParallelModel(
                model, open_session=lambda part: open_part(part=part), threads=threads
            )

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network once."""
        named = dict(zip(self._inputs, inputs, strict=True))
        output: NDArray[np.float32]
        if self._parts is not None and max(inputs[-1].shape) >= PARALLEL_ROWS:
            (output,) = self._parts.run(named)
        else:
            (output,) = self._whole.run(None, named)
        return output


def _model_with_loops(path: Path) -> onnx.ModelProto | None:
    try:
        model = onnx.load_model(path)
    except DecodeError:  # ONNX Runtime says what is wrong with it
        return None
    return model if has_parallel_loops(model) else None


def open_session(
    path: Path, *, threads: int, provider: Provider, device_id: int = 0, part: bytes | None = None
) -> onnxruntime.InferenceSession:
    """Load an ONNX file for events of ever other shapes.

    Parameters
    ----------
    path
        The file.
    threads
        Threads on the host.
    provider, device_id
        Where it computes; on which GPU.
    part
        A model that is a part of the file's, to load in its place.

    Raises
    ------
    CardError
        Where the file cannot be loaded, or the provider does not start.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads spin for their next operator; for one of the next event they would take the cores from the other
    # stages.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The arena keeps the largest buffer of every shape it ever saw, and events differ in shape. On a GPU it cannot be
    # left out: there it grows by what is asked for, not to the next power of two.
    options.enable_cpu_mem_arena = False
    # Nor a plan of buffers for every shape that it ever saw: each event has its own, and the server would grow.
    options.enable_mem_pattern = False
    on_gpu = {
        "device_id": str(device_id),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # it would round float32 hit coordinates to three digits
    }
    try:
        session = onnxruntime.InferenceSession(
            part if part is not None else str(path),
            sess_options=options,
            providers=[(provider, on_gpu if provider == CUDA else {})],
        )
    except Exception as error:  # noqa: BLE001 (its errors share no other class)
        raise CardError(f"{path}: ONNX Runtime cannot load this engine: {error}") from None
    # Where one does not start, ONNX Runtime goes on with the CPU.
    if provider not in session.get_providers():
        raise CardError(f"{path}: ONNX Runtime could not start {provider}")
    return session


def cuda_is_there() -> bool:
    """Tell whether this ONNX Runtime was built with CUDA (the package onnxruntime-gpu)."""
    return CUDA in onnxruntime.get_available_providers()


def load_engine(spec: StageSpec, folder: Path, *, threads: int, device: str | None = None) -> Engine:
    """Load a stage's network from a folder of engines, TensorRT's where there are such.

    Parameters
    ----------
    spec
        The stage.
    folder
        Holds the engine.
    threads
        Threads on the host.
    device
        Torch's name of the device; ONNX Runtime computes on a GPU where it was built with CUDA. None for the host.

    Raises
    ------
    CardError
        Where there is no engine, or it does not run here.
    """
    plan = folder / plan_file(spec.name)
    if plan.exists():
        check_plan(plan)
        try:
            from tritrack.stages.plan_engine import PlanEngine
        except ModuleNotFoundError as error:
            raise CardError(f"{plan}: {error.name} is not installed, and runs this engine here") from None
        return PlanEngine(plan, spec=spec)
    path = folder / engine_file(spec.name)
    if not path.exists():
        raise CardError(f"{path}: no engine there")
    if device is not None and device.startswith("cuda") and cuda_is_there():
        from tritrack.stages.device_engine import DeviceEngine  # here: it imports torch

        return DeviceEngine(path, spec=spec, threads=threads, device=device)
    return OnnxEngine(path, spec=spec, threads=threads)
