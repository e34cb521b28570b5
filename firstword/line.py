"""One stream to one server: what is sent on it, what comes of it, and how it ended. Knows nothing of calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import grpc

from firstword.errors import CLOSED, CallFailed
from firstword.v1 import call_service_pb2 as call_pb

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub

log = logging.getLogger(__name__)

HEARTBEATS_MISSED = 3
"""Intervals without anything from the server, a heartbeat either, after which a line is taken for cut."""

Metadata = tuple[tuple[str, str | bytes], ...]


class Line:
    """Requests are written in the order in which they were sent, by gRPC's own task, so that no cancelled method of a
    call can break the stream in the middle of a message.
    """

    def __init__(self, stub: CallServiceAsyncStub, metadata: Metadata) -> None:
        """Must be made in a running event loop."""
        self._status: CallFailed | None = None
        self._silent: CallFailed | None = None
        self._intervals = 0
        self._watch: asyncio.TimerHandle | None = None
        self._outbox: asyncio.Queue[call_pb.CallRequest | None] = asyncio.Queue()
        self._rpc = stub.Call(self._requests(), metadata=metadata)
        self._rpc.add_done_callback(self._note_status)

    def send(self, request: call_pb.CallRequest) -> None:
        self._outbox.put_nowait(request)

    def send_no_more(self) -> None:
        """All is said."""
        self._outbox.put_nowait(None)

    def cancel(self) -> None:
        """End it at once. Idempotent."""
        self._rpc.cancel()

    def expect(self, interval_s: float) -> None:
        """From now on the server says something at least so often: else the line is cut at this end, and ``read``
        returns. 0: it has promised nothing.
        """
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_later(interval_s, self._tick, interval_s) if interval_s else None

    def _tick(self, interval_s: float) -> None:
        """An interval is over. They are counted, and no time is measured: a client that was frozen itself has missed
        one, and finds what came meanwhile before the next is over.
        """
        self._intervals += 1
        if self._intervals <= HEARTBEATS_MISSED:
            self.expect(interval_s)
            return
        silence = f"nothing was heard of the server for {HEARTBEATS_MISSED} heartbeats"
        self._silent = CallFailed(grpc.StatusCode.UNAVAILABLE, "", silence)
        self._rpc.cancel()

    async def first(self) -> call_pb.CallResponse:
        """The first event. Raises CallFailed where there is none."""
        try:
            response = await self._rpc.read()
        except grpc.aio.AioRpcError as error:
            raise self._ended(error) from None
        if not isinstance(response, call_pb.CallResponse):
            raise self._status or closed()
        return response

    async def read(self, take: Callable[[call_pb.CallResponse], None]) -> CallFailed:
        """Hand on every event, in order, until the end; returns how it ended."""
        try:
            return await self._read_all(take)
        finally:
            self.expect(0.0)

    async def _read_all(self, take: Callable[[call_pb.CallResponse], None]) -> CallFailed:
        try:
            while isinstance(response := await self._rpc.read(), call_pb.CallResponse):
                self._intervals = 0
                take(response)
        except grpc.aio.AioRpcError as error:
            return self._ended(error)
        except asyncio.CancelledError:  # of the stream; the task itself is nobody's to cancel but the loop's
            return self._silent or CallFailed(grpc.StatusCode.CANCELLED, CLOSED, "the client dropped the call")
        except CallFailed as failure:
            self._rpc.cancel()
            return failure
        except Exception:  # whatever it was, nobody may wait for ever
            log.exception("an event of the service cannot be read")
            self._rpc.cancel()
            return CallFailed(grpc.StatusCode.INTERNAL, UNREADABLE, "an event of the service cannot be read")
        await self._rpc.code()
        return self._status or closed()

    async def header(self, name: str) -> Metadata:
        """A header of the answer, to be sent with another stream; none where there was none. To be asked when the
        stream is over.
        """
        told = await self._rpc.initial_metadata()
        return tuple((key, value) for key, value in told or () if key == name)

    async def _requests(self) -> AsyncIterator[call_pb.CallRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    def _ended(self, error: grpc.aio.AioRpcError) -> CallFailed:
        """With what status."""
        return self._status or CallFailed.of(error.code(), error.details() or "", error.trailing_metadata() or ())

    def _note_status(self, rpc: Any) -> None:
        """Keep the status that ended the stream, before gRPC forgets it.

        A write under way when the status arrives fails, and grpc.aio then puts INTERNAL ("Internal error from Core") in
        its place: a client that was refused would not learn why. This runs while the first status is still there, when
        the three coroutines end without waiting for anything; the first call is the one that counts.
        """
        if self._status is not None:
            return
        self.send_no_more()  # nobody takes it: whoever still waits for requests need not
        code, message, trailers = (at_once(about()) for about in (rpc.code, rpc.details, rpc.trailing_metadata))
        ok = code is grpc.StatusCode.OK
        self._status = closed() if ok else CallFailed.of(code, message or "", trailers or ())


UNREADABLE = "UNREADABLE"
"""Reason of a ``CallFailed`` where the client does not understand the service."""


def closed() -> CallFailed:
    return CallFailed(grpc.StatusCode.OK, CLOSED, "the call was closed")


def at_once(waiting: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        waiting.send(None)
    except StopIteration as end:
        return end.value
    finally:
        waiting.close()
    raise RuntimeError("the coroutine waits")
