"""Run a TensorRT engine in this process. Importing this module imports TensorRT, and torch for device memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorrt as trt
import torch

from tritrack.stages.card import CardError
from tritrack.stages.placement import Array, addressable, to_device

if TYPE_CHECKING:
    from pathlib import Path

    from tritrack.stages.contract import StageSpec


class PlanEngine:
    """A TensorRT engine on the GPU; of the host's arrays it makes the host's, of tensors there tensors there.

    Parameters
    ----------
    path
        The file, built for this machine (`tritrack.stages.plan_file.check_plan`).
    spec
        The stage, which names its inputs and output.

    Raises
    ------
    CardError
        Where TensorRT cannot load it.
    """

    on_device = True
    """Takes tensors of a device."""

    def __init__(self, path: Path, *, spec: StageSpec) -> None:
        self._path = path
        self._spec = spec
        # Both are held as long as the engine.
        self._log: trt.Logger = trt.Logger(trt.Logger.ERROR)
        trt.init_libnvinfer_plugins(None, "")
        self._runtime: trt.Runtime = trt.Runtime(self._log)
        engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise CardError(f"{path}: TensorRT {trt.__version__} cannot load this engine")
        self._engine: trt.ICudaEngine = engine
        # It would keep the memory of the profile's largest event, which is all that a GPU has.
        context: trt.IExecutionContext | None = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise CardError(f"{path}: TensorRT has no memory for this engine's context")
        self._context: trt.IExecutionContext = context
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, *inputs: Array) -> Array:
        """Run the network once (raises CardError where a shape is outside of the engine's profile)."""
        (output,) = self._spec.engine
        on_host = any(isinstance(array, np.ndarray) for array in inputs)
        # What made the inputs may still be at work, on the stream that the caller is on.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            tensors = [addressable(to_device(array, "cuda")) for array in inputs]
            for spec, tensor in zip(self._spec.inputs, tensors, strict=True):
                if not self._context.set_input_shape(spec.name, tuple(tensor.shape)):
                    raise CardError(
                        f"{self._path}: {spec.name} of shape {list(tensor.shape)} is outside of its profile"
                    )
                self._set_address(spec.name, tensor)
            shape = tuple(self._context.get_tensor_shape(output.name))
            result: Any = torch.empty(shape, dtype=torch.float32, device="cuda")
            self._set_address(output.name, result)
            n_bytes = int(self._context.update_device_memory_size_for_shapes())
            scratch = torch.empty(max(n_bytes, 1), dtype=torch.uint8, device="cuda")
            self._context.set_device_memory(scratch.data_ptr(), n_bytes)
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise CardError(f"{self._path}: TensorRT failed to run it")
        self._stream.synchronize()
        result.record_stream(torch.cuda.current_stream())
        found: Array = result.cpu().numpy() if on_host else result
        return found

    def _set_address(self, name: str, tensor: torch.Tensor) -> None:
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise CardError(f"{self._path}: TensorRT does not take the address of {name}")
