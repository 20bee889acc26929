"""The command line: ``tritrack COMMAND``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from tritrack.commands_build import export, repository, simulate, train, tune
from tritrack.commands_find import find
from tritrack.commands_run import evaluate, info, load, serve
from tritrack.failures import one_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS: dict[Callable[..., None], str | None] = {
    simulate: "simulate",
    train: "train",
    tune: "train",
    export: "export",
    repository: "export",  # to check a container's engines; else nothing
    serve: "server",
    find: "server",
    load: None,
    evaluate: "plots",
    info: None,
}
"""Each command, and the extra that brings what it needs beyond the client (None: nothing)."""

app = typer.Typer(
    help="Graph-neural-network track finding, served by NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; what a user did wrong is one sentence, not a traceback."""
    extras = {command.__name__: extra for command, extra in COMMANDS.items()}
    with one_sentence(extra=extras.get(sys.argv[1]) if len(sys.argv) > 1 else None):
        app()
