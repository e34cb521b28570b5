"""Connections end and calls do not: how a client that stays connected finds servers that were added later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from firstword.v1 import options_pb2 as options_pb
from tests.e2e.server import CallStream, ServiceProcess, connected

AGE_S = 1.0


class Forwarder:
    """A port whose connections are passed on, and counted."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.connections = 0
        self.address = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Forwarder]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self
            server.close()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_an_aged_connection_takes_no_new_calls_and_keeps_its_own() -> None:
    short = options_pb.Sampling(max_output_tokens=4)
    with ServiceProcess({"FIRSTWORD_SERVER__MAX_CONNECTION_AGE_S": str(AGE_S)}) as process:
        async with Forwarder(process.port).serving() as forwarder, connected(forwarder.address) as stub:
            first = CallStream(stub)
            await first.open(sampling=short)
            assert forwarder.connections == 1
            await asyncio.sleep(2 * AGE_S)  # with its tenth of jitter
            second = CallStream(stub)
            await second.open(sampling=short)
            assert forwarder.connections == 2
            for call in (first, second):
                assert (await call.say("hello")).ended is not None
                assert await call.close() is grpc.StatusCode.OK
