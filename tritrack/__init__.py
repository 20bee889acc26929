"""Graph-neural-network track finding, served by NVIDIA Triton."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritrack.service.access import Access
    from tritrack.service.aio import AsyncTrackFinder
    from tritrack.service.client import TrackFinder
    from tritrack.service.errors import (
        AccessError,
        EventRefusedError,
        MismatchError,
        ModelNotFoundError,
        NoMemoryError,
        RequestTimeoutError,
        ServiceError,
        UnavailableError,
    )

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AccessError",
    "AsyncTrackFinder",
    "EventRefusedError",
    "MismatchError",
    "ModelNotFoundError",
    "NoMemoryError",
    "RequestTimeoutError",
    "ServiceError",
    "TrackFinder",
    "UnavailableError",
    "__version__",
]

_ELSEWHERE = {
    "Access": "tritrack.service.access",
    "AsyncTrackFinder": "tritrack.service.aio",
    "TrackFinder": "tritrack.service.client",
}
"""Where what is no error is; the errors are in a module of their own."""


def __getattr__(name: str) -> Any:
    # Imported when asked for: the server's steps import tritrack too, and want no gRPC client.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "tritrack.service.errors")), name)
