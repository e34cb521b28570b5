"""Records at rest, encrypted where there is a key: AES-256-GCM (NIST SP 800-38D), each record bound to its place.

Keys rotate: the first one encrypts, every one decrypts. What a store holds says which key it needs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_BYTES = 4
_PLAIN, _SEALED = b"\x00", b"\x01"


class Unsealable(Exception):
    """What the store holds cannot be read: the key for it is not here, or it was changed."""


class Sealer(Protocol):
    def seal(self, record: bytes, place: bytes) -> bytes: ...

    def unseal(self, stored: bytes, place: bytes) -> bytes:
        """Raises Unsealable."""
        ...


class AesGcm:
    """keys: base64 of 32 bytes each, newest first; none leaves records as they are. Raises ValueError for others."""

    def __init__(self, keys: Sequence[str]) -> None:
        raw = [_decoded(key) for key in keys]
        self._newest = _id(raw[0]) if raw else b""
        self._ciphers = {_id(key): AESGCM(key) for key in raw}

    def seal(self, record: bytes, place: bytes) -> bytes:
        """``place`` is authenticated with the record: one that was moved is not read."""
        if not self._newest:
            return _PLAIN + record
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _SEALED + self._newest + nonce + self._ciphers[self._newest].encrypt(nonce, record, place)

    def unseal(self, stored: bytes, place: bytes) -> bytes:
        kind, rest = stored[:1], stored[1:]
        if kind == _PLAIN:
            return rest
        key, rest = rest[:_ID_BYTES], rest[_ID_BYTES:]
        if kind != _SEALED or key not in self._ciphers:
            raise Unsealable("it was written with a key that is not here")
        try:
            return self._ciphers[key].decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise Unsealable("it was changed since it was written") from None


def _decoded(key: str) -> bytes:
    try:
        raw = base64.b64decode(key, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ValueError(f"an encryption key is {KEY_BYTES} random bytes in base64")
    return raw


def _id(key: bytes) -> bytes:
    """Names a key without telling it."""
    return hashlib.sha256(b"firstword key id" + key).digest()[:_ID_BYTES]
