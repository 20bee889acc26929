"""The threads that a measurement in this process computes with."""

from __future__ import annotations

import torch

from tritrack.stages.stage import set_compiled_threads


def set_threads(n: int) -> None:
    """Set the threads of torch, and of the compiled loops in this thread.

    Raises
    ------
    RuntimeError
        Where torch has other ones: what is measured would not be what the result says.
    """
    # Numba first: its OpenMP layer sets the library that torch shares to all cores, once, when it starts.
    set_compiled_threads(n)
    torch.set_num_threads(n)
    require_threads(n)


def require_threads(n: int) -> None:
    """Refuse to go on where torch has other threads (raises RuntimeError)."""
    if torch.get_num_threads() != n:
        raise RuntimeError(f"torch has {torch.get_num_threads()} threads, {n} wanted")
