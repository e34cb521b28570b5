"""The RPC itself: reads a stream's events into a ``Call`` and writes what it says back. No logic of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import repeat

import grpc
from google.protobuf.message import DecodeError

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from service import wire
from service.admission import Admission, Seat
from service.call import Call
from service.call_services import CallServices
from service.client_events import Resume
from service.config import ServerConfig
from service.errors import abort
from service.outbox import Outbox
from service.problems import Problem, Reason
from service.rate import TokenBucket
from service.resumption import resumed
from service.security.identity import everybody
from service.server_events import Draining, Envelope, Notice, Opened
from service.store import StoreUnavailable

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[call_pb.CallRequest, call_pb.CallResponse]

HALF_CLOSED_S = 0.25
"""How long after the last request it is clear that the client has said all, and has not gone."""

OneCall = Call
"""The servicer's own ``Call`` is the RPC."""


TRACE_CONTEXT = frozenset({"traceparent", "tracestate"})
"""What a call is told of its stream's metadata: credentials are none of its business."""

SEATS_WANTED = frozenset({Reason.TOO_MANY_CALLS, Reason.TENANT_TOO_MANY_CALLS, Reason.TENANT_ABOVE_SHARE})
"""Why a call is refused that could be taken if another one ended."""


class CallServicer(call_service_pb2_grpc.CallServiceServicer):
    """Every call of this process. ``services`` and ``admission`` are set once the model is there; until then calls are
    sent away.

    tenant_of: whose the stream is that is being served (``Security.tenant_of_stream``).
    """

    def __init__(self, config: ServerConfig, tenant_of: Callable[[], str] = everybody) -> None:
        self.services: CallServices | None = None
        self.admission: Admission | None = None
        self._config = config
        self._tenant_of = tenant_of
        self._streams: set[Outbox] = set()
        self._nobody_calls = asyncio.Event()
        self._nobody_calls.set()
        self._draining = False
        self._ends_at = 0.0
        self._successors: Iterator[str] | None = None
        """For calls that come back to a server that has told the others to leave; None before that."""

    @property
    def load(self) -> tuple[int, int]:
        """(calls that are held, calls that can be held)"""
        admission = self.admission
        return (0, 0) if admission is None else (admission.seats, admission.max_calls)

    @property
    def tenants(self) -> Mapping[str, int]:
        """Calls that are held, by tenant."""
        return {} if self.admission is None else self.admission.seats_of

    async def Call(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes to the context itself
        self, request_iterator: AsyncIterator[call_pb.CallRequest], context: Context
    ) -> None:
        """One stream: a call from its open event on, or from where the client comes back to it."""
        told = context.invocation_metadata() or ()
        metadata = {key: value for key, value in told if key in TRACE_CONTEXT and isinstance(value, str)}
        call: OneCall | None = None

        def hold(slow: bool) -> None:
            if call is not None and call.serves(outbox.end):
                call.hold(slow)

        outbox = Outbox(self._config, hold)
        try:
            call = await self._begun(request_iterator, outbox, metadata)
        except Problem as refused:
            await abort(context, refused)
        except Exception:  # gRPC would tell the client what it says
            log.exception("a stream could not begin")
            await abort(context, Problem(Reason.INTERNAL, "the service failed on this event"))
        else:
            if call is not None:
                call.hold(outbox.slow)
                self._note_late(call)
                await self._carry(call, outbox, request_iterator, context)
            if outbox.problem is not None:
                await abort(context, outbox.problem)
        finally:
            self._streams.discard(outbox)
            if not self._streams:
                self._nobody_calls.set()

    async def _begun(
        self, requests: AsyncIterator[call_pb.CallRequest], outbox: Outbox, metadata: Mapping[str, str]
    ) -> OneCall | None:
        """The call that the stream's first request opens or resumes; None where there is no request. Raises Problem
        where it is not taken.
        """
        tenant = self._tenant_of()
        self._serving()
        request = await self._first(requests)
        if request is None:
            return None
        services = self._serving()  # it may have begun to drain meanwhile
        self._streams.add(outbox)
        self._nobody_calls.clear()
        event = wire.client_event(request)

        def make() -> OneCall:
            seat = self._seat(services, tenant, resumed=isinstance(event, Resume))
            return Call(services, outbox.put, outbox.end, metadata, seat.open, seat.leave, tenant)

        if isinstance(event, Resume):
            return await resumed(services, event, tenant, outbox.put, outbox.end, make)
        assert self.admission is not None
        self.admission.ask(tenant)
        call = make()
        call.handle(request.client_seq, event)
        return call

    async def _first(self, requests: AsyncIterator[call_pb.CallRequest]) -> call_pb.CallRequest | None:
        """The first request; None where there is none. Raises Problem where it cannot be read, or does not come: a
        stream that says nothing has no seat, and must not be held open for nothing.
        """
        limit = self._config.first_event_s
        try:
            async with asyncio.timeout(limit):
                return await anext(aiter(requests), None)
        except TimeoutError:
            raise Problem(Reason.CALL_IDLE, f"no first event within {limit:g} s") from None
        except DecodeError:
            raise unreadable() from None

    async def _carry(
        self, call: OneCall, outbox: Outbox, requests: AsyncIterator[call_pb.CallRequest], context: Context
    ) -> None:
        """Carry a call's events both ways, until one side has no more."""
        reader = asyncio.create_task(_read(requests, call, outbox))
        writer = asyncio.create_task(outbox.drain(lambda envelope: self._write(context, envelope)))
        given_up = asyncio.create_task(outbox.given_up.wait())
        try:
            await asyncio.wait({writer, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if outbox.given_up.is_set():
                unread = Problem(Reason.CLIENT_NOT_READING, "the client does not read its events")
                if call.serves(outbox.end):  # else the client is back on another stream, and reads there
                    call.abandon(unread, "elsewhere")
                outbox.end(unread)
        finally:
            # Also where the client has vanished, which cancels this task.
            call.detach(outbox.end)
            for task in (reader, writer, given_up):
                task.cancel()

    async def _write(self, context: Context, envelope: Envelope) -> None:
        response = wire.response(envelope)
        if isinstance(envelope.event, Opened):  # how often a stream is heard of is the server's, and not the call's
            response.opened.heartbeat_interval_ms = round(self._config.heartbeat_s * 1000)
        await context.write(response)

    async def drain(self, grace_s: float) -> None:
        """Take no more calls, tell the open ones how long they may go on, and end what is left then: where there is a
        store, or the client holds the records, it goes on elsewhere.
        """
        self._draining = True
        calls = self._live
        log.info("draining", extra={"calls": len(calls), "grace_s": grace_s})
        successors: Iterator[str] = repeat("")
        if self.services is not None:
            await self.services.store.drain()
            with contextlib.suppress(StoreUnavailable):
                successors = await self.services.store.successors()
        self._end(call for call in calls if not call.attended)
        self._successors, self._ends_at = successors, time.monotonic() + grace_s
        self._notify(Draining(round(grace_s * 1000), successor) for successor in successors)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody_calls.wait(), grace_s)
        self._end(self._live)

    def _note_late(self, call: OneCall) -> None:
        """Tell a call to leave that came back to this server when the others were told already."""
        if self._successors is not None:
            left_s = max(0.0, self._ends_at - time.monotonic())
            call.notify(Draining(round(left_s * 1000), next(self._successors)))

    def notify(self, notice: Notice) -> None:
        """Tell every open call."""
        self._notify(repeat(notice))

    def _notify(self, notices: Iterable[Notice]) -> None:
        """Tell each open call one of them; there are enough."""
        for call, notice in zip(self._live, notices, strict=False):
            call.notify(notice)

    @property
    def _live(self) -> list[OneCall]:
        """The calls that there are."""
        return [] if self.services is None else list(self.services.live.values())

    def _end(self, calls: Iterable[OneCall]) -> None:
        for call in calls:
            call.abandon(Problem(Reason.DRAINING, "the service stops", retry_after_s=0.0), "elsewhere")

    def _serving(self) -> CallServices:
        """What calls are served with. Raises Problem where none is taken."""
        if self._draining:
            raise Problem(Reason.DRAINING, "the service is about to stop", retry_after_s=1.0)
        if self.services is None or self.admission is None:
            raise Problem(Reason.ENGINE_UNAVAILABLE, "the model is being loaded", retry_after_s=1.0)
        return self.services

    def _seat(self, services: CallServices, tenant: str, *, resumed: bool) -> Seat:
        """A place for a call. Raises Problem where there is none: whoever is there goes before who may come back, of
        the same tenant first, and nobody goes for one who would be refused all the same.
        """
        assert self.admission is not None
        try:
            return self.admission.take(tenant, resumed=resumed)
        except Problem as refused:
            if refused.reason not in SEATS_WANTED:
                raise
            anybodys = refused.reason is Reason.TOO_MANY_CALLS
            unattended = (call for call in services.live.values() if not call.attended)
            left = [call for call in unattended if anybodys or call.tenant == tenant]
            for call in sorted(left, key=lambda call: call.tenant != tenant):
                if self.admission.would_seat(tenant, call.tenant, resumed=resumed):
                    call.disconnect()
                    return self.admission.take(tenant, resumed=resumed)
            raise


def unreadable() -> Problem:
    """A request is no message of the contract."""
    return Problem(Reason.INVALID_FIELD, "the request is no firstword.v1.CallRequest")


async def _read(requests: AsyncIterator[call_pb.CallRequest], call: Call, outbox: Outbox) -> None:
    """Hand every request to the call, no faster than its client may send them: what comes too fast waits in the
    connection, whose window is soon full. A client that sends no more may still be waiting for a reply.
    """
    rate = call.services.max_events_per_s(call.tenant)
    pace, slowed = TokenBucket(rate, 2 * rate), False
    try:
        async for request in requests:
            while wait := pace.take(time.monotonic()):
                if not slowed:
                    slowed = True
                    call.services.telemetry.slowed()
                    log.warning("client sends too fast", extra={"session": call.session, "events_per_s": rate})
                await asyncio.sleep(wait)
            call.handle(request.client_seq, wire.client_event(request))
    except asyncio.CancelledError:
        raise
    except DecodeError:
        if call.serves(outbox.end):  # else the client is back on another stream, which is none the worse for it
            call.abandon(unreadable())
        outbox.end(unreadable())
    except Exception as error:
        log.warning("stream broke off", extra={"session": call.session, "cause": type(error).__name__})
        call.detach(outbox.end)
        outbox.end(None)
    else:
        # A stream that broke ends in the same way, but for the RPC being cancelled, which cancels this task too.
        await asyncio.sleep(HALF_CLOSED_S)
        if call.serves(outbox.end):
            call.no_more_events()
