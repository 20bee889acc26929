"""Where a tensor lies: on the host, as an array of NumPy's, or on a device, as a tensor of torch's.

A stage brings its inputs to where it computes, wherever they come from. What is the same there and here takes its
functions from `namespace`. torch is imported only where there is a device.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Array = TypeVar("Array", "NDArray[Any]", "Tensor")
"""Either of them, the same throughout a function."""

_ALIGNMENT = 256
"""Bytes; the hits of a later event of a pack begin anywhere."""

_copied = 0


def find_device(kind: str, number: int) -> str | None:
    """Return torch's name of the device of a server's instance.

    Parameters
    ----------
    kind, number
        What Triton says of the instance: "GPU" or "CPU", and which GPU.

    Returns
    -------
    str or None
        "cuda:0", say; None for the host: of another kind, or where torch is missing or does not see the GPU.
    """
    if kind != "GPU":
        return None
    try:
        import torch
    except ModuleNotFoundError:
        return None
    # The count alone is the driver's: torch may be built for none, or for a newer one.
    return f"cuda:{number}" if torch.cuda.is_available() and number < torch.cuda.device_count() else None


def namespace(array: NDArray[Any] | Tensor) -> Any:
    """Return the library, numpy or torch, whose functions take this array."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def to_host(array: NDArray[Any] | Tensor) -> NDArray[Any]:
    """Return the array itself where it is the host's, and a counted copy of a tensor, whichever device it is on."""
    global _copied  # of this process, as the server's metric is of a step, which is a process
    if isinstance(array, np.ndarray):
        return array
    copy: NDArray[Any] = array.cpu().numpy()
    _copied += copy.nbytes
    return copy


def copied_to_host() -> int:
    """Return the bytes that `to_host` has copied in this process so far."""
    return _copied


def lacks_memory(error: Exception) -> bool:
    """Tell whether an error is that there was no memory left, on the host or on a device."""
    # Torch's and CuPy's classes have one name and no common base; ONNX Runtime's says so in its message alone.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "Failed to allocate memory" in str(error)
    )


def give_back_memory() -> None:
    """Give a device the memory back that torch keeps for what comes next: a step of a server is not alone on its GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def to_device(array: NDArray[Any] | Tensor, device: str) -> Tensor:
    """Return the tensor itself where it is on the device already, or a copy there."""
    import torch

    if isinstance(array, np.ndarray):
        # Of a read-only array torch would warn, were it not copied.
        return torch.tensor(np.ascontiguousarray(array), device=device)
    return array.to(device)


def addressable(tensor: Tensor) -> Tensor:
    """Return the tensor itself where a library can take its address, or a copy: whole, and aligned as TensorRT asks for."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


@overload
def contiguous(array: NDArray[Any]) -> NDArray[Any]: ...
@overload
def contiguous(array: Tensor) -> Tensor: ...
def contiguous(array: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor:
    """Return the array with its rows one after the other in memory."""
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()
