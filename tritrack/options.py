"""Options of the commands that speak to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritrack.failures import UsageError
from tritrack.service.access import Access
from tritrack.service.errors import AccessError

Url = Annotated[str | None, typer.Option(help="HOST:PORT of a server's gRPC service.")]
Model = Annotated[str, typer.Option(help="Name of the server's model at its default working point.")]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS, and check the server's certificate.")]
TlsCa = Annotated[
    Path | None, typer.Option(help="PEM file of the authorities that may have signed it; brings --tls.")
]
Header = Annotated[
    list[str],
    typer.Option(metavar="NAME=VALUE", help="Send this along with every call; may be given again."),
]


def read_access(*, tls: bool, tls_ca: Path | None, header: list[str]) -> Access:
    """Put together how the server is reached (raises UsageError)."""
    headers: dict[str, str] = {}
    for given in header:
        name, equals, value = given.partition("=")
        if not equals:  # what was given may be a token, so it is not repeated
            raise UsageError("--header: NAME=VALUE wanted, a text without '=' given")
        headers[name] = value
    try:
        return Access(ssl=tls or tls_ca is not None, root_certificates=tls_ca, headers=headers)
    except AccessError as error:
        raise UsageError(f"--header: {error}") from None
