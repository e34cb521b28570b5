"""All that keeps the service's port safe, put together as it is configured."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from service.config import ServiceConfig
from service.security.api_keys import read_keys
from service.security.authenticator import Authenticator
from service.security.certificates import CertificateTenants
from service.security.files import Reloads, Watched, watch
from service.security.guard import Entries, Guard
from service.security.identity import everybody, tenant_of_stream
from service.security.tls import ServerTls
from service.security.tokens import Tokens

log = logging.getLogger(__name__)


class Told(Reloads, Entries, Protocol):
    """``service.telemetry.access.AccessTelemetry``, or whoever else counts."""


class Security:
    """tls: None for plain text. guard: None where nobody is asked. tenant_of_stream: whose the stream is whose method
    runs in this context.
    """

    def __init__(self, config: ServiceConfig, told: Told) -> None:
        """Raises SecurityError for what is configured and cannot be used: better no service than an open one."""
        tls, auth, jwt = config.tls, config.auth, config.jwt
        self._reload_s = config.server.reload_s
        self.tls = ServerTls(tls, told) if tls.certificate else None
        keys = Watched("api_keys", [auth.api_keys_file], read_keys, told) if auth.api_keys_file else None
        self._tokens = Tokens(jwt, told) if jwt.issuer else None
        self._files: list[Watched[Any]] = [watched for watched in (self.tls and self.tls.files, keys) if watched]
        if self._tokens is not None:
            self._files += self._tokens.keys.files
        self.guard: Guard | None = None
        self.tenant_of_stream: Callable[[], str] = everybody
        if keys or self._tokens or tls.client_ca:
            self.guard = Guard(Authenticator(keys, self._tokens, CertificateTenants(tls)), told)
            self.tenant_of_stream = tenant_of_stream
        if (keys or self._tokens) and self.tls is None:
            log.warning("credentials are sent in plain text, unless somebody else encrypts them: there is no [tls]")
        self._watching: asyncio.Task[None] | None = None

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """Of the port; None for plain text."""
        return None if self.tls is None else self.tls.credentials

    def start(self) -> None:
        """Begin to look at what may change."""
        if self._files:
            self._watching = asyncio.create_task(watch(self._files, self._reload_s))
        if self._tokens is not None:
            self._tokens.keys.start()

    async def stop(self) -> None:
        """Look at nothing any more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._tokens is not None:
            await self._tokens.keys.stop()
