"""The RPC itself: reads a stream's events into a ``Call`` and writes what it says back. No logic of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

import grpc

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from service import wire
from service.call import Call
from service.call_services import CallServices
from service.config import ServerConfig
from service.errors import abort
from service.problems import Problem, Reason
from service.server_events import Draining, Envelope, Notice

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[call_pb.CallRequest, call_pb.CallResponse]


class Outbox:
    """What a call has said and the stream has not taken yet. Bounded: a client that does not read loses its call."""

    def __init__(self, max_events: int) -> None:
        self._queue: deque[Envelope] = deque()
        self._max = max_events
        self._news = asyncio.Event()
        self._ended = False
        self.problem: Problem | None = None
        self.overrun = asyncio.Event()

    def put(self, envelope: Envelope) -> None:
        if len(self._queue) >= self._max:
            self.overrun.set()
            return
        self._queue.append(envelope)
        self._news.set()

    def end(self, problem: Problem | None) -> None:
        """Nothing more will be put. ``problem``: what the stream ends with; None for OK."""
        self._ended = True
        self.problem = problem
        self._news.set()

    async def drain(self, context: Context) -> None:
        """Write everything, until the end."""
        while True:
            while self._queue:
                await context.write(wire.response(self._queue.popleft()))
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


class CallServicer(call_service_pb2_grpc.CallServiceServicer):
    """Every call of this process. ``services`` is set once the model is there; until then calls are sent away."""

    def __init__(self, config: ServerConfig) -> None:
        self.services: CallServices | None = None
        self._config = config
        self._calls: set[Call] = set()
        self._nobody_calls = asyncio.Event()
        self._nobody_calls.set()
        self._draining = False

    async def Call(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes to the context itself
        self, request_iterator: AsyncIterator[call_pb.CallRequest], context: Context
    ) -> None:
        """One call, from its open event to its end."""
        if isinstance(services := self._admit(), Problem):
            await abort(context, services)
            return
        outbox = Outbox(self._config.max_queued_events)
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        call = Call(services, outbox.put, outbox.end, metadata)
        self._calls.add(call)
        self._nobody_calls.clear()
        reader = asyncio.create_task(_read(request_iterator, call))
        writer = asyncio.create_task(outbox.drain(context))
        overrun = asyncio.create_task(outbox.overrun.wait())
        try:
            await asyncio.wait({writer, overrun}, return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                call.abandon(Problem(Reason.CLIENT_NOT_READING, "the client does not read its events"))
        finally:
            # Also where the client has vanished, which cancels this task: its turn stops and its pages return.
            call.disconnect()
            self._calls.discard(call)
            if not self._calls:
                self._nobody_calls.set()
            for task in (reader, writer, overrun):
                task.cancel()
        if outbox.problem is not None:
            await abort(context, outbox.problem)

    async def drain(self, grace_s: float) -> None:
        """Take no more calls, tell the open ones how long they may go on, and end what is left then."""
        self._draining = True
        log.info("draining", extra={"calls": len(self._calls), "grace_s": grace_s})
        self.notify(Draining(round(grace_s * 1000)))
        try:
            await asyncio.wait_for(self._nobody_calls.wait(), grace_s)
        except TimeoutError:
            for call in list(self._calls):
                call.abandon(Problem(Reason.DRAINING, "the service stops", retry_after_s=1.0))

    def notify(self, notice: Notice) -> None:
        """Tell every open call."""
        for call in list(self._calls):
            call.notify(notice)

    def _admit(self) -> CallServices | Problem:
        if self._draining:
            return Problem(Reason.DRAINING, "the service is about to stop", retry_after_s=1.0)
        if self.services is None:
            return Problem(Reason.ENGINE_UNAVAILABLE, "the model is being loaded", retry_after_s=1.0)
        if len(self._calls) >= self._config.max_calls:
            return Problem(Reason.TOO_MANY_CALLS, f"{self._config.max_calls} calls are open", retry_after_s=5.0)
        return self.services


async def _read(requests: AsyncIterator[call_pb.CallRequest], call: Call) -> None:
    """Hand every request to the call. A client that sends no more may still be waiting for a reply."""
    try:
        async for request in requests:
            call.handle(request.client_seq, wire.client_event(request))
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.warning("stream broke off", extra={"session": call.session, "cause": type(error).__name__})
        call.disconnect()
    else:
        call.no_more_events()
