"""The way over gRPC: the real service, ``python -m service``, in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from bench.load.scripts import Script
from bench.load.service_line import ServiceLine, service_line
from firstword import Client
from firstword.serve import local_server


class RemoteDriver:
    """Calls to one server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def line(self, script: Script) -> AbstractAsyncContextManager[ServiceLine]:
        return service_line(self._client, script)


@asynccontextmanager
async def start(environment: Mapping[str, str]) -> AsyncIterator[RemoteDriver]:
    """The service under these settings. Raises ServerError and NotInstalledError."""
    async with local_server(lambda stage: None, environment) as server, Client(server.address) as client:
        yield RemoteDriver(client)
