"""The adapter between Triton and what runs in Python.

It is copied into the folder of every step of the Python backend, and it is the whole of the backend ``tritrack``,
whose models bring their configuration, card and engines or rules, and no code.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritrack.ensemble_repo.plan import BACKEND, ENTRY_STEP, ON_GPU
from tritrack.ensemble_repo.steps import load_step
from tritrack.stages.contract import EMBEDDING_STAGE, GNN_STAGE, NO_MEMORY, ContractError
from tritrack.stages.placement import (
    contiguous,
    copied_to_host,
    find_device,
    give_back_memory,
    lacks_memory,
    to_host,
)

ASKING = (ENTRY_STEP.name, EMBEDDING_STAGE.name, GNN_STAGE.name)
"""Steps that ask of every event whether its client still waits: those that see it first, and the slowest, where it queues."""

MANY_ROWS = 10_000
"""The answer takes 0.05 to 0.1 ms; the other steps ask of events with so many rows, with which they are busy for many ms."""

HOST_BYTES = "tritrack_host_bytes_total"
"""The server's counter, one for each step."""


class NoRoomError(RuntimeError):
    """A tensor that Triton moved to the host for want of GPU memory: an event would be answered, but slowly."""


class TritonPythonModel:
    """One step, or the whole chain; Triton looks for this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the step that the configuration says."""
        # The Python backend of Triton 24.10 misreads the arrays of NumPy 2 and hands on empty outputs.
        probe = np.arange(1, 4)
        tensor = pb_utils.Tensor.from_dlpack("PROBE", pb_utils.Tensor("PROBE", probe))
        if not np.array_equal(tensor.as_numpy(), probe):
            raise pb_utils.TritonModelException(
                f"this server's Python backend cannot read arrays of NumPy {np.__version__}: install numpy<2"
            )
        config = json.loads(args["model_config"])
        values = {key: parameter["string_value"] for key, parameter in config["parameters"].items()}
        threads = int(values["threads"])
        folder = Path(args["model_repository"]) / args["model_version"]
        device = find_device(args["model_instance_kind"], int(args["model_instance_device_id"]))
        self.name = args["model_name"]
        self.asks = config["backend"] == BACKEND or values["computes"] in ASKING
        self.family = pb_utils.MetricFamily(
            name=HOST_BYTES,
            description="Bytes of tensors that a step copied from a GPU to the host",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.host_bytes = self.family.Metric(labels={"stage": self.name})
        # Without a device every input is the host's.
        self.on_gpu = frozenset(values.get(ON_GPU, "").split()) if device is not None else frozenset()
        self.step = load_step(
            values["computes"],
            folder,
            threads=threads,
            working_point=values.get("working_point"),
            device=device,
        )
        # A stage may have no form for the device; what is no stage alone is on it as far as its stages are.
        where = getattr(self.step, "device", device) or "host"
        pb_utils.Logger.log_info(f"{self.name}: loaded from {folder}, {threads} threads, device {where}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails does not fail the others."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Let go of the engines, so that a model that is unloaded leaves nothing behind."""
        del self.step

    def _answer(self, request: Any) -> Any:
        if self._is_worth_asking(request) and request.is_cancelled():
            return _refusal(f"{self.name}: the client gave up", pb_utils.TritonError.CANCELLED)
        copied = copied_to_host()
        try:
            outputs = self.step({tensor.name(): self._take(tensor) for tensor in request.inputs()})
            answer = [_give(name, array) for name, array in outputs.items()]
        except ContractError as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except NoRoomError as error:
            return _refusal(str(error), pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 (a request that fails must not take the others along)
            asked = f"[request id: {request.request_id() or '<id_unknown>'}]"  # as Triton writes it
            pb_utils.Logger.log_error(f"{self.name}: {asked} {traceback.format_exc()}")
            if lacks_memory(error):
                traceback.clear_frames(error.__traceback__)  # they hold the event's tensors
                give_back_memory()
                return _refusal(
                    f"{self.name}: {NO_MEMORY} beside all else that is at work: {error}",
                    pb_utils.TritonError.UNAVAILABLE,
                )
            return _refusal(
                f"{self.name} failed: {type(error).__name__}: {error}; the server's log has more",
                pb_utils.TritonError.INTERNAL,
            )
        finally:
            # Each increment is a message to the server and back, 0.1 ms of every step.
            if bytes_copied := copied_to_host() - copied:
                self.host_bytes.increment(bytes_copied)
        return pb_utils.InferenceResponse(answer)

    def _is_worth_asking(self, request: Any) -> bool:
        return self.asks or any(max(tensor.shape()) >= MANY_ROWS for tensor in request.inputs())

    def _take(self, tensor: Any) -> Any:
        """Return Triton's tensor where it lies: the host's as an array, a GPU's as a tensor of torch's."""
        if not tensor.is_cpu():
            return _take_from_gpu(tensor)
        array = tensor.as_numpy()
        # One without entries is the host's, wherever it was made.
        if tensor.name() in self.on_gpu and array.size:
            raise NoRoomError(
                f"{self.name}: {NO_MEMORY}: {tensor.name()} came by the host, since the server's pool of GPU memory is full (send fewer "
                "events at once, or start the server with more --in-flight) or it found no libcuda.so at its start"
            )
        return array


def _take_from_gpu(tensor: Any) -> Any:
    try:
        from torch.utils.dlpack import from_dlpack
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{tensor.name()} lies on a GPU, and torch, which reads it there, is not installed for the server: "
            "pip install 'tritrack[gpu]'"
        ) from None
    return from_dlpack(tensor.to_dlpack())


def _give(name: str, array: Any) -> Any:
    """Return an array or a tensor as Triton's, where it lies; one without entries as the host's."""
    if isinstance(array, np.ndarray):
        return pb_utils.Tensor(name, array)
    if array.numel() == 0:  # CUDA has no address of nothing
        return pb_utils.Tensor(name, to_host(array))
    return pb_utils.Tensor.from_dlpack(name, contiguous(array))


def _refusal(sentence: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code))
