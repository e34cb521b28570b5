"""The keys that an issuer signs its tokens with: from a file, from an address, or from both."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import jwt

from service.security.files import Contents, Reloads, SecurityError, Watched
from service.security.settings import JwtConfig

log = logging.getLogger(__name__)

KeySet = Mapping[str, jwt.PyJWK]
"""By key id (``kid``); a key without one under the empty name."""

ANSWER_S = 5.0
"""How long the issuer may take to answer."""
AGAIN_S = 10.0
"""After a failure, and at the soonest for a key id that nobody knows: strangers must not make the service ask."""


class Keys:
    """files: what has to be watched. ``start`` begins to ask the address, if there is one."""

    def __init__(self, config: JwtConfig, told: Reloads) -> None:
        """Raises SecurityError for a file that cannot be used."""
        self._file = None
        if config.jwks_file is not None:
            self._file = Watched("jwks", [config.jwks_file], read_key_set, told)
        self.files = [] if self._file is None else [self._file]
        self._remote = _Remote(config, told) if config.jwks_url else None

    def start(self) -> None:
        """Begin to keep up with the address."""
        if self._remote is not None:
            self._remote.start()

    async def stop(self) -> None:
        if self._remote is not None:
            await self._remote.stop()

    @property
    def known(self) -> bool:
        """Whether there are any: the address may not have answered yet."""
        return bool(self._all())

    async def key(self, name: str) -> jwt.PyJWK | None:
        """The key of a token whose header has this ``kid``; the empty one: it has none, and there must be one key only.
        The address is asked once more, now and then, for one that is not known.
        """
        found = self._find(name)
        if found is None and self._remote is not None:
            await self._remote.asked_again()
            found = self._find(name)
        return found

    def _find(self, name: str) -> jwt.PyJWK | None:
        keys = self._all()
        if not name:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(name)

    def _all(self) -> KeySet:
        remote: KeySet = {} if self._remote is None else self._remote.keys
        return remote if self._file is None else {**remote, **self._file.value}


class _Remote:
    """Asks in the background. What was known stays while the issuer does not answer: tokens are believed that long."""

    def __init__(self, config: JwtConfig, told: Reloads) -> None:
        self.keys: KeySet = {}
        self._config = config
        self._told = told
        self._client = jwt.PyJWKClient(config.jwks_url, cache_jwk_set=False, timeout=ANSWER_S)
        told.watching("jwks_url")
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[bool] | None = None
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        tasks = [task for task in (self._loop, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def asked_again(self) -> None:
        """Ask, unless that was done a moment ago, and wait for the answer. Who comes meanwhile waits for the same."""
        if self._asking is None or self._asking.done():
            if time.monotonic() - self._asked_at < AGAIN_S:
                return
            self._asking = asyncio.create_task(self._ask())
        await asyncio.shield(self._asking)

    async def _keep_up(self) -> None:
        while True:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            good = await asyncio.shield(self._asking)
            await asyncio.sleep(self._config.refresh_s if good else min(AGAIN_S, self._config.refresh_s))

    async def _ask(self) -> bool:
        """Whether the issuer gave a key set that can be used."""
        self._asked_at = time.monotonic()
        try:
            found = key_set(await asyncio.to_thread(self._client.fetch_data))
        except Exception as error:  # whatever it was, the issuer is asked again
            self._told.not_reloaded("jwks_url")
            log.error("no key set, the old one stays", extra={"url": self._config.jwks_url, "cause": str(error)})
            return False
        if found.keys() != self.keys.keys():
            self._told.reloaded("jwks_url")
            log.info("key set", extra={"url": self._config.jwks_url, "keys": sorted(found)})
        self.keys = found
        return True


def read_key_set(contents: Contents) -> KeySet:
    """Of a file. Raises SecurityError."""
    try:
        return key_set(json.loads(contents[0]))
    except ValueError as error:
        raise SecurityError(f"no JSON: {error}") from None


def key_set(found: Any) -> KeySet:
    """The public keys for signatures of a JWK set (RFC 7517, section 5). Raises SecurityError where there is none."""
    try:
        made = jwt.PyJWKSet.from_dict(found).keys
    except (jwt.PyJWTError, AttributeError, TypeError) as error:
        raise SecurityError(f"no JWK set: {type(error).__name__}") from None
    keys = {key.key_id or "": key for key in made if key.key_type != "oct" and key.public_key_use in (None, "sig")}
    if not keys:
        raise SecurityError("no public key for signatures in the JWK set")
    return keys
