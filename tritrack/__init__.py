"""Graph-neural-network track finding, served by NVIDIA Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritrack.service.client import TrackFinder

__version__ = "0.1.0"

__all__ = ["TrackFinder", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the server's steps import tritrack too, and want no gRPC client.
    if name == "TrackFinder":
        from tritrack.service.client import TrackFinder

        return TrackFinder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
