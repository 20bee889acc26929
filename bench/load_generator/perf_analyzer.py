"""Events as an input file of NVIDIA's perf_analyzer, so that another generator can put the same load on a server."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from tritrack.stages.contract import HITS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray


def write_input(events: Iterable[NDArray[Any]], path: Path) -> None:
    """Write events as perf_analyzer's ``--input-data`` takes them: an entry each, which it sends in turns.

    Parameters
    ----------
    events
        Hits, float32 [n_hits, n_columns].
    path
        JSON file: ``{"data": [{"HITS": {"content": {"b64": ...}, "shape": [n_hits, n_columns]}}, ...]}``, the
        numbers in rows, little-endian. The optional tensor EVENT_OFFSETS is left out.
    """
    entries = [
        {
            HITS.name: {
                "content": {"b64": base64.b64encode(_bytes(hits)).decode()},
                "shape": list(hits.shape),
            }
        }
        for hits in events
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode({"data": entries}) + b"\n")


def _bytes(hits: NDArray[Any]) -> bytes:
    return hits.astype(HITS.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
