"""The events of one call, on whichever stream they go: a stream that breaks is replaced, and nobody above is told.

A server that dies, one that goes, one that does not answer, and a line that is cut are all the same here: another
stream is opened with what the call's books hold, and what no server has had is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from firstword.books import Books
from firstword.errors import CLOSED, CallFailed
from firstword.line import Line, Metadata, closed
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import notices_pb2 as notices_pb

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub

log = logging.getLogger(__name__)

ACKNOWLEDGE_EVERY = 64
"""Server events. The service keeps what is not acknowledged, for a client that comes back."""

CLOSE_TIMEOUT_S = 5.0
DROP_TIMEOUT_S = 0.3
"""How long a call that is dropped waits for the service to know."""
OPENED_TIMEOUT_S, MAX_OPENED_TIMEOUT_S = 5.0, 60.0
"""How long a server may take to say that it goes on with the call: at the first try, and at a later one."""
OPENING_TIMEOUT_S = 10.0
"""How long it may take to open a call. There is one try: a call that was asked for twice may be there twice."""
WARM_TIMEOUT_S = 1.0
"""How long the one that is warm for it may take, before another takes the call from it."""
MOVED_WITHIN_S, MOVED_WITHIN = 5.0, 0.25
"""In which time, and in which part of the time that its server gives it, a call in which nothing is said leaves a
server that goes. Each at a moment of its own: all that come to another one are prefilled there.
"""
BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0

MOST_IN_VAIN = 5
"""Streams one after the other that bring nothing new, after which the call has failed: it may be the call itself that
no server survives.
"""
GOOD_S = 5.0
"""A stream that has lasted so long while nothing was to be said was none of these."""

SUPERSEDED, WARM_ELSEWHERE = "SUPERSEDED", "WARM_ELSEWHERE"
PASSING = frozenset(
    {
        "",
        "AUTHENTICATION_UNAVAILABLE",
        "CLIENT_NOT_READING",
        "DRAINING",
        "ENGINE_BUSY",
        "ENGINE_UNAVAILABLE",
        "MOVED",
        "PAGES_COMMITTED",
        "STORE_UNAVAILABLE",
        "SUPERSEDED",
        "TENANT_ABOVE_SHARE",
        "TENANT_TOO_MANY_CALLS",
        "TOO_MANY_CALLS",
        "WARM_ELSEWHERE",
    }
)
"""Reasons for which a call is tried elsewhere, or again; without one it is a stream that broke."""
_UNTAKEN = frozenset(
    {
        "AUTHENTICATION_UNAVAILABLE",
        "DRAINING",
        "ENGINE_BUSY",
        "ENGINE_UNAVAILABLE",
        "TENANT_TOO_MANY_CALLS",
        "TOO_MANY_CALLS",
        "WARM_ELSEWHERE",
    }
)
"""Of these, the ones for which a server leaves the call to whoever has it. For any other it may have taken it."""
_BROKEN = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def _passing(failure: CallFailed) -> bool:
    """Whether another stream may fare better. Not where a message was too large, which is all that gRPC itself says
    RESOURCE_EXHAUSTED for: the next server would have the same one.
    """
    too_large = failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not failure.reason
    return failure.code in _BROKEN and failure.reason in PASSING and not too_large


def unanswered() -> CallFailed:
    """A server has the request, perhaps, and says nothing."""
    return CallFailed(grpc.StatusCode.UNAVAILABLE, "", "the server does not answer")


Dial = Callable[[str], "CallServiceAsyncStub"]
"""A stub for an address; for the empty one, wherever the client's target leads."""


