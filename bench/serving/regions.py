"""Memory that a client shares with a server: of the host, or of a GPU."""

from __future__ import annotations

import ctypes
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tritonclient.utils import InferenceServerException, shared_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tritonclient.grpc import InferenceServerClient

DEVICE = 0
"""The GPU whose memory is shared."""


class NoRegionError(RuntimeError):
    """There is no such memory here; the message says what is missing."""


class Region(Protocol):
    """A region that a server knows by its name."""

    name: str

    def write(self, array: NDArray[Any]) -> None:
        """Write an array to its beginning."""

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copy an array from its beginning."""

    def close(self) -> None:
        """Take it from the server and remove it."""


class HostRegion:
    """A region in `/dev/shm`.

    Parameters
    ----------
    client
        The server's, which is told of it.
    size
        Bytes.
    """

    def __init__(self, client: InferenceServerClient, *, size: int) -> None:
        self.name = f"bench-{uuid.uuid4().hex}"
        with ExitStack() as stack:
            self._handle = shared_memory.create_shared_memory_region(
                self.name, self.name, size, create_only=True
            )
            stack.callback(shared_memory.destroy_shared_memory_region, self._handle)
            client.register_system_shared_memory(self.name, f"/{self.name}", size)
            stack.callback(client.unregister_system_shared_memory, self.name)
            self._stack = stack.pop_all()

    def write(self, array: NDArray[Any]) -> None:
        """Write an array to its beginning."""
        shared_memory.set_shared_memory_region(self._handle, [array])

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copy an array from its beginning."""
        return np.array(shared_memory.get_contents_as_numpy(self._handle, dtype, shape))

    def close(self) -> None:
        """Take it from the server and remove it."""
        self._stack.close()


class DeviceRegion:
    """A region of a GPU's memory.

    Parameters
    ----------
    client
        The server's, which is told of it.
    size
        Bytes.

    Raises
    ------
    NoRegionError
        Where there is no driver, or no package that speaks to it; and where GPU or server refuse such memory.
    """

    def __init__(self, client: InferenceServerClient, *, size: int) -> None:
        self.name = f"bench-{uuid.uuid4().hex}"
        try:
            ctypes.CDLL("libcuda.so.1")
            from tritonclient.utils import cuda_shared_memory
        except OSError:
            raise NoRegionError("no NVIDIA driver here (libcuda.so.1)") from None
        except RuntimeError:  # what it makes of the missing module
            raise NoRegionError("the package cuda-python is not installed") from None
        self._memory = cuda_shared_memory
        try:
            with ExitStack() as stack:
                self._handle = cuda_shared_memory.create_shared_memory_region(self.name, size, DEVICE)
                stack.callback(cuda_shared_memory.destroy_shared_memory_region, self._handle)
                handle = cuda_shared_memory.get_raw_handle(self._handle)
                client.register_cuda_shared_memory(self.name, handle, DEVICE, size)
                stack.callback(client.unregister_cuda_shared_memory, self.name)
                # What fails only here would end a measurement in its first round.
                self.write(np.zeros(1, np.uint8))
                self.read((1,), np.dtype(np.uint8))
                self._stack = stack.pop_all()
        except (cuda_shared_memory.CudaSharedMemoryException, InferenceServerException) as error:
            why = f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
            raise NoRegionError(f"memory of the GPU cannot be shared with the server: {why}") from None

    def write(self, array: NDArray[Any]) -> None:
        """Write an array to its beginning."""
        self._memory.set_shared_memory_region(self._handle, [array])

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copy an array from its beginning."""
        return np.array(self._memory.get_contents_as_numpy(self._handle, dtype, list(shape)))

    def close(self) -> None:
        """Take it from the server and remove it."""
        self._stack.close()
