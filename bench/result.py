"""What a measurement writes: a header that says what it was made with, and its rows; read back with every type checked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from tritrack.bench.machine import describe_machine, describe_versions
from tritrack.events.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tritrack.stages.card import ModelCard, WorkingPointName

    Result = TypeVar("Result", bound="Headed")
    Decoded = TypeVar("Decoded")


class ResultError(ValueError):
    """A file that does not hold the result wanted; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a measurement was made with.

    Attributes
    ----------
    measurement
        Its name: that of the module in `tritrack.bench` that made it.
    cpu, cores
        The processor, and the cores that the measurement could use.
    threads
        Threads of each engine and stage; None where a server does not say, or its models differ.
    versions
        Versions of Python and of the packages that matter.
    model, card_sha256
        Name and hash of the model card; None of a server that is not tritrack's.
    working_point
        The cuts; None where there are no such points.
    """

    measurement: str
    cpu: str
    cores: int
    threads: int | None
    versions: dict[str, str]
    model: str | None
    card_sha256: str | None
    working_point: str | None


class Headed(Protocol):
    """What is written and read: a frozen dataclass of a header and rows."""

    @property
    def header(self) -> Header:
        """What it was made with."""


class Measured(Headed, Protocol):
    """A result, with the ratios that its claims rest on.

    Each is measured within one run, and has a name that stays the same from run to run. The larger a ratio the better:
    `tritrack.bench.guard` watches them.
    """

    def ratios(self) -> dict[str, float]:
        """Name -> ratio."""


def make_header(
    measurement: str,
    *,
    card: ModelCard,
    working_point: WorkingPointName | None,
    threads: int,
    packages: Iterable[str],
) -> Header:
    """Return the header of a measurement made here and now, at a working point or the card's default."""
    return describe_here(
        measurement,
        model=card.name,
        card_sha256=card.hash,
        working_point=working_point or card.default,
        threads=threads,
        packages=packages,
    )


def describe_here(
    measurement: str,
    *,
    model: str | None,
    card_sha256: str | None,
    working_point: str | None,
    threads: int | None,
    packages: Iterable[str],
) -> Header:
    """Return the header of a measurement made here and now with a model that only a server knows."""
    machine = describe_machine()
    return Header(
        measurement=measurement,
        cpu=str(machine["cpu"]),
        cores=int(machine["cores"]),
        threads=threads,
        versions=describe_versions(packages),
        model=model,
        card_sha256=card_sha256,
        working_point=working_point,
    )


def write_result(result: Headed, path: Path) -> None:
    """Write a result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def checkpoint_of(path: Path) -> Path:
    """Return where a measurement keeps what is done until its result, this file, is written."""
    return path.with_suffix(".points.json")


def read_result(path: Path, kind: type[Result]) -> Result:
    """Read a result.

    Parameters
    ----------
    path
        The file.
    kind
        The dataclass that it holds; its types are the file's schema.

    Raises
    ------
    ResultError
        Where the file is not there, is no JSON, or does not fit the schema.
    """
    return _read(path, kind)


def read_named(path: Path, measurement: str) -> Measured:
    """Read a result of the measurement of this name (raises ResultError)."""
    kind: type[Measured] = import_module(f"tritrack.bench.{measurement}").Result
    return read_result(path, kind)


def read_header(path: Path) -> Header:
    """Read the header of a result of any measurement (raises ResultError)."""
    return _read(path, _Headed).header


@dataclass(frozen=True, kw_only=True)
class _Headed:
    header: Header


def _read(path: Path, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise ResultError(f"{path}: no result there") from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ResultError(f"{path}: not a result of {kind.__module__}: {error}") from None
