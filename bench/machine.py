"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from tritrack.failures import UsageError
from tritrack.stages.contract import GNN_STAGE
from tritrack.stages.placement import find_device
from tritrack.stages.plan_file import find_gpu, plan_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tritrack.ensemble_repo.plan import DeviceKind
    from tritrack.stages.plan_file import Gpu


def describe_machine() -> dict[str, str | int]:
    """Return the processor's name and the cores that this process may use."""
    return {"cpu": _processor(), "cores": len(os.sched_getaffinity(0))}


def gpu_of(device: DeviceKind, *, engines: Path) -> Gpu | None:
    """Return the GPU that a measurement of engines for a device runs on, None for the processor.

    Raises
    ------
    UsageError
        See `gpu_for`.
    """
    return None if device == "cpu" else gpu_for(engines, asked="--device gpu")


def gpu_for(engines: Path, *, asked: str) -> Gpu:
    """Return the GPU that engines run on.

    Parameters
    ----------
    engines
        Their folder.
    asked
        What asks for the GPU, in words.

    Raises
    ------
    UsageError
        Where there is none, or torch, in whose memory the chain computes there, cannot use it, or the networks would
        run on the host.
    """
    gpu = find_gpu()
    if gpu is None or find_device("GPU", 0) is None:
        raise UsageError(f"{asked}: there is no GPU here, or torch cannot use it")
    if not (engines / plan_file(GNN_STAGE.name)).exists():
        from tritrack.stages.engine import cuda_is_there  # here: a client has no ONNX Runtime

        if not cuda_is_there():
            raise UsageError(
                f"{asked}: the networks of {engines} would run on the host: they are not TensorRT's, and this ONNX "
                "Runtime has no CUDA (onnxruntime-gpu)"
            )
    return gpu


def describe_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of installed packages (raises PackageNotFoundError)."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    # The same module may come from a package for GPUs: onnxruntime-gpu.
    with suppress(PackageNotFoundError):
        return version(f"{package}-gpu")
    return version(package)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
