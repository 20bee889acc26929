"""One page of all measurements: ``python -m tritrack.bench.report --results bench/results --out bench/report.html``.

Of each measurement the full protocol's result is taken, else the short one's (`tritrack.bench.protocol`). One that is not
there is a sentence on the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from tritrack.bench.pages import sections, server_sections, size_sections
from tritrack.bench.pages.compare_page import finders_table
from tritrack.bench.pages.page import write_html
from tritrack.bench.result import ResultError, read_named
from tritrack.failures import one_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tritrack.bench.result import Header, Measured

TITLE = "tritrack: what it costs and what it finds"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A measurement's place on the page.

    Attributes
    ----------
    name
        Of the measurement.
    title, about
        The heading, and what was measured.
    render
        Its result as HTML.
    """

    name: str
    title: str
    about: str
    # Any: each takes the result of its own measurement.
    render: Callable[[Any], str] = sections.ratios


SECTIONS = (
    Section(
        name="engines",
        title="Engines",
        about="The same weights in every engine that is here, on one core, in process, taking turns.",
        render=sections.engines,
    ),
    Section(
        name="service",
        title="Service",
        about="What a server adds to the chain in process: by gRPC, HTTP and shared memory; the ensemble and the fused model.",
        render=server_sections.service,
    ),
    Section(
        name="memory",
        title="Memory of a server",
        about="Whether it stays flat over many requests.",
        render=server_sections.memory,
    ),
    Section(
        name="load",
        title="Load",
        about="A server that tritrack load was pointed at: latency and throughput under one client and under many.",
        render=server_sections.load,
    ),
    Section(
        name="tail_latency",
        title="Tail latency",
        about="Latency of events that come on their own, as a Poisson process, at shares of a server's throughput.",
        render=server_sections.tail_latency,
    ),
    Section(
        name="sweep",
        title="Instances",
        about="The same, with more instances of the steps.",
        render=server_sections.sweep,
    ),
    Section(
        name="scaling",
        title="Scaling",
        about="Time and memory against the number of hits.",
        render=size_sections.scaling,
    ),
    Section(
        name="floors",
        title="Floors",
        about="The least time that each stage could take on this machine, and what it takes.",
        render=size_sections.floors,
    ),
    Section(
        name="compare",
        title="Finders compared",
        about="The chain, the rule-based finder and ACTS' Kalman filter on the same events.",
        render=finders_table,
    ),
)
"""The sections, in order."""


def find_result(results: Path, name: str) -> Path | None:
    """Return the full protocol's result of a measurement, else the short one's; None where there is neither."""
    for length in ("full", "short"):
        if (path := results / length / f"{name}.json").exists():
            return path
    return None


def write_report(results: Path, *, out: Path) -> None:
    """Write the page of a folder of results; what cannot be read is a sentence there."""
    found: dict[str, Measured] = {}
    bodies = []
    for section in SECTIONS:
        path = find_result(results, section.name)
        if path is None:
            body = sections.sentence(
                f"Not measured: there is no {section.name}.json in {results}/full or {results}/short."
            )
        else:
            try:
                result = found[section.name] = read_named(path, section.name)
            except ResultError as error:
                body = sections.sentence(f"Not shown: {error}.")
            else:
                body = f"<p class='note'>From the {path.parent.name} protocol.</p>{section.render(result)}"
        bodies.append(_section(section.title, section.about, body))
    bodies.append(
        _section("Physics", "The chain beside ACTS' Kalman filter on the same hits.", _physics(results))
    )
    write_html(out, title=TITLE, body="".join(_head({n: r.header for n, r in found.items()}, bodies)))


def _head(headers: dict[str, Header], bodies: list[str]) -> Iterator[str]:
    yield f"<h1>{escape(TITLE)}</h1>"
    yield (
        "<p>Times differ from machine to machine; what is claimed are ratios of times measured in one run, in turn. "
        "Absolute times are as of this machine:</p>"
    )
    yield sections.headers(headers) if headers else sections.sentence("There are no results yet.")
    yield from bodies


def _section(title: str, about: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2><p>{escape(about)}</p>{body}"


def _physics(results: Path) -> str:
    paths = sorted(results.glob("physics-*.json"))
    if not paths:
        return sections.sentence(f"Not measured: there is no physics-*.json in {results}.")
    try:
        found = [msgspec.json.decode(path.read_bytes()) for path in paths]
    except msgspec.DecodeError as error:
        return sections.sentence(f"Not shown: {error}.")
    return sections.physics(found)


def main(
    *,
    results: Annotated[Path, typer.Option(help="Folder of results.")] = Path("bench/results"),
    out: Annotated[Path, typer.Option(help="The page.")] = Path("bench/report.html"),
) -> None:
    """Make one page of all measurements."""
    write_report(results, out=out)
    print(f"{out}: written")


if __name__ == "__main__":
    with one_sentence(extra="dev"):
        typer.run(main)
