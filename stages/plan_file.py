"""What a TensorRT engine was built for, and whether that is what this machine has.

An engine (NVIDIA calls the file a plan) runs on the GPU model and in the TensorRT release that built it, and
nowhere else. What these were stands in a JSON file beside it, so that a wrong one is told before a server
loads it. Neither TensorRT's Python package nor torch is needed here.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tritrack.stages.card import CardError, Precision

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of cuDeviceGetAttribute
_NAME_BYTES = 256


def plan_file(stage: str) -> str:
    """Name of the TensorRT engine of a stage's network; it lies beside the card."""
    return f"{stage}.plan"


def facts_file(plan: str) -> str:
    """Name of the JSON file beside an engine."""
    return f"{plan}.json"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU.

    Attributes
    ----------
    name
        Name of the model, as CUDA gives it.
    compute_capability
        "9.0", say.
    """

    name: str
    compute_capability: str


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Shapes of one input that an engine takes, and the one that it is fastest at."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What a TensorRT engine was built from and for.

    Attributes
    ----------
    tensorrt
        Version of TensorRT.
    gpu
        The GPU that it was built on.
    precision
        What its inner layers compute in.
    profile
        By input.
    onnx_sha256
        Hash of the ONNX file that it was built from.
    card_sha256
        Hash of the model card.
    """

    tensorrt: str
    gpu: Gpu
    precision: Precision
    profile: dict[str, Sizes]
    onnx_sha256: str
    card_sha256: str

    def to_json(self) -> bytes:
        """Return the facts as JSON."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"


def read_facts(plan: Path) -> PlanFacts:
    """Read what an engine was built for (raises CardError)."""
    path = plan.with_name(facts_file(plan.name))
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanFacts)
    except FileNotFoundError:
        raise CardError(f"{path}: missing, it says what {plan.name} was built for") from None
    except msgspec.MsgspecError as error:
        raise CardError(f"{path}: {error}") from None


def check_plan(plan: Path) -> PlanFacts:
    """Check that an engine was built for this machine's GPU and TensorRT.

    Raises
    ------
    CardError
        Says what it was built for and what is here.
    """
    facts = read_facts(plan)
    release = facts.tensorrt.split(".")[:3]
    found = find_libnvinfer(int(release[0]))
    if found is None:
        raise CardError(f"{plan}: built by TensorRT {facts.tensorrt}, libnvinfer.so.{release[0]} is not here")
    if found != ".".join(release):
        raise CardError(
            f"{plan}: built by TensorRT {facts.tensorrt}, here is {found}: export it again with this one"
        )
    gpu = find_gpu()
    if gpu is None:
        raise CardError(f"{plan}: built for an {facts.gpu.name}, no GPU is here")
    if gpu != facts.gpu:
        raise CardError(
            f"{plan}: built for an {facts.gpu.name} (compute capability {facts.gpu.compute_capability}), here is "
            f"an {gpu.name} ({gpu.compute_capability}): export it again on this one"
        )
    return facts


def find_gpu() -> Gpu | None:
    """Return the GPU that CUDA takes where none is named; None without a driver or a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    )
    if failed:
        return None
    return Gpu(name=name.value.decode(), compute_capability=f"{major.value}.{minor.value}")


def find_libnvinfer(major: int) -> str | None:
    """Return "major.minor.patch" of the TensorRT library that is loaded here, None where there is none."""
    file = f"libnvinfer.so.{major}"
    # The package from the index keeps it in a folder of its own, where only Python finds it.
    package = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(folder) for folder in (package.submodule_search_locations or ())] if package else []
    for path in (file, *(folder / file for folder in folders)):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        break
    else:
        return None
    # From TensorRT 10 on: 100 numbers for minor and for patch.
    number: int = library.getInferLibVersion()
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
