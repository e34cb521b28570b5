"""The service's real port with everything that guards it, and no model behind: who is let in hears that it is still
being loaded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from firstword.line import at_once
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from service.config import ServiceConfig
from service.security.security import Security
from service.server import Server
from service.servicer import CallServicer

LOADING = (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
"""How a stream ends that was let in."""

Answer = tuple[grpc.StatusCode, str]


class Book:
    """What the guard and the files have told. tenants: of the streams that were let in."""

    def __init__(self) -> None:
        self.means: list[str] = []
        self.reasons: list[str] = []
        self.new: list[str] = []
        self.not_new: list[str] = []
        self.tenants: list[str] = []

    def guarding(self) -> None:
        pass

    def entered(self, means: str) -> None:
        self.means.append(means)

    def turned_away(self, reason: str) -> None:
        self.reasons.append(reason)

    def watching(self, what: str) -> None:
        pass

    def reloaded(self, what: str) -> None:
        self.new.append(what)

    def not_reloaded(self, what: str) -> None:
        self.not_new.append(what)


class Door:
    """A server, and what it is asked. address: of the service; health_address: of health alone."""

    def __init__(self, sections: dict[str, Any]) -> None:
        defaults = {"port": 0, "reload_s": 0.02}
        self.config = ServiceConfig.model_validate({**sections, "server": {**defaults, **sections.get("server", {})}})
        self.book = Book()
        self.security = Security(self.config, self.book)
        self.server = Server(self.config.server, CallServicer(self.config.server, self._tenant), self.security)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def health_address(self) -> str:
        return f"127.0.0.1:{self.server.health_port}"

    def _tenant(self) -> str:
        self.book.tenants.append(tenant := self.security.tenant_of_stream())
        return tenant


@asynccontextmanager
async def door(**sections: Any) -> AsyncIterator[Door]:
    """A server of this configuration, while it is entered."""
    made = Door(sections)
    await made.server.start()
    try:
        yield made
    finally:
        await made.server.stop()


def channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


def bearer(credential: str) -> Sequence[tuple[str, str]]:
    return (("authorization", f"Bearer {credential}"),)


async def answer(
    address: str,
    credential: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Answer:
    """How a call ends that is opened with these."""
    shown = metadata if credential is None else bearer(credential)
    async with channel(address, credentials) as open_channel:
        stub = call_service_pb2_grpc.CallServiceStub(open_channel)
        return await ending(stub.Call(metadata=shown), call_pb.CallRequest(open=client_pb.Open()))


async def ending(stream: Any, *requests: Any) -> Answer:
    """(status, reason) of a stream, after it was sent these. The first status counts: a write under way when it comes
    fails, and grpc.aio then says INTERNAL (see ``firstword.line``).
    """
    first: list[Answer] = []

    def note(rpc: Any) -> None:
        if not first:
            first.append((at_once(rpc.code()), reason_of(at_once(rpc.trailing_metadata()))))

    stream.add_done_callback(note)
    try:
        with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError):  # it may be over before they are written
            for request in requests:
                await stream.write(request)
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        pass
    return first[0] if first else (await stream.code(), reason_of(await stream.trailing_metadata()))


def reason_of(trailers: Any) -> str:
    """Of the ErrorInfo among a stream's trailers; empty where there is none."""
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
