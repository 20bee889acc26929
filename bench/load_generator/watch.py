"""What a server on this machine takes while it is under load: processor time and memory, and of the GPUs.

psutil and NVML's Python bindings (``pynvml``) are optional: what is missing is said, not guessed.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

PERIOD = 0.5
"""Least seconds between two looks."""

SHARE = 0.05
"""Most of a core that looking may take: a server of many processes is looked at less often."""


@dataclass(frozen=True, kw_only=True)
class ProcessUse:
    """A server's processes over a run.

    Attributes
    ----------
    n_processes
        The server and its children.
    cores
        Processor time of all of them by wall time: 1 is one core busy throughout.
    peak_bytes
        Most memory of all of them at once, in bytes, pages that they share counted once: the most of looks at
        start and end and every 0.5 s or more.
    """

    n_processes: int
    cores: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """One GPU over a run, whoever used it.

    Attributes
    ----------
    name
        Name of the device.
    utilisation
        Share of the time in which a kernel ran, 0 to 1: the mean of the looks.
    peak_bytes
        Most memory in use, in bytes.
    """

    name: str
    utilisation: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a server took of its machine.

    Attributes
    ----------
    process
        Its processes; None where they could not be watched.
    gpus
        The machine's GPUs.
    absent
        A sentence for everything that is not here.
    """

    process: ProcessUse | None
    gpus: tuple[GpuUse, ...]
    absent: tuple[str, ...]


class Watch:
    """Looks at a server from time to time, in a thread of its own; use as a context manager, then read :attr:`use`.

    Parameters
    ----------
    pid
        Process id of the server on this machine; None where it is elsewhere, or not known.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._absent: list[str] = []
        self._processes: _Processes | None = None
        self._gpus: _Gpus | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def use(self) -> Use:
        """What was seen."""
        return Use(
            process=None if self._processes is None else self._processes.use(),
            gpus=() if self._gpus is None else self._gpus.use(),
            absent=tuple(self._absent),
        )

    def __enter__(self) -> Self:
        if self._pid is None:
            self._absent.append("the server's processor, memory and GPU: its process id was not given")
            return self
        try:
            self._processes = _Processes(self._pid)
        except ModuleNotFoundError:
            self._absent.append("the server's processor and memory: psutil is not installed")
        except LookupError as error:
            self._absent.append(f"the server's processor and memory: {error}")
        try:
            self._gpus = _Gpus()
        except (ModuleNotFoundError, LookupError) as error:
            self._absent.append(f"GPUs: {error}")
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is not None:
            self._stop.set()
            self._thread.join()
            self._look()
        if self._gpus is not None:
            with suppress(Exception):
                self._gpus.close()

    def _run(self) -> None:
        wait = PERIOD
        while not self._stop.wait(wait):
            before = time.thread_time()
            self._look()
            wait = max(PERIOD, (time.thread_time() - before) / SHARE)

    def _look(self) -> None:
        """Look at what is still watched; what cannot be is said, and the load goes on."""
        if (processes := self._processes) is not None:
            try:
                processes.look()
            except Exception as error:  # noqa: BLE001 (in a thread it would be lost)
                self._processes = None
                self._absent.append(f"the server's processor and memory: {type(error).__name__}: {error}")
        if (gpus := self._gpus) is not None:
            try:
                gpus.look()
            except Exception as error:  # noqa: BLE001 (NVML tells no utilisation of a GPU in parts, MIG)
                self._gpus = None
                self._absent.append(f"GPUs: {type(error).__name__}: {error}")
                with suppress(Exception):
                    gpus.close()


class _Processes:
    """A process and all that it started (raises LookupError where it is not there)."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._gone = (psutil.NoSuchProcess, psutil.ZombieProcess)
        try:
            self._root = psutil.Process(pid)
            self._root.memory_full_info()
        except psutil.NoSuchProcess:
            raise LookupError(f"no process {pid} on this machine") from None
        except psutil.AccessDenied:
            raise LookupError(f"process {pid} belongs to somebody else") from None
        self._at_start = self._times()
        self._start = time.perf_counter()
        self._end, self._now = self._start, dict(self._at_start)
        self._peak = 0

    def look(self) -> None:
        memory = 0
        for process in self._all():
            try:
                memory += process.memory_full_info().pss
            except self._gone:
                continue
        self._peak = max(self._peak, memory)
        # What a process that ended has used stays counted.
        self._now |= self._times()
        self._end = time.perf_counter()

    def use(self) -> ProcessUse:
        spent = sum(self._now.values()) - sum(self._at_start.values())
        return ProcessUse(
            n_processes=len(self._now), cores=spent / (self._end - self._start), peak_bytes=self._peak
        )

    def _all(self) -> list[Any]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except self._gone:
            return []

    def _times(self) -> dict[int, float]:
        """Return the processor seconds of each process so far, by id."""
        times = {}
        for process in self._all():
            try:
                spent = process.cpu_times()
            except self._gone:
                continue
            times[process.pid] = spent.user + spent.system
        return times


class _Gpus:
    """The GPUs of this machine (raises LookupError where NVML finds none)."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ModuleNotFoundError:
            raise ModuleNotFoundError("pynvml is not installed") from None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            self._names = [str(pynvml.nvmlDeviceGetName(device)) for device in self._devices]
        except pynvml.NVMLError as error:
            with suppress(pynvml.NVMLError):  # where it did not start there is nothing to end
                pynvml.nvmlShutdown()
            raise LookupError(f"NVML: {error}") from None
        self._utilisation: list[list[float]] = [[] for _ in self._devices]
        self._peak = [0] * len(self._devices)

    def look(self) -> None:
        for i, device in enumerate(self._devices):
            self._utilisation[i].append(self._nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
            self._peak[i] = max(self._peak[i], self._nvml.nvmlDeviceGetMemoryInfo(device).used)

    def use(self) -> tuple[GpuUse, ...]:
        return tuple(
            GpuUse(name=name, utilisation=sum(looks) / len(looks), peak_bytes=int(peak))
            for name, looks, peak in zip(self._names, self._utilisation, self._peak, strict=True)
        )

    def close(self) -> None:
        self._nvml.nvmlShutdown()
