"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def describe_machine() -> dict[str, str | int]:
    """Return the processor's name and the cores that this process may use."""
    return {"cpu": _processor(), "cores": len(os.sched_getaffinity(0))}


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
