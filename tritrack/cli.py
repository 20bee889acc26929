"""The command line: ``tritrack COMMAND``."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from tritrack.commands_build import export, repository, simulate, train
from tritrack.commands_run import evaluate, find, info, serve

EXTRAS = {
    "acts": "simulate",
    "pythia8mc": "simulate",
    "torch": "train",
    "safetensors": "train",
    "onnx": "export",
    "onnxscript": "export",
    "faiss": "server",
    "numba": "server",
    "onnxruntime": "server",
    "pytriton": "server",
    "matplotlib": "plots",
    "mplhep": "plots",
}
"""The extra that brings a library, for the sentence that names what is missing."""

app = typer.Typer(
    help="Graph-neural-network track finding, served by NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (simulate, train, export, repository, serve, find, evaluate, info):
    app.command()(command)


def main() -> None:
    """Run the command line; what a user did wrong is one sentence, not a traceback."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        extra = "export" if sys.argv[1:2] == ["export"] else EXTRAS[library]
        errors.print(f"tritrack: {library} is not installed: pip install 'tritrack[{extra}]'", markup=False)
        raise SystemExit(2) from None
    except Exception as error:
        # tritrack's own errors, and the system's (no such file, no permission), are sentences already.
        if not (type(error).__module__.startswith("tritrack.") or isinstance(error, OSError)):
            raise
        errors.print(f"tritrack: {error}", markup=False)
        raise SystemExit(1) from None
