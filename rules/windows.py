"""What the finder knows of a detector and allows a track: layers, steps between them, windows. A JSON file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import msgspec
import numpy as np

from tritrack.events.files import replacing
from tritrack.events.layers import Layers

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT_VERSION = 1
RULES_FILE = "rules.json"

N_COLUMNS = 3
"""Columns of the hits: x, y, z."""


class RulesError(ValueError):
    """A file of rules that cannot be used, or events that none can be derived from; names what and where."""


class Windows(NamedTuple):
    """What a track may do; compiled code takes it as it is. Lengths in mm.

    Attributes
    ----------
    max_curvature
        Largest curvature of a doublet, in 1/mm: 6e-4 / (pT in GeV) in 2 T.
    max_z0
        How far from the origin a doublet may point to, along the beam.
    max_d0
        How far from the beam line, across it.
    join
        How far a hit may be from the helix of a doublet, in standard deviations.
    follow
        Largest chi2 of a hit that a track takes on its way (two degrees of freedom).
    min_layers
        Fewest layers of a track.
    long
        Layers from which on a track needs no small chi2, and its hits begin no further track.
    max_chi2
        Of a shorter track, per degree of freedom.
    max_holes
        Most layers that a track crosses without leaving a hit.
    max_shared
        Most hits of a track that better tracks have.
    """

    max_curvature: float
    max_z0: float
    max_d0: float
    join: float
    follow: float
    min_layers: int
    long: int
    max_chi2: float
    max_holes: int
    max_shared: int


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What travels with the finder.

    Attributes
    ----------
    name
        Of the detector and the events that the rules were derived from.
    layers
        The detector.
    field
        Along z, in T.
    steps
        int64 [n_steps, 2], pairs of layers that tracks hit one after the other, or with one between them missed.
    windows
        What a track may do.
    max_hits
        Largest event.
    metrics
        What the rules gave on the events that they were chosen on, by name.
    """

    name: str
    layers: Layers
    field: float
    steps: NDArray[np.int64]
    windows: Windows
    max_hits: int
    metrics: dict[str, dict[str, float]]

    def to_json(self) -> bytes:
        """Return the content of ``rules.json``; numbers of layers to 0.1 micrometres."""
        columns = {f.name: getattr(self.layers, f.name).tolist() for f in fields(Layers)}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        content: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "name": self.name,
            "max_hits": self.max_hits,
            "field": self.field,
            "windows": self.windows._asdict(),
            "metrics": self.metrics,
            "layers": [
                {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
            ],
            "steps": self.steps.tolist(),
        }
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"

    @property
    def hash(self) -> str:
        """sha256 of ``rules.json``: names these rules on a server."""
        return hashlib.sha256(self.to_json()).hexdigest()


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    """A layer in the file."""

    disk: bool
    r_low: float
    r_high: float
    z_low: float
    z_high: float
    across: float
    along: float
    scattering: float


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    name: str
    max_hits: int
    field: Annotated[float, msgspec.Meta(gt=0)]
    windows: dict[str, float]
    metrics: dict[str, dict[str, float]]
    layers: list[_Table]
    steps: list[tuple[int, int]]


def write_rules(rules: Rules, folder: Path) -> Path:
    """Write the rules into a folder, as ``rules.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RULES_FILE
    with replacing(path) as partial:
        partial.write_bytes(rules.to_json())
    return path


def read_rules(folder: Path) -> Rules:
    """Read the rules of a folder.

    Raises
    ------
    RulesError
        Where there are none, or they cannot be used; names the file and what is wrong.
    """
    path = folder / RULES_FILE
    if not path.is_file():
        raise RulesError(f"{folder}: no {RULES_FILE} there; tritrack tune --finder rules writes it")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except msgspec.DecodeError as error:
        raise RulesError(f"{path}: {error}") from None
    if found.version != FORMAT_VERSION:
        raise RulesError(f"{path}: format {found.version}, this version reads {FORMAT_VERSION}")
    if set(found.windows) != set(Windows._fields):
        wrong = sorted(set(found.windows) ^ set(Windows._fields))
        raise RulesError(f"{path}: windows lacks or has too much: {', '.join(wrong)}")
    steps = np.array(found.steps, dtype=np.int64).reshape(-1, 2)
    if not found.layers or (steps < 0).any() or (steps >= len(found.layers)).any():
        raise RulesError(f"{path}: steps between layers that the file lacks ({len(found.layers)} layers)")
    kinds = get_type_hints(Windows)
    return Rules(
        name=found.name,
        layers=Layers(
            **{f.name: np.array([getattr(row, f.name) for row in found.layers]) for f in fields(Layers)}
        ),
        steps=steps,
        windows=Windows._make(kinds[name](found.windows[name]) for name in Windows._fields),
        field=found.field,
        max_hits=found.max_hits,
        metrics=found.metrics,
    )