class CallStream:
    """The stream of one call, or those that follow each other.

    on_response: takes each server event, in order and once. on_end: called once, with how the call ended. is_quiet:
    whether no turn is in progress. resume_timeout_s: how long the call may be without a server. affinity_header: which
    a gateway gives with a stream, and which leads to the same server where it is given back.

    failure: how it ended; None: it has not. resumes: how often another stream has taken over.
    """

    def __init__(
        self,
        on_response: Callable[[call_pb.CallResponse], None],
        on_end: Callable[[CallFailed], None],
        is_quiet: Callable[[], bool],
        resume_timeout_s: float,
        affinity_header: str,
    ) -> None:
        self.failure: CallFailed | None = None
        self.resumes = 0
        self.books = Books()
        self._on_response = on_response
        self._on_end = on_end
        self._is_quiet = is_quiet
        self._resume_timeout_s = resume_timeout_s
        self._affinity_header = affinity_header
        self._affinity: Metadata = ()
        self._acknowledged = 0
        self._closing = False
        self._dropped = False
        self._successor = ""
        self._moving = False
        self._due: Line | None = None
        """The one that is to be left as soon as nothing is said."""
        self._line: Line | None = None
        """The one that is in use; None while there is none."""
        self._early: list[call_pb.CallRequest] = []

    def start(self, dial: Dial, metadata: Callable[[], Metadata]) -> None:
        """Begin to read and to write. Must be called in a running event loop. metadata: gives what each stream opens
        with. Raises CallFailed where that is not to be had.
        """
        self._dial = dial
        self._metadata = metadata
        self._line = line = Line(dial(""), metadata())
        for request in self._early:
            line.send(request)
        self._runner = asyncio.create_task(self._run(line))

    def send(self, **event: Any) -> int:
        """Queue a client event; returns its number. Raises CallFailed when the call is over."""
        if self.failure is not None:
            raise self.failure
        if self._closing:
            raise closed()
        request = self.books.number(**event)
        if self._line is not None:
            self._line.send(request)
        elif "open" in event:
            self._early.append(request)
        return request.client_seq

    async def close(self) -> None:
        """End the call in order: all that was sent is handled first. Idempotent."""
        if not self._closing and self.failure is None:
            self.send(close=client_pb.Close())
            self._closing = True
            if self._line is not None:
                self._line.send_no_more()
        try:
            await asyncio.wait({self._runner}, timeout=CLOSE_TIMEOUT_S)
        finally:
            await self.abort()

    async def abort(self) -> None:
        """End the stream at once. Idempotent."""
        if self._line is not None and not self._closing and not self._runner.done():
            # Else the service would keep the call for a client that may come back.
            self._line.send(self.books.number(close=client_pb.Close()))
            self._line.send_no_more()
            self._closing = self._dropped = True
            await asyncio.wait({self._runner}, timeout=DROP_TIMEOUT_S)
        self._closing = self._dropped = True
        if self._line is not None:
            self._line.cancel()
        else:
            self._runner.cancel()
        await asyncio.wait({self._runner})

    async def _run(self, line: Line) -> None:
        """One stream after the other, until the call is over."""
        failure, in_vain = closed(), 0
        try:
            while True:
                known, began = self.books.seq, time.monotonic()
                failure = await line.read(self._take)
                self._line = None
                # A gateway tells it where it has chosen, and not where it was asked for what it would have chosen.
                self._affinity = await line.header(self._affinity_header) or self._affinity
                was_good = self.books.seq > known or (self._is_quiet() and time.monotonic() - began > GOOD_S)
                in_vain = 0 if was_good else in_vain + 1
                if self._dropped:
                    failure = CallFailed(grpc.StatusCode.CANCELLED, CLOSED, "the client dropped the call")
                if not self._may_go_on(failure) or in_vain > MOST_IN_VAIN:
                    break
                if in_vain:
                    await asyncio.sleep(random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, BACKOFF_S * 2**in_vain))
                log.info("the stream of the call broke, going on: %s", failure)
                line = await self._go_on(failure)
                self.resumes += 1
        except CallFailed as final:
            failure = final
        except Exception:  # whatever it was, nobody may wait for ever
            log.exception("the call cannot go on")
            failure = CallFailed(grpc.StatusCode.INTERNAL, "", "the client failed")
        except asyncio.CancelledError:
            failure = CallFailed(grpc.StatusCode.CANCELLED, CLOSED, "the client dropped the call")
        self.failure = failure
        self._on_end(failure)

    def _may_go_on(self, failure: CallFailed) -> bool:
        """Whether the call may be had on another stream."""
        if self._moving:
            return not self._dropped
        wanted = not self._dropped and self._resume_timeout_s > 0 and bool(self.books.token)
        return wanted and _passing(failure)

    async def _go_on(self, failure: CallFailed) -> Line:
        """A stream on which the call goes on. Raises CallFailed where there is none in time, or will be none."""
        # A call that leaves a server which is there has time for a try, also where it would not go on otherwise.
        until = time.monotonic() + max(self._resume_timeout_s, OPENED_TIMEOUT_S if self._moving else 0.0)
        address, self._successor, self._moving = self._successor, "", False
        pinned: Metadata = () if address else self._affinity
        take_over, attempt = False, 0
        while True:
            try:
                cold_s = min(OPENED_TIMEOUT_S * 2**attempt, MAX_OPENED_TIMEOUT_S)
                patience_s = min(WARM_TIMEOUT_S if address or pinned else cold_s, until - time.monotonic())
                return await self._resume(address, take_over, patience_s, pinned)
            except CallFailed as refused:
                failure = refused
                if refused.reason in _UNTAKEN:
                    self.books.refused()
            if not _passing(failure):
                raise failure
            if failure.reason == SUPERSEDED:
                self.books.superseded(int(failure.metadata.get("generation", 0)))
            if was_pinned := bool(pinned):
                self._affinity = pinned = ()
            if address:  # whoever should be warm is not
                address, take_over = "", True
                continue
            if failure.reason == WARM_ELSEWHERE and not take_over:
                address = failure.metadata.get("address", "")
                take_over = not address
                continue
            if was_pinned:
                continue
            wait = random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, BACKOFF_S * 2**attempt)
            attempt += 1
            if time.monotonic() + wait > until:
                raise failure
            await asyncio.sleep(wait)

    async def _resume(self, address: str, take_over: bool, patience_s: float, pinned: Metadata) -> Line:
        """Try one server. Raises CallFailed."""
        line = Line(self._dial(address), (*self._metadata(), *pinned))
        try:
            line.send(self.books.resume(take_over=take_over))
            async with asyncio.timeout(patience_s):
                response = await line.first()
            again = self.books.resumed(response)
        except BaseException as error:
            line.cancel()
            if isinstance(error, TimeoutError):
                raise unanswered() from None
            raise
        for request in again:
            line.send(request)
        self._line = line
        if self._closing:
            line.send_no_more()
        self._expect(response)
        self._on_response(response)
        return line

    def _take(self, response: call_pb.CallResponse) -> None:
        """Keep the books, and hand the event on."""
        if self._moving:
            return
        if response.WhichOneof("event") == "heartbeat":
            self._acknowledge()  # proxies that end idle streams count either direction by itself
            return
        if not self.books.take(response):
            return
        self._expect(response)
        self._on_response(response)
        if response.notice.WhichOneof("kind") == "draining":
            self._note_draining(response.notice.draining)
        if self._line is None or self._closing:
            return
        if self._due is self._line and self._is_quiet():
            self._move(self._line)
        elif self.books.seq - self._acknowledged >= ACKNOWLEDGE_EVERY:
            self._acknowledge()

    def _note_draining(self, draining: notices_pb.Draining) -> None:
        """The server goes."""
        self._successor = draining.successor_address
        if self._successor:
            within_s = min(MOVED_WITHIN_S, MOVED_WITHIN * draining.grace_ms / 1000)
            asyncio.get_running_loop().call_later(random.uniform(0.0, within_s), self._come_due, self._line)

    def _come_due(self, line: Line | None) -> None:
        """It is time to leave a line, if it is still there."""
        if line is None or line is not self._line:
            return
        self._due = line
        if not self._closing and self._is_quiet():
            self._move(line)

    def _move(self, line: Line) -> None:
        """Leave it for the server that was named."""
        self._moving = True  # what this server still says is said again by the next one
        line.cancel()

    def _acknowledge(self) -> None:
        """Tell the server what it need not keep any more."""
        if self._line is None or self._closing:
            return
        self._acknowledged = self.books.seq
        # Not numbered, for after a resume it would be no use to send it again.
        self._line.send(call_pb.CallRequest(acknowledge=client_pb.Acknowledge(seq=self.books.seq)))

    def _expect(self, response: call_pb.CallResponse) -> None:
        """Have the line take the server's silence for its end, where the server has said that it will not be silent."""
        if self._line is not None and response.WhichOneof("event") == "opened":
            self._line.expect(response.opened.heartbeat_interval_ms / 1000)
