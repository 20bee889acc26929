"""Shared-memory regions of the server's Python backend, and who owns them.

Every server gets a prefix of its own for its regions and a lock file of that name beside them. The lock is
handed down to the server and its stubs and is free when the last of them has ended, so what a dead
server left behind can be told from what a living one uses, across containers too.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

SHM = Path("/dev/shm")
PREFIX = "tritrack_"
LOCK_SUFFIX = ".lock"


class Regions:
    """The shared-memory regions of one server, until :meth:`close`.

    Attributes
    ----------
    prefix
        What the server's region names start with.
    lock
        File descriptor to hand down to the server.
    """

    def __init__(self) -> None:
        self.prefix = f"{PREFIX}{uuid.uuid4().hex}_"
        self._path = SHM / f"{self.prefix}{LOCK_SUFFIX}"
        self.lock = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_SH)

    def close(self) -> None:
        """Remove the regions and the lock file; call it when the server has ended."""
        _remove(self.prefix)
        self._path.unlink(missing_ok=True)
        os.close(self.lock)


def remove_leftovers() -> list[str]:
    """Remove the regions of servers that have died without doing so; return the names of the files."""
    removed = []
    for path in SHM.glob(f"{PREFIX}*{LOCK_SUFFIX}"):
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its server lives
            continue
        else:
            removed += _remove(path.name.removesuffix(LOCK_SUFFIX))
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)
    return removed


def free_bytes() -> int:
    """Return how much shared memory is free."""
    usage = os.statvfs(SHM)
    return usage.f_bavail * usage.f_frsize


def _remove(prefix: str) -> list[str]:
    paths = [path for path in SHM.glob(f"{prefix}*") if not path.name.endswith(LOCK_SUFFIX)]
    for path in paths:
        path.unlink(missing_ok=True)
    return [path.name for path in paths]
