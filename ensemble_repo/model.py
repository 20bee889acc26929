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

from tritrack.ensemble_repo.steps import load_step
from tritrack.stages.contract import ContractError

HOST_BYTES = "tritrack_host_bytes_total"
"""The server's counter, one for each step."""


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
        self.name = args["model_name"]
        self.family = pb_utils.MetricFamily(
            name=HOST_BYTES,
            description="Bytes of a step's inputs that were copied from a GPU to the host",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.host_bytes = self.family.Metric(labels={"stage": self.name})
        self.step = load_step(
            values["computes"], folder, threads=threads, working_point=values.get("working_point")
        )
        self.step(_smallest_inputs(config))  # compiles what is compiled at first use, before the first event
        pb_utils.Logger.log_info(f"{self.name}: loaded from {folder}, {threads} threads")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails does not fail the others."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Let go of the engines, so that a model that is unloaded leaves nothing behind."""
        del self.step

    def _answer(self, request: Any) -> Any:
        if request.is_cancelled():
            return _refusal(f"{self.name}: the client gave up", pb_utils.TritonError.CANCELLED)
        try:
            tensors = request.inputs()
            arrays = {tensor.name(): _array(tensor) for tensor in tensors}
            crossed = sum(arrays[tensor.name()].nbytes for tensor in tensors if not tensor.is_cpu())
            self.host_bytes.increment(crossed)
            outputs = self.step(arrays)
        except ContractError as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # noqa: BLE001 (a request that fails must not take the others along)
            pb_utils.Logger.log_error(f"{self.name}: {traceback.format_exc()}")
            return _refusal(
                f"{self.name} failed: {type(error).__name__}: {error}; the server's log has more",
                pb_utils.TritonError.INTERNAL,
            )
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def _smallest_inputs(config: dict[str, Any]) -> dict[str, Any]:
    """Return zeros for every input that the step needs, two rows where the number of rows is free."""
    return {
        tensor["name"]: np.zeros(
            [2 if int(dim) < 0 else int(dim) for dim in tensor["dims"]],
            dtype=pb_utils.triton_string_to_numpy(tensor["data_type"]),
        )
        for tensor in config["input"]
        if not tensor.get("optional")
    }


def _array(tensor: Any) -> Any:
    if tensor.is_cpu():
        return tensor.as_numpy()
    from torch.utils.dlpack import from_dlpack  # only where the server has a GPU

    return from_dlpack(tensor.to_dlpack()).cpu().numpy()


def _refusal(sentence: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code))
