"""The tensors that cross a stage boundary, specified once.

Everything that names a tensor, a dtype or a shape (the checks at stage entry, the ONNX inputs and outputs,
the server's model configurations, the client, the documentation) derives it from here. NumPy only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tritrack.stages.placement import namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

CONTRACT_VERSION = 2
"""Raised whenever a tensor's name, dtype, shape or meaning changes."""

NO_TRACK = -1
"""The label of a hit that is on no track."""

MIN_TRACK_HITS = 3
"""Groups of fewer hits than this are no tracks: a helix through the beam line needs three points."""

NO_MEMORY = "no memory is left for this event"
"""In the sentence of an UNAVAILABLE answer whose reason is the event: others may have room."""

MAX_COORDINATE = 1e5
"""Largest x, y, z of a hit in mm: no detector is 100 m long, and metres sent as micrometres are."""


class ContractError(ValueError):
    """An input that breaks the contract; the message names the tensor and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of the contract.

    Attributes
    ----------
    name
        Name on the wire.
    dtype
        NumPy dtype.
    dims
        One entry an axis: a fixed size, or the name of a size (``n_hits``, ``n_columns``, ``n_edges``, ``n_tracks``, ``d``).
    unit
        Unit of the values; "1" where they have none.
    meaning
        One sentence.
    optional
        Whether a request may leave it out.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    unit: str
    meaning: str
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One of the five stages.

    Attributes
    ----------
    name
        Name of the stage.
    inputs, outputs
        The tensors that the stage takes and gives; of several events in one request, every stage takes
        ``EVENT_OFFSETS`` besides.
    engine
        What the stage's network alone gives; empty for a stage without a network. Where it differs from
        ``outputs``, a step outside the network follows it.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: tuple[TensorSpec, ...] = ()


HITS = TensorSpec(
    name="HITS",
    dtype=np.dtype(np.float32),
    dims=("n_hits", "n_columns"),
    unit="mm",
    meaning="x, y, z of each hit in the global frame; the model card names the columns",
)
EVENT_OFFSETS = TensorSpec(
    name="EVENT_OFFSETS",
    dtype=np.dtype(np.int64),
    dims=("n_events + 1",),
    unit="1",
    meaning="of a pack: event i has the hits from entry i up to entry i + 1; without it, all hits are one event",
    optional=True,
)
EMBEDDING = TensorSpec(
    name="EMBEDDING",
    dtype=np.dtype(np.float32),
    dims=("n_hits", "d"),
    unit="1",
    meaning="learned space in which neighbours tend to be consecutive hits of one particle",
)
# INT32 halves the largest tensor of the chain against INT64 (9 MB instead of 18 at pile-up 200), and
# no event comes near 2^31 hits.
EDGE_INDEX = TensorSpec(
    name="EDGE_INDEX",
    dtype=np.dtype(np.int32),
    dims=(2, "n_edges"),
    unit="1",
    meaning="candidate pairs of hits: inner hit first, each pair once, sorted by (inner, outer) index",
)
PAIR_SCORE = TensorSpec(
    name="PAIR_SCORE",
    dtype=np.dtype(np.float32),
    dims=("n_edges",),
    unit="1",
    meaning="the filter network's probability that a pair is consecutive, or with one hit between, on one particle",
)
EDGE_SCORE = TensorSpec(
    name="EDGE_SCORE",
    dtype=np.dtype(np.float32),
    dims=("n_edges",),
    unit="1",
    meaning="the GNN's probability that a pair is consecutive, or with one hit between, on one particle",
)
TRACK_LABEL = TensorSpec(
    name="TRACK_LABEL",
    dtype=np.dtype(np.int64),
    dims=("n_hits",),
    unit="1",
    meaning="track number of each hit, counted from 0 by each track's first hit; -1 where a hit is on no track",
)
FITTED = TensorSpec(
    name="FITTED",
    dtype=np.dtype(np.float32),
    dims=("n_tracks", 8),
    unit="GeV, mm",
    meaning="helix of each track, row t of label t: pt, phi, eta, d0, z0, charge, chi2, ndf; NaN where none fits",
)

EMBEDDING_STAGE = StageSpec(name="embedding", inputs=(HITS,), engine=(EMBEDDING,), outputs=(EMBEDDING,))
GRAPH_STAGE = StageSpec(name="graph", inputs=(HITS, EMBEDDING), outputs=(EDGE_INDEX,))
FILTER_STAGE = StageSpec(
    name="filter", inputs=(HITS, EDGE_INDEX), engine=(PAIR_SCORE,), outputs=(EDGE_INDEX,)
)
GNN_STAGE = StageSpec(name="gnn", inputs=(HITS, EDGE_INDEX), engine=(EDGE_SCORE,), outputs=(EDGE_SCORE,))
LABELLING_STAGE = StageSpec(name="labelling", inputs=(HITS, EDGE_INDEX, EDGE_SCORE), outputs=(TRACK_LABEL,))

STAGES = (EMBEDDING_STAGE, GRAPH_STAGE, FILTER_STAGE, GNN_STAGE, LABELLING_STAGE)
"""The chain, in order."""

FIT_STEP = StageSpec(name="track_fit", inputs=(HITS, TRACK_LABEL), outputs=(FITTED,))
"""Follows the labelling where a client asks for it."""

SCORE_STEP = StageSpec(
    name="filter", inputs=FILTER_STAGE.inputs, engine=FILTER_STAGE.engine, outputs=FILTER_STAGE.engine
)
CUT_STEP = StageSpec(name="cut", inputs=(EDGE_INDEX, PAIR_SCORE), outputs=(EDGE_INDEX,))

NATIVE_STEPS = (EMBEDDING_STAGE, GRAPH_STAGE, SCORE_STEP, CUT_STEP, GNN_STAGE, LABELLING_STAGE)
"""The chain where a server runs the networks itself: the filter's cut, which no engine makes, is a step of its own."""


