"""What the pages of measurements share: a page that holds everything in itself, tables, and pictures."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 68rem;
       margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.35rem; border-top: 2px solid #d55e00; padding-top: .6rem; margin-top: 2.5rem; }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .4rem; }
p, li, dd { max-width: 46rem; }
.note { color: #555; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; font-size: .95rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; font-weight: 600; }
td small { color: #666; display: block; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: .5rem; }
.plots img { width: 100%; max-width: 32rem; height: auto; }
.missing { color: #555; font-style: italic; }
.refused { background: #fff4ec; border-left: 4px solid #d55e00; padding: .4rem .8rem; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin-left: 0; }
code { overflow-wrap: anywhere; }
@media print { body { font-size: 10pt; max-width: none; padding: 0; } .plots { grid-template-columns: repeat(3, 1fr); }
  .plots, tr, h2, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; } .scroll { overflow: visible; } }
@media (max-width: 30rem) { th, td { padding-right: .5rem; font-size: .85rem; } }
"""


def write_html(path: Path, *, title: str, body: str) -> None:
    """Write a page for screens, phones and print; its body is HTML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls in itself; cells are HTML, and short rows are filled up."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    filled = ([*row, *[""] * (len(heads) - len(row))] for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in filled)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def share_cell(entry: dict[str, Any]) -> str:
    """Return the cell of a share with its interval."""
    if entry["value"] is None:
        return "none to count"
    return f"{entry['value']:.4f}<small>{entry['low']:.4f} to {entry['high']:.4f}</small>"


def plots(images: Iterable[tuple[str, str]]) -> str:
    """Return pictures side by side where there is room; each is what it shows, and its data as a URI."""
    tags = "".join(f"<img alt='{escape(shown)}' src='{data}'>" for shown, data in images)
    return f"<div class='plots'>{tags}</div>"


def png_uri(data: bytes) -> str:
    """Return a PNG as the source of an image."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def svg_uri(figure: Figure) -> str:
    """Return a figure, as SVG, as the source of an image; the same figure gives the same text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
