"""How the process holds its memory."""

from __future__ import annotations

import ctypes


def keep_memory() -> None:
    """Have glibc keep the memory that is freed.

    Each step frees and wants hundreds of MB; asking the system for them anew took a quarter of the time, and more
    where whole events are run.
    """
    m_trim_threshold, m_mmap_threshold, gigabyte = -1, -3, 1 << 30
    libc = ctypes.CDLL(None)
    libc.mallopt(m_trim_threshold, 2 * gigabyte - 1)
    libc.mallopt(m_mmap_threshold, gigabyte)
