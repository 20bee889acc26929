"""How a server is reached beyond its address: TLS, and headers such as a token."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from typing import TYPE_CHECKING, Any

import grpc

from tritrack.service.errors import AccessError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What gRPC takes; names that end with -bin are those of bytes.
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+(?<!-bin)")
_HEADER_VALUE = re.compile(r"[ -~]*")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a server, or a proxy before it, wants to be spoken to; without anything, in plain gRPC.

    Attributes
    ----------
    ssl
        Speak TLS, and check the server's certificate.
    root_certificates
        PEM file of the authorities that may have signed it; None for those that gRPC comes with.
    headers
        Sent along with every call, such as {"authorization": "Bearer ..."}; the case of names does not matter.

    Raises
    ------
    AccessError
        Where a header cannot be sent, or authorities are given for a connection without TLS.
    """

    ssl: bool = False
    root_certificates: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # a token is not for logs

    def __post_init__(self) -> None:
        if self.root_certificates is not None and not self.ssl:
            raise AccessError(f"root_certificates: {self.root_certificates} given without ssl")
        for name, value in self.metadata:
            if not _HEADER_NAME.fullmatch(name):
                raise AccessError(
                    f"header {name!r}: letters, digits, '-', '_' and '.' wanted, and no '-bin' at the end"
                )
            if not _HEADER_VALUE.fullmatch(value):
                raise AccessError(
                    f"header {name!r}: its value holds more than printable ASCII, such as a line's end"
                )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers as gRPC takes them."""
        return tuple((name.lower(), value) for name, value in self.headers.items())

    def credentials(self) -> Any:
        """Return gRPC's credentials for a channel; None without TLS.

        Raises
        ------
        AccessError, OSError
            Where the file holds no certificates, or cannot be read.
        """
        if not self.ssl:
            return None
        path = self.root_certificates
        if path is None:
            return grpc.ssl_channel_credentials()
        roots = path.read_bytes()
        try:
            # gRPC would say no more than that the server is not available.
            SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except SSLError:
            raise AccessError(f"{path}: holds no certificates in PEM") from None
        return grpc.ssl_channel_credentials(root_certificates=roots)

    def sign(self, request: Any) -> None:
        """Add the headers to a call: a plugin of tritonclient's clients."""
        request.headers.update(self.metadata)


PLAIN = Access()
