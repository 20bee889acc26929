"""Whether anything has become slower: ``python -m tritrack.bench.guard``, or ``make bench-check``.

Runs those of the short protocol's measurements that are guarded, into a folder of their own, and compares each of their
ratios with the committed one of the same name. Each ratio is of two times of one run, so that a slower machine is no
change; what part of them moves with the kind of processor all the same, docs/measuring.md says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritrack.bench.protocol import MEASUREMENTS, run_protocol
from tritrack.bench.result import read_named
from tritrack.failures import one_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tritrack.bench.result import Header

TOLERANCE = 0.25
"""A ratio may be this share of the committed one lower."""


class GuardError(RuntimeError):
    """Ratios that became worse."""


@dataclass(frozen=True, kw_only=True)
class Worse:
    """A ratio that became worse, from what it was to what it is; None for one that is not there any more."""

    name: str
    reference: float
    found: float | None

    @property
    def change(self) -> float:
        """Relative change: -0.3 is 30 % lower; -1 for one that is not there."""
        return -1.0 if self.found is None else self.found / self.reference - 1

    def line(self) -> str:
        """Return it as a line of a table."""
        found = "not there" if self.found is None else f"{self.found:.3f}"
        return f"{self.change:+6.0%}  {self.reference:9.3f}  {found:>9}  {self.name}"


def worse_ratios(
    reference: Mapping[str, float], found: Mapping[str, float], *, tolerance: float = TOLERANCE
) -> list[Worse]:
    """Return the ratios of a reference that are worse or missing, the worst first; the larger a ratio the better.

    Parameters
    ----------
    reference, found
        Positive ratios by name. Names that the reference lacks do not matter.
    tolerance
        Share that a ratio may be lower.
    """
    worse = [
        Worse(name=name, reference=was, found=found.get(name))
        for name, was in reference.items()
        # Turned round, for a ratio that is no number to be worse.
        if name not in found or not found[name] >= (1 - tolerance) * was
    ]
    return sorted(worse, key=lambda one: one.change)


def difference(reference: Header, found: Header) -> str | None:
    """Return what two results were not both made with, where it moves ratios; None where it is the same."""
    kinds = {
        "cpu": "processor",
        "cores": "number of cores",
        "threads": "threads",
        "card_sha256": "model card",
    }
    other = [what for name, what in kinds.items() if getattr(reference, name) != getattr(found, name)]
    return f"the committed ratios are of another {', another '.join(other)}" if other else None


def main(
    *,
    reference: Annotated[Path, typer.Option(help="Folder of the committed results.")] = Path(
        "bench/results/short"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the new results.")] = Path("build/bench-check"),
    weights: Annotated[Path, typer.Option(help="Folder of weights.")] = Path("weights/default"),
    work: Annotated[Path, typer.Option(help="Folder for events, engines and logs.")] = Path("build/bench"),
) -> None:
    """Measure the guarded ratios anew, and fail where one is more than 25 % lower than the committed one."""
    guarded = [each for each in MEASUREMENTS if each.guarded]
    committed = {each.name: read_named(reference / f"{each.name}.json", each.name) for each in guarded}
    run_protocol("short", guarded, out=out, work=work, weights=weights, again=True)
    was: dict[str, float] = {}
    now: dict[str, float] = {}
    for name, result in committed.items():
        found = read_named(out / "short" / f"{name}.json", name)
        if (other := difference(result.header, found.header)) is not None:
            print(f"{name}: {other}")
        was |= {f"{name}: {ratio}": value for ratio, value in result.ratios().items()}
        now |= {f"{name}: {ratio}": value for ratio, value in found.ratios().items()}
    for name in now.keys() - was.keys():
        print(f"new: {name}, {now[name]:.3f}")
    if worse := worse_ratios(was, now):
        print("change  committed        now  ratio", *(one.line() for one in worse), sep="\n", flush=True)
        raise GuardError(
            f"{len(worse)} of {len(was)} ratios are more than {TOLERANCE:.0%} lower than in {reference}"
        )
    print(f"none of {len(was)} ratios is more than {TOLERANCE:.0%} lower than in {reference}")


if __name__ == "__main__":
    with one_sentence(extra="dev"):
        typer.run(main)
