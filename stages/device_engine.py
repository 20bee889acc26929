"""Run an ONNX engine on a device's tensors, which stay there. Importing this module imports torch, for their memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

# Before a session: ONNX Runtime's CUDA provider finds the CUDA libraries that torch has loaded.
import torch

from tritrack.stages.card import CardError
from tritrack.stages.engine import CPU, CUDA, open_session
from tritrack.stages.placement import Array, addressable, to_device

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tritrack.stages.contract import StageSpec


logger = logging.getLogger(__name__)

SHRINKAGE = "memory.enable_memory_arena_shrinkage"
"""ONNX Runtime's option of a run: the arenas whose memory it gives back at its end."""


class RunChoice:
    """Whether a run gives an arena's memory back at its end.

    It does where its shapes are others than the last run's, of which nothing fits: so at most one event's memory is
    kept, and a new event's comes on top of it for one run. An event that comes again finds what it needs: giving back
    and asking for memory stops the GPU, and may take longer than a small event's network.

    Parameters
    ----------
    arena
        ONNX Runtime's name of it, "gpu:0", say; None where there is none.
    """

    def __init__(self, *, arena: str | None) -> None:
        self._keep, self._give_back = onnxruntime.RunOptions(), onnxruntime.RunOptions()
        if arena is not None:
            self._give_back.add_run_config_entry(SHRINKAGE, arena)
        self._last: list[tuple[int, ...]] | None = None

    def __call__(self, shapes: Iterable[Sequence[int]]) -> onnxruntime.RunOptions:
        """Return the options of a run with inputs of these shapes."""
        last, self._last = self._last, [tuple(shape) for shape in shapes]
        return self._keep if self._last == last else self._give_back


class DeviceEngine:
    """An ONNX file in ONNX Runtime on a device; of the host's arrays it makes the host's, of tensors there tensors there.

    Inputs and output are bound where they lie (ONNX Runtime's I/O binding).

    Parameters
    ----------
    path
        The file.
    spec
        The stage, which names its inputs and output.
    threads
        Threads of what ONNX Runtime leaves on the host.
    device
        Torch's name of the device: "cuda:0", say, or "cpu".

    Raises
    ------
    CardError
        Where the file cannot be loaded, or ONNX Runtime cannot start on the device.
    """

    on_device = True
    """Takes tensors of a device."""

    def __init__(self, path: Path, *, spec: StageSpec, threads: int, device: str) -> None:
        self._spec = spec
        self._device = torch.device(device)
        self._number = self._device.index or 0
        on_gpu = self._device.type == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise CardError(f"{path}: torch, which gives it memory there, uses no GPU here")
        self._session = open_session(
            path, threads=threads, provider=CUDA if on_gpu else CPU, device_id=self._number
        )
        said = self._session.get_modelmeta().custom_metadata_map
        if on_gpu and said.get("edge_sum") == "sorted":
            logger.warning(
                "%s: its loops are for a CPU's cache and slow on a GPU; export it with --edge-sum scatter",
                path,
            )
        self._choose = RunChoice(arena=f"gpu:{self._number}" if on_gpu else None)
        self._free = [dim if isinstance(dim, int) else None for dim in self._session.get_outputs()[0].shape]

    def __call__(self, *inputs: Array) -> Array:
        """Run the network once."""
        on_host = any(isinstance(array, np.ndarray) for array in inputs)
        tensors = [addressable(to_device(array, str(self._device))) for array in inputs]
        (output,) = self._spec.engine
        result: Any = torch.empty(self._output_shape(tensors), dtype=torch.float32, device=self._device)
        if self._device.type == "cuda":
            # ONNX Runtime has a stream of its own, and does not wait for what makes the inputs on torch's; the other
            # way round it returns when the output is there.
            torch.cuda.current_stream(self._device).synchronize()
        binding = self._session.io_binding()
        for spec, tensor in zip(self._spec.inputs, tensors, strict=True):
            self._bind(binding.bind_input, spec.name, tensor, spec.dtype)
        self._bind(binding.bind_output, output.name, result, output.dtype)
        self._session.run_with_iobinding(binding, self._choose([tensor.shape for tensor in tensors]))
        found: Array = result.cpu().numpy() if on_host else result
        return found

    def _output_shape(self, tensors: list[torch.Tensor]) -> list[int]:
        """Return the output's shape: rows as the inputs have, and what the file fixes."""
        sizes = {
            dim: size
            for spec, tensor in zip(self._spec.inputs, tensors, strict=True)
            for dim, size in zip(spec.dims, tensor.shape, strict=True)
        }
        (output,) = self._spec.engine
        return [
            sizes[dim] if fixed is None else fixed for dim, fixed in zip(output.dims, self._free, strict=True)
        ]

    def _bind(self, bind: Any, name: str, tensor: torch.Tensor, dtype: np.dtype[Any]) -> None:
        bind(name, self._device.type, self._number, dtype, list(tensor.shape), tensor.data_ptr())
