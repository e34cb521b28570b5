"""The RPC itself: reads a stream's events into a ``Call`` and writes what it says back. No logic of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping

import grpc

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from service import wire
from service.admission import Admission, Seat
from service.call import Call
from service.call_services import CallServices
from service.config import ServerConfig
from service.errors import abort
from service.outbox import Outbox
from service.problems import Problem, Reason
from service.server_events import Draining, Envelope, Notice

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[call_pb.CallRequest, call_pb.CallResponse]


def everybody(metadata: Mapping[str, str]) -> str:
    """The tenant of a stream where nobody says who is who."""
    return ""


class CallServicer(call_service_pb2_grpc.CallServiceServicer):
    """Every call of this process. ``services`` and ``admission`` are set once the model is there; until then calls are
    sent away.

    tenant_of: whose a stream is, by its metadata.
    """

    def __init__(self, config: ServerConfig, tenant_of: Callable[[Mapping[str, str]], str] = everybody) -> None:
        self.services: CallServices | None = None
        self.admission: Admission | None = None
        self._config = config
        self._tenant_of = tenant_of
        self._calls: set[Call] = set()
        self._nobody_calls = asyncio.Event()
        self._nobody_calls.set()
        self._draining = False

    async def Call(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes to the context itself
        self, request_iterator: AsyncIterator[call_pb.CallRequest], context: Context
    ) -> None:
        """One call, from its open event to its end."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        try:
            services, seat = self._admit(self._tenant_of(metadata))
        except Problem as refused:
            await abort(context, refused)
            return
        outbox = Outbox(self._config, lambda slow: call.hold(slow))
        call = Call(services, outbox.put, outbox.end, metadata, seat.open, seat.tenant)
        self._calls.add(call)
        self._nobody_calls.clear()
        reader = asyncio.create_task(_read(request_iterator, call))
        writer = asyncio.create_task(outbox.drain(lambda envelope: _write(context, envelope)))
        given_up = asyncio.create_task(outbox.given_up.wait())
        try:
            await asyncio.wait({writer, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if outbox.given_up.is_set():
                unread = Problem(Reason.CLIENT_NOT_READING, "the client does not read its events")
                call.abandon(unread)
                outbox.end(unread)
        finally:
            # Also where the client has vanished, which cancels this task: its turn stops and its pages return.
            call.disconnect()
            seat.leave()
            self._calls.discard(call)
            if not self._calls:
                self._nobody_calls.set()
            for task in (reader, writer, given_up):
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

    def _admit(self, tenant: str) -> tuple[CallServices, Seat]:
        """What the call is served with, and its place. Raises Problem where it is not taken."""
        if self._draining:
            raise Problem(Reason.DRAINING, "the service is about to stop", retry_after_s=1.0)
        if self.services is None or self.admission is None:
            raise Problem(Reason.ENGINE_UNAVAILABLE, "the model is being loaded", retry_after_s=1.0)
        return self.services, self.admission.take(tenant)


async def _write(context: Context, envelope: Envelope) -> None:
    await context.write(wire.response(envelope))


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
