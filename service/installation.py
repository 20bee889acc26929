"""Find a tritonserver, and check what it needs before it starts."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tritrack.ensemble_repo.plan import ADAPTER_FILE, BACKEND, BACKEND_FILE
from tritrack.service.errors import ServerStartError

WHEEL = "nvidia-pytriton"
CONTAINER = Path("/opt/tritonserver")
WHEEL_GLIBC = (2, 35)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
STUB = "triton_python_backend_stub"
DRIVER = "libcuda.so.1"

MALLOC = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "arena_max=1", f"mmap_threshold={1 << 32}", f"trim_threshold={1 << 34}")
)
"""How the C library gives memory: in large pages; from one heap, since each thread's own would keep what that thread once
needed; and what is freed, hundreds of MB an event, stays for the next one, because fresh pages are dear."""

SETTINGS = {
    # ONNX Runtime reports its use to its maker unless it is told not to; what runs here is the user's.
    "ORT_DISABLE_TELEMETRY": "1",
    "GLIBC_TUNABLES": MALLOC,
    # The threads of compiled loops spin after each for the next one, and take the cores from the other steps: with two
    # threads a third of the throughput.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Of the environment of every server, where the user's does not say otherwise; of an image, too (deploy/Dockerfile)."""


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A tritonserver on this machine.

    Attributes
    ----------
    binary
        The executable.
    source
        Where it was found, in words.
    """

    binary: Path
    source: str

    @property
    def is_wheel(self) -> bool:
        """Whether it is the server of the nvidia-pytriton wheel, whose parts need to be put together."""
        return (self._root / "python_backend_stubs").is_dir()

    def check(self) -> None:
        """Check what the server needs of this machine and this Python.

        Only the wheel's server runs its steps in this Python; another brings or finds its own.

        Raises
        ------
        ServerStartError
            Names what is missing and how to get it.
        """
        if not self.is_wheel:
            return
        _check_glibc()
        _check_numpy()
        find_libpython()
        if not self._stub.is_file():
            raise ServerStartError(f"{WHEEL} has no Python stub for Python {PYTHON}: use Python 3.11 or 3.12")

    def arguments(self, work: Path) -> list[str]:
        """Return the arguments that this installation needs; puts its parts together in ``work``."""
        if not self.is_wheel:
            return []
        backend = work / "backends" / "python"
        backend.mkdir(parents=True)
        for path in [*(self._root / "backends" / "python").glob("*.*"), self._stub]:
            # Triton refuses a Python-based backend whose library is a link out of its folder.
            shutil.copy(path, backend / path.name)
        for other in (self._root / "backends").iterdir():
            # The wheel has none; whoever adds a native one to a copy of it has it served.
            if other.name not in ("python", BACKEND):
                (work / "backends" / other.name).symlink_to(other)
        fused = work / "backends" / BACKEND
        fused.mkdir()
        (fused / ADAPTER_FILE).symlink_to(BACKEND_FILE)
        # A folder with these libraries alone: LD_LIBRARY_PATH reaches everything that the stub loads.
        (work / "lib").mkdir()
        (work / "lib" / LIBPYTHON).symlink_to(find_libpython())
        if (driver := find_driver()) is not None:
            # The stub asks for the name that comes with the headers; where they are not, a step ends with its first
            # output on a GPU.
            (work / "lib" / "libcuda.so").symlink_to(driver)
        return [f"--backend-directory={work / 'backends'}"]

    def environment(self, work: Path) -> dict[str, str]:
        """Return the environment of the server.

        The stub's Python looks for ``python3`` on the PATH and becomes that one, so that it has the
        packages of this one's environment.
        """
        environment = SETTINGS | os.environ
        if self.is_wheel:
            libraries = [work / "lib", self._root.parents[1] / "nvidia_pytriton.libs"]
            paths = [*map(str, libraries), *_split(environment.get("LD_LIBRARY_PATH"))]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
            programs = [str(Path(sys.executable).parent), *_split(environment.get("PATH"))]
            environment["PATH"] = os.pathsep.join(programs)
        return environment

    @property
    def _root(self) -> Path:
        return self.binary.resolve().parents[1]

    @property
    def _stub(self) -> Path:
        return self._root / "python_backend_stubs" / PYTHON / STUB


def find_installation(executable: Path | None = None) -> Installation:
    """Find a tritonserver: the one named, in /opt/tritonserver, on the PATH, or in the wheel, in this order.

    Parameters
    ----------
    executable
        A tritonserver, or the folder that holds ``bin/tritonserver``.

    Raises
    ------
    ServerStartError
        Where there is none.
    """
    if executable is not None:
        binary = executable / "bin" / "tritonserver" if executable.is_dir() else executable
        if not (binary.is_file() and os.access(binary, os.X_OK)):
            raise ServerStartError(f"{binary}: no tritonserver there")
        return Installation(binary=binary, source="the path given")
    if (binary := CONTAINER / "bin" / "tritonserver").is_file():
        return Installation(binary=binary, source=str(CONTAINER))
    if on_path := shutil.which("tritonserver"):
        return Installation(binary=Path(on_path), source="PATH")
    try:
        return wheel_installation()
    except ServerStartError as error:
        raise ServerStartError(f"no tritonserver in {CONTAINER} or on the PATH; {error}") from None


def wheel_installation() -> Installation:
    """Return the wheel's tritonserver, whose steps run in this Python.

    Raises
    ------
    ServerStartError
        Where the wheel is not installed.
    """
    try:
        wheel = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise ServerStartError(
            f"the {WHEEL} wheel is not installed: in tritrack's folder, pip install '.[server]'"
        ) from None
    binary = Path(str(wheel.locate_file("pytriton/tritonserver/bin/tritonserver")))
    return Installation(binary=binary, source=f"the {WHEEL} {wheel.version} wheel")


def find_libpython() -> Path | str:
    """Find the shared library of this Python, which the wheel's stub links.

    Raises
    ------
    ServerStartError
        Says how to get it.
    """
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (path := Path(folder) / LIBPYTHON).is_file():
            return path
    if ctypes.util.find_library(f"python{PYTHON}") != LIBPYTHON:
        raise ServerStartError(
            f"the server's Python stub needs {LIBPYTHON}, which this Python does not bring: on Debian and Ubuntu "
            f"apt install libpython{PYTHON}, elsewhere use a Python built with --enable-shared"
        )
    return LIBPYTHON


def find_driver() -> Path | None:
    """Find the library of NVIDIA's driver as the loader does; None where it cannot be loaded."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return None
    # The loader does not tell where it found it, the system does.
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line[line.find("/") :])
        if path.name.startswith("libcuda.so"):
            return path
    return None


def _check_glibc() -> None:
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < WHEEL_GLIBC:
        wanted = ".".join(map(str, WHEEL_GLIBC))
        raise ServerStartError(
            f"the {WHEEL} wheel needs glibc {wanted} (Debian 12, Ubuntu 22.04), this system has "
            f"{name} {version}: use NVIDIA's Triton container here"
        )


def _check_numpy() -> None:
    version = metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise ServerStartError(
            f"NumPy {version} is installed, under which the Python stub of the {WHEEL} wheel hands on empty "
            "outputs: pip install 'numpy<2'"
        )


def _split(paths: str | None) -> list[str]:
    return paths.split(os.pathsep) if paths else []
