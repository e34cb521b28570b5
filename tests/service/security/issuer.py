"""An issuer of tokens, with keys that it changes, and an address at which it tells them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "firstword"
CLAIM = "https://firstword.example/tenant"

_MAKE: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
_TELL: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


class Key:
    """One that signs. name: its ``kid``; empty: it has none."""

    def __init__(self, name: str = "first", algorithm: str = "ES256") -> None:
        self.name = name
        self.algorithm = algorithm
        self.private = _MAKE[algorithm]()

    @property
    def public(self) -> dict[str, Any]:
        """As a JWK."""
        told = json.loads(_TELL[self.algorithm].to_jwk(self.private.public_key()))
        return {**told, "use": "sig", **({"kid": self.name} if self.name else {})}

    def token(self, tenant: object = "acme", **claims: object) -> str:
        """A good token, but for claims that are given; None leaves one out."""
        now = int(time.time())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "backend", "iat": now, "exp": now + 300, CLAIM: tenant}
        told = {name: value for name, value in {**good, **claims}.items() if value is not None}
        return jwt.encode(told, self.private, self.algorithm, {"kid": self.name} if self.name else {})


def key_set(*keys: Key) -> str:
    """The JWK set of some keys."""
    return json.dumps({"keys": [key.public for key in keys]})


class KeyServer:
    """Tells a key set over HTTP. asked: how often it was; broken: it answers with an error."""

    def __init__(self, *keys: Key) -> None:
        self.keys = keys
        self.asked = 0
        self.broken = False
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[KeyServer]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
        async with server:
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        status, body = ("503 Away", "") if self.broken else ("200 OK", key_set(*self.keys))
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()