def check_tensor(array: NDArray[Any] | Tensor, spec: TensorSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Check one array against its specification.

    Parameters
    ----------
    array
        The array, or a tensor of torch's.
    spec
        Its specification.
    sizes
        Sizes that are already known, by name; a dimension of that name must have that size.

    Returns
    -------
    dict
        ``sizes`` with the sizes that this array adds.

    Raises
    ------
    ContractError
        On a wrong dtype, number of axes or size.
    """
    wanted = f"{spec.dtype} [{', '.join(str(d) for d in spec.dims)}]"
    if (dtype := str(array.dtype).removeprefix("torch.")) != str(spec.dtype):
        raise ContractError(f"{spec.name}: dtype is {dtype}, the contract wants {wanted}")
    if array.ndim != len(spec.dims):
        raise ContractError(f"{spec.name}: shape is {list(array.shape)}, the contract wants {wanted}")
    known = dict(sizes)
    for axis, (dim, size) in enumerate(zip(spec.dims, array.shape, strict=True)):
        expected = dim if isinstance(dim, int) else known.setdefault(dim, size)
        if size != expected:
            name = f" ({dim})" if isinstance(dim, str) else ""
            raise ContractError(
                f"{spec.name}: axis {axis}{name} is {size} long, {expected} wanted; the contract says {wanted}"
            )
    return known


def check_finite(array: Any, spec: TensorSpec) -> None:
    """Check what a network gave: a score that is no number reaches no cut, and would be dropped without a word.

    Raises
    ------
    ContractError
        Where an entry is not finite.
    """
    if not namespace(array).isfinite(array).all():
        raise ContractError(
            f"{spec.name}: the network overflows on these hits; are their coordinates in mm, in the detector?"
        )


def check_hits(
    hits: NDArray[Any], *, n_columns: int, max_hits: int, event_offsets: NDArray[Any] | None = None
) -> None:
    """Check what a client sent: dtype, shape, number of hits and finite values.

    Parameters
    ----------
    hits
        HITS as received.
    n_columns
        Columns that the model wants.
    max_hits
        The model's limit; of a pack, for all of its events together.
    event_offsets
        EVENT_OFFSETS as received; None for one event.

    Raises
    ------
    ContractError
        Names the limit and the count, or the first ten rows that are not finite or not in any detector; of a
        pack, the event as well.
    """
    check_tensor(hits, HITS, {"n_columns": n_columns})
    if event_offsets is None:
        if hits.shape[0] > max_hits:
            raise ContractError(f"HITS: {hits.shape[0]} hits, the model's limit max_hits is {max_hits}")
        _check_values(hits)
        return
    check_event_offsets(event_offsets, n_hits=hits.shape[0])
    for event, (first, last) in enumerate(pairwise(event_offsets.tolist())):
        with in_event(event):
            if last > max_hits:
                raise ContractError(
                    f"HITS: {last} hits with those of the events before it, the model's limit max_hits is {max_hits}"
                )
            _check_values(hits[first:last])


def check_labels(labels: NDArray[Any], *, n_hits: int) -> None:
    """Check that TRACK_LABEL labels so many hits, with numbers that so many hits can have.

    Raises
    ------
    ContractError
        Where it does not.
    """
    check_tensor(labels, TRACK_LABEL, {"n_hits": n_hits})
    low, high = labels.min(initial=NO_TRACK), labels.max(initial=NO_TRACK)
    if low < NO_TRACK or high >= n_hits:
        raise ContractError(
            f"TRACK_LABEL: holds {low} to {high}, of {n_hits} hits it is {NO_TRACK} to {n_hits - 1}"
        )


def check_event_offsets(event_offsets: NDArray[Any], *, n_hits: int | None) -> None:
    """Check that EVENT_OFFSETS shares out all hits, where their number is known, event after event.

    Raises
    ------
    ContractError
        Where it does not.
    """
    check_tensor(event_offsets, EVENT_OFFSETS, {})
    if event_offsets.size == 0:
        raise ContractError("EVENT_OFFSETS: is empty; even without events its first entry is 0")
    first, last = event_offsets[[0, -1]].tolist()
    if first != 0 or (n_hits is not None and last != n_hits):
        raise ContractError(
            f"EVENT_OFFSETS: leads from {first} to {last}, wanted is from 0 to the number of hits, {n_hits}"
        )
    falls = np.flatnonzero(np.diff(event_offsets) < 0)
    if falls.size:
        raise ContractError(
            f"EVENT_OFFSETS: falls after entry {falls[0]}, event {falls[0]} would have no end"
        )


@contextlib.contextmanager
def in_event(event: int) -> Iterator[None]:
    """Say in a ContractError which event of a pack it is about."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"event {event} of the pack, counted from 0: {error}") from None


def _check_values(hits: NDArray[Any]) -> None:
    # Row by row takes thirty times as long. No comparison with a NaN holds.
    if (np.abs(hits[:, :3]) <= MAX_COORDINATE).all() and np.isfinite(hits[:, 3:]).all():
        return
    for wrong, what in (
        (~np.isfinite(hits), "hold NaN or infinity"),
        (
            np.abs(hits[:, :3]) > MAX_COORDINATE,
            f"lie more than {MAX_COORDINATE:.0f} mm away (are they in mm?)",
        ),
    ):
        bad = np.flatnonzero(wrong.any(axis=1))
        if bad.size:
            rows = ", ".join(str(row) for row in bad[:10]) + (", ..." if bad.size > 10 else "")
            raise ContractError(f"HITS: {bad.size} of {hits.shape[0]} rows {what}: rows {rows}")


def check_pairs(n_pairs: int, *, max_pairs: int) -> None:
    """Refuse a graph of more pairs than the model's limit (raises ContractError)."""
    if n_pairs > max_pairs:
        raise ContractError(
            f"EDGE_INDEX: the graph has more pairs of hits than the model's limit max_pairs, {max_pairs}"
        )


def check_edges(n_edges: int, *, max_edges: int) -> None:
    """Refuse more edges after the filter than the model's limit (raises ContractError)."""
    if n_edges > max_edges:
        raise ContractError(
            f"EDGE_INDEX: the filter keeps {n_edges} edges, the model's limit max_edges is {max_edges}"
        )
