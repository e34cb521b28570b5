"""API keys, of which the service holds hashes only.

A key is ``fw_<id>_<secret>``: the id finds its hash, the secret is 256 random bits. The hash is one SHA-256 of the
whole key: slow hashes (argon2, scrypt) are for what people choose and others can guess; 256 random bits are out of
reach of guessing at any speed, and a slow hash would only let strangers keep the service busy. Keys of another form,
such as a password that somebody made up, are never looked up, so a weak one cannot be configured by mistake.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, ValidationError

from service.section import Section
from service.security.files import Contents, SecurityError
from service.security.identity import TENANT_NAME, Principal
from service.security.refusals import expired, refused

PREFIX = "fw_"
_FORM = re.compile(r"fw_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODYS = bytes(32)


class KeyEntry(Section):
    """``[[key]]`` of the file: a key's id, its SHA-256 in hex, whose it is, and until when it can be used (None: for
    ever). A tenant may have any number: a new one is added, clients change to it, the old one is taken out or expires.
    """

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    tenant: str = Field(pattern=f"^{TENANT_NAME.pattern}$")
    expires: AwareDatetime | None = None


class _KeyFile(Section):
    key: tuple[KeyEntry, ...] = ()


@dataclass(frozen=True)
class ApiKeys:
    """entries: by the keys' ids."""

    entries: Mapping[str, KeyEntry]

    def principal(self, key: str) -> Principal:
        """Whose a key is. Raises Problem for one that is unknown or has expired."""
        form = _FORM.fullmatch(key)
        if form is None:
            raise refused("no key of ours")
        entry = self.entries.get(form[1])
        known = _NOBODYS if entry is None else bytes.fromhex(entry.sha256)
        # The same work for an id that is unknown, and none that depends on how much of a secret is right.
        same = hmac.compare_digest(digest(key), known)
        if entry is None or not same:
            raise refused(f"key {form[1]} is unknown, or its secret is wrong")
        if entry.expires is not None and entry.expires <= datetime.now(UTC):
            raise expired(f"key {entry.id}")
        return Principal(entry.tenant, "api_key", entry.id)


def read_keys(contents: Contents) -> ApiKeys:
    """Of the keys' file. Raises SecurityError."""
    try:
        found = _KeyFile.model_validate(tomllib.loads(contents[0].decode()))
    except ValidationError as error:
        # Not pydantic's own text, which shows what it was given.
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise SecurityError(wrong) from None
    except ValueError as error:  # TOML and UTF-8 both
        raise SecurityError(f"no TOML: {error}") from None
    if not found.key:  # it may be about to be written
        raise SecurityError("no key in it")
    entries = {entry.id: entry for entry in found.key}
    if len(entries) < len(found.key):
        raise SecurityError("two keys have the same id")
    return ApiKeys(entries)


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def new_key(tenant: str, expires: datetime | None = None) -> tuple[str, KeyEntry]:
    """(a new key, what is kept of it). Raises ValueError for a tenant that cannot be one."""
    name = secrets.token_hex(6)
    key = f"{PREFIX}{name}_{secrets.token_urlsafe(32)}"
    return key, KeyEntry(id=name, sha256=digest(key).hex(), tenant=tenant, expires=expires)
