"""The stream of one call: numbers what goes out, keeps the books of what comes in, and knows how it ended.

Knows nothing of turns. One task reads; requests are written in the order in which they were sent, by gRPC's own task,
so that no cancelled method of a call can break the stream in the middle of a message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import grpc

from firstword.errors import CLOSED, CallFailed
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub

log = logging.getLogger(__name__)

ACKNOWLEDGE_EVERY = 64
"""Server events. The service keeps what is not acknowledged, for a client that comes back."""

MAX_RECORDS = 8192
"""Records kept for a service whose store does not keep up; the oldest go first."""

CLOSE_TIMEOUT_S = 5.0


class CallStream:
    """One bidirectional stream.

    on_response: takes each server event, in order, but for those of a server that lost the call. on_end: called once,
    with how the stream ended.

    failure: how it ended; None: it has not. seq: highest ``CallResponse.seq`` received. generation: the highest one
    seen. records: by ``seq``, those that the service's store does not hold yet.
    """

    def __init__(
        self, on_response: Callable[[call_pb.CallResponse], None], on_end: Callable[[CallFailed], None]
    ) -> None:
        self.failure: CallFailed | None = None
        self.seq = 0
        self.generation = 0
        self.records: OrderedDict[int, bytes] = OrderedDict()
        self._on_response = on_response
        self._on_end = on_end
        self._client_seq = 0
        self._acknowledged = 0
        self._closing = False
        self._status: CallFailed | None = None
        self._outbox: asyncio.Queue[call_pb.CallRequest | None] = asyncio.Queue()

    def start(self, stub: CallServiceAsyncStub, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        """Begin to read and to write. Must be called in a running event loop."""
        self._rpc = stub.Call(self._requests(), metadata=metadata)
        self._rpc.add_done_callback(self._note_status)
        self._reader = asyncio.create_task(self._read())

    def send(self, **event: Any) -> int:
        """Queue a client event; returns its number. Raises CallFailed when the call is over."""
        if self.failure is not None:
            raise self.failure
        if self._closing:
            raise _closed()
        self._client_seq += 1
        self._outbox.put_nowait(call_pb.CallRequest(client_seq=self._client_seq, **event))
        return self._client_seq

    async def close(self) -> None:
        """End the call in order: all that was sent is handled first. Idempotent."""
        if not self._closing and self.failure is None:
            self.send(close=client_pb.Close())
            self._closing = True
            self._outbox.put_nowait(None)
        try:
            await asyncio.wait({self._reader}, timeout=CLOSE_TIMEOUT_S)
        finally:
            await self.abort()

    async def abort(self) -> None:
        """End the stream at once. Idempotent."""
        self._closing = True
        self._rpc.cancel()
        await asyncio.wait({self._reader})

    async def _requests(self) -> AsyncIterator[call_pb.CallRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for response in self._rpc:
                self._take(response)
            failure = _closed()
        except grpc.aio.AioRpcError:
            failure = self._status or _closed()
        except asyncio.CancelledError:  # of the stream; this task itself is nobody's to cancel but the loop's
            failure = CallFailed(grpc.StatusCode.CANCELLED, CLOSED, "the client dropped the call")
        except Exception:  # whatever it was, nobody may wait for ever
            log.exception("an event of the service cannot be read")
            failure = CallFailed(grpc.StatusCode.INTERNAL, "", "an event of the service cannot be read")
            self._rpc.cancel()
        self.failure = failure
        self._on_end(failure)

    def _note_status(self, rpc: Any) -> None:
        """Keep the status that ended the stream, before gRPC forgets it.

        A write under way when the status arrives fails, and grpc.aio then puts INTERNAL ("Internal error from Core") in
        its place: a client that was refused would not learn why. This runs while the first status is still there, when
        the three coroutines end without waiting for anything; the first call is the one that counts.
        """
        if self._status is not None:
            return
        code, message, trailers = (_at_once(about()) for about in (rpc.code, rpc.details, rpc.trailing_metadata))
        ok = code is grpc.StatusCode.OK
        self._status = _closed() if ok else CallFailed.of(code, message or "", trailers or ())

    def _take(self, response: call_pb.CallResponse) -> None:
        """Keep the books of the envelope, and hand the event on."""
        if response.generation < self.generation:
            return
        self.generation = response.generation
        self.seq = response.seq
        if response.record:
            self.records[response.seq] = response.record
        while self.records and (next(iter(self.records)) <= response.durable_seq or len(self.records) > MAX_RECORDS):
            self.records.popitem(last=False)
        self._on_response(response)
        if self.seq - self._acknowledged >= ACKNOWLEDGE_EVERY and not self._closing:
            self._acknowledged = self.seq
            # Not numbered, for after a resume it would be no use to send it again.
            self._outbox.put_nowait(call_pb.CallRequest(acknowledge=client_pb.Acknowledge(seq=self.seq)))


def _at_once(waiting: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        waiting.send(None)
    except StopIteration as end:
        return end.value
    finally:
        waiting.close()
    raise RuntimeError("the coroutine waits")


def _closed() -> CallFailed:
    return CallFailed(grpc.StatusCode.OK, CLOSED, "the call was closed")
