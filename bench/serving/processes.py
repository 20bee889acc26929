"""What running processes take: processor time, and memory."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

SHM = "/dev/shm/"
_LIBC = ctypes.CDLL(None)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it; of a server its steps are children."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of all their threads so far, those that ended included, to the nanosecond.

    The counts that psutil reads go in steps of 10 ms: as long as what a service may add to an event.
    """
    return sum(time.clock_gettime(_clock_of(pid)) for pid in pids)


def _clock_of(pid: int) -> int:
    clock = ctypes.c_int()
    error = _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, f"process {pid} has no clock")
    return clock.value


def own_memory(process: psutil.Process) -> int:
    """Return the bytes of memory that a process alone has, and did not read from a file.

    A share of the pages of a library (PSS) would not do: it changes when others that use the library come and go.
    """
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(kilobytes) * 1024


def resident_memory(process: psutil.Process) -> int:
    """Return the bytes of all pages that a process holds in memory, shared or not (RSS)."""
    return int(process.memory_info().rss)


def shared_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return what the processes' regions in `/dev/shm` take, each region once: the pages that were written to."""
    paths = {
        entry.path for process in processes for entry in process.memory_maps() if entry.path.startswith(SHM)
    }
    return sum(Path(path).stat().st_blocks * 512 for path in paths if Path(path).exists())
