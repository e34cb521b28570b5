"""The lines between clients and one server: they can be cut, and they can go silent without being cut."""

from __future__ import annotations

import asyncio
import contextlib
import random


class _Connection:
    """open: cleared while nothing passes."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.open = asyncio.Event()
        self.open.set()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Lines:
    """A proxy in front of a port. It keeps its own."""

    def __init__(self) -> None:
        self._to_port = 0
        self._connections: set[_Connection] = set()
        self._silent = False
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lead_to(self, port: int) -> None:
        """Where connections go."""
        self._to_port = port

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut_one(self, rng: random.Random) -> bool:
        """Drop a connection; whether there was one."""
        if not self._connections:
            return False
        rng.choice(sorted(self._connections, key=id)).cut()
        return True

    def cut_all(self) -> None:
        """Drop every connection."""
        for connection in list(self._connections):
            connection.cut()

    def silence_all(self) -> None:
        """Let nothing pass on any connection, nor on those that are made now."""
        self._silent = True
        self.silence_those_there_are()

    def silence_those_there_are(self) -> None:
        """Let nothing pass on the connections of this moment."""
        for connection in self._connections:
            connection.open.clear()

    def pass_all(self) -> None:
        """Let everything pass again."""
        self._silent = False
        for connection in self._connections:
            connection.open.set()

    async def silence_one(self, rng: random.Random, seconds: float) -> bool:
        """Let nothing pass on a connection for a while; whether there was one."""
        if not self._connections:
            return False
        connection = rng.choice(sorted(self._connections, key=id))
        connection.open.clear()
        await asyncio.sleep(seconds)
        if not self._silent:
            connection.open.set()
        return True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((writer, far_writer))
        if self._silent:
            connection.open.clear()
        self._connections.add(connection)
        try:
            await asyncio.gather(self._pass(connection, reader, far_writer), self._pass(connection, far_reader, writer))
        except asyncio.CancelledError:
            pass  # the loop ends; asyncio's server would log that its handler did
        finally:
            self._connections.discard(connection)
            connection.cut()

    async def _pass(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                await connection.open.wait()
                writer.write(piece)
                await writer.drain()
        connection.cut()
