"""The command line's way to a service that asks who is there: files by options, secrets by the environment."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstword.credentials import Tls, Token

API_KEY, TOKEN = "FIRSTWORD_API_KEY", "FIRSTWORD_TOKEN"
"""In the environment and no options: a command line is seen by everybody on the machine."""


class AccessError(Exception):
    """What was given cannot be used together, or not be read."""


@dataclass(frozen=True)
class Access:
    """tls: None for plain text. token: an API key or a token; None: none."""

    tls: Tls | None = None
    token: Token | None = None

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """The same for HTTP. Raises OSError for a file that cannot be read or used."""
        tls = self.tls or Tls()
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        return context

    @property
    def headers(self) -> dict[str, str]:
        """Of an HTTP request. Without TLS there are none: nobody there wants them, and others could read them."""
        if self.token is None or self.tls is None:
            return {}
        return {"Authorization": f"Bearer {self.token if isinstance(self.token, str) else self.token()}"}


PLAIN = Access()
"""To a service that asks for nothing."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Those that ``access_of`` reads."""
    about = f"An API key or token comes from {API_KEY} or {TOKEN} in the environment, or from --token-file."
    group = command.add_argument_group("access", about)
    group.add_argument("--tls", action="store_true", help="encrypt; the next three do as well")
    group.add_argument("--ca", metavar="FILE", type=Path, help="authorities of the server's certificate (PEM)")
    group.add_argument("--cert", metavar="FILE", type=Path, help="the client's own certificate (PEM)")
    group.add_argument("--cert-key", metavar="FILE", type=Path, help="and its key (PEM)")
    group.add_argument("--token-file", metavar="FILE", type=Path, help="read anew whenever a stream opens")


def access_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Access:
    """What was asked for. Raises AccessError."""
    given = [environ[name] for name in (API_KEY, TOKEN) if environ.get(name)]
    if len(given) + (options.token_file is not None) > 1:
        raise AccessError(f"{API_KEY}, {TOKEN} and --token-file are three ways to say one thing")
    for path in (options.ca, options.cert, options.cert_key, options.token_file):
        if path is not None and not path.is_file():
            raise AccessError(f"{path} is no file")
    token: Token | None = given[0] if given else None
    if options.token_file is not None:
        token = _from_file(options.token_file)
    wanted = options.tls or any((options.ca, options.cert, options.cert_key))
    try:
        return Access(Tls(options.ca, options.cert, options.cert_key) if wanted else None, token)
    except ValueError:
        raise AccessError("--cert and --cert-key must be given together") from None


def _from_file(path: Path) -> Token:
    return lambda: path.read_text().strip()
