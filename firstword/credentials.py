"""What a client shows of itself, and what it wants to see of the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from firstword.errors import CallFailed
from firstword.line import Metadata

AUTHORIZATION = "authorization"

Token = str | Callable[[], str]
"""A bearer token, or what gives the newest one: asked whenever a stream opens, also when a call is gone on with, by the
event loop, and so it must not wait for anything.
"""


@dataclass(frozen=True)
class Tls:
    """An encrypted channel. PEM files, which are read when the client is made.

    ca: authorities that the service's certificate may come from; None: those that gRPC brings. certificate, key: the
    client's own, where the service wants one; the chain with the client's own certificate first.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be given together")

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises OSError for a file that cannot be read."""
        return grpc.ssl_channel_credentials(*map(_content, (self.ca, self.key, self.certificate)))


def metadata_of(given: Mapping[str, str], token: Token | None) -> Callable[[], Metadata]:
    """What is sent with each stream that opens. Raises CallFailed where the token is not to be had now."""
    fixed = tuple(given.items())
    if token is None:
        return lambda: fixed

    def current() -> Metadata:
        try:
            found = token if isinstance(token, str) else token()
        except Exception as error:  # it is the caller's own, and a later try may have it
            raise CallFailed(grpc.StatusCode.UNAVAILABLE, "", f"no token: {type(error).__name__}: {error}") from error
        return (*fixed, (AUTHORIZATION, f"Bearer {found}"))

    return current


def server_name(target: str) -> str:
    """The name for which the certificate at a gRPC target is: "dns:///voice.example.com:443" is voice.example.com's."""
    address = target.rpartition("/")[2] if "://" in target else target.removeprefix("dns:")
    if address.startswith(("ipv4:", "ipv6:")):
        address = address.partition(":")[2].partition(",")[0]
    host, colon, port = address.rpartition(":")
    return (host if colon and port.isdecimal() and (":" not in host or host.endswith("]")) else address).strip("[]")


def _content(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
