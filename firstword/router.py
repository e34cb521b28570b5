"""Which turn, or which waiting method, each answer of the service belongs to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from firstword import wire
from firstword.errors import CallError, CallFailed
from firstword.events import Generated, HistoryCause, HistoryChanged, Interrupted, Notice, Opened, TurnEvent
from firstword.turn import Turn
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import server_events_pb2 as server_pb

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Request:
    """An event that asked for a turn, or that belongs to one. before: the newest turn until then."""

    turn: Turn
    asks: bool
    before: Turn | None = None


@dataclass
class _Interrupt:
    turn_id: int
    answer: asyncio.Future[Interrupted]


@dataclass
class _Edit:
    """An event that changes the history, and its answer."""

    cause: HistoryCause
    answer: asyncio.Future[HistoryChanged]


class Router:
    """Takes every server event of one call.

    on_notice: sees notices, and refusals that nothing waits for; without it those are logged. turn: the newest one that
    was not refused. Must be made in a running event loop.
    """

    def __init__(self, on_notice: Callable[[Notice | CallError], object] | None) -> None:
        self.turn: Turn | None = None
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._on_notice = on_notice
        self._turns: dict[int, Turn] = {}
        self._requests: dict[int, _Request] = {}
        self._interrupts: dict[int, _Interrupt] = {}
        self._questions: dict[int, asyncio.Future[Generated]] = {}
        self._edits: dict[int, _Edit] = {}

    # What is sent, by its number

    def begin(self, client_seq: int, turn: Turn) -> None:
        """An event was sent that asks for a turn."""
        # Of the turns before it only those that are not over can still be told anything, and the newest.
        self._turns = {old.id: old for old in self._turns.values() if not old.over or old is self.turn}
        self._turns[turn.id] = turn
        self._requests = {seq: sent for seq, sent in self._requests.items() if sent.turn.id in self._turns}
        self._requests[client_seq] = _Request(turn, asks=True, before=self.turn)
        self.turn = turn

    def belongs(self, client_seq: int, turn_id: int) -> None:
        """An event was sent that has no answer, but may be refused; that is for whoever follows the turn."""
        if turn_id in self._turns:
            self._requests[client_seq] = _Request(self._turns[turn_id], asks=False)

    async def cut(self, client_seq: int, turn_id: int) -> Interrupted:
        """The answer to an interrupt that was sent. Raises CallError for a refusal, CallFailed when the call breaks."""
        answer: asyncio.Future[Interrupted] = asyncio.get_running_loop().create_future()
        self._interrupts[client_seq] = _Interrupt(turn_id, answer)
        try:
            return await answer
        finally:
            del self._interrupts[client_seq]

    async def edited(self, client_seq: int, cause: HistoryCause) -> HistoryChanged:
        """The answer to an edit of the history that was sent. Raises CallError for a refusal, CallFailed when the call
        breaks.
        """
        self._edits[client_seq] = edit = _Edit(cause, asyncio.get_running_loop().create_future())
        return await edit.answer  # one that is not waited for any more still has its answer, which is nobody else's

    async def answered(self, request_id: int) -> Generated:
        """The answer to a side question that was sent. Raises CallError where there is none, CallFailed when the call
        breaks.
        """
        self._questions[request_id] = asyncio.get_running_loop().create_future()
        try:
            return await self._questions[request_id]
        finally:
            del self._questions[request_id]

    def is_quiet(self) -> bool:
        """Whether nothing is waited for. What was answered is not, also where who waits has not run since."""
        return all(answer.done() for answer in self._answers()) and all(turn.over for turn in self._turns.values())

    # What is received

    def receive(self, response: call_pb.CallResponse) -> None:
        """Take one server event. One that this version does not know, or that nobody waits for, is dropped."""
        now = time.perf_counter()
        match response.WhichOneof("event"):
            case "opened":
                _give(self.opened, wire.opened(response.opened))
            case "text_delta":
                self._pass(wire.text_delta(response.text_delta, now))
            case "tool_called":
                self._pass(wire.tool_call(response.tool_called, now))
            case "turn_waiting":
                self._pass(wire.waiting(response.turn_waiting))
            case "turn_ended":
                if (turn := self._turns.get(response.turn_ended.turn_id)) is not None:
                    turn.end(wire.turn_report(response.turn_ended))
            case "interrupted":
                self._interrupted(response.interrupted, response.client_seq)
            case "history_changed":
                self._changed(wire.history_changed(response.history_changed))
            case "generated":
                if (answer := self._questions.get(response.generated.request_id)) is not None:
                    _give(answer, wire.generated(response.generated))
            case "notice":
                self._notice(response.notice)
            case "error":
                error = CallError.of(response.error)
                if response.error.HasField("request_id"):  # of one that was dropped nobody wants to know
                    if (answer := self._questions.get(response.error.request_id)) is not None:
                        _refuse(answer, error)
                else:
                    self._error(error, response.error.client_seq)

    def end(self, failure: CallFailed) -> None:
        """The stream is over: nobody waits any longer."""
        for turn in self._turns.values():
            turn.end(error=failure)
        for answer in (self.opened, *self._answers()):
            _refuse(answer, failure)

    def _answers(self) -> Iterator[asyncio.Future[Any]]:
        """Of all that asks for one but turns."""
        yield from self._questions.values()
        yield from (interrupt.answer for interrupt in self._interrupts.values())
        yield from (edit.answer for edit in self._edits.values())

    def _pass(self, event: TurnEvent) -> None:
        if event.turn_id is not None and (turn := self._turns.get(event.turn_id)) is not None:
            turn.receive(event)

    def _interrupted(self, message: server_pb.Interrupted, client_seq: int) -> None:
        """Tell the turn, and the oldest interrupt of it if the service had that by then: a newer turn cuts one too."""
        event = wire.interrupted(message)
        self._pass(event)
        for seq, interrupt in self._interrupts.items():
            if interrupt.turn_id == event.turn_id and seq <= client_seq and not interrupt.answer.done():
                interrupt.answer.set_result(event)
                return

    def _changed(self, change: HistoryChanged) -> None:
        """For who asked for it first; edits of one kind come into force in the order in which they were sent."""
        for seq, edit in self._edits.items():
            if edit.cause is change.cause:
                del self._edits[seq]
                _give(edit.answer, change)
                return

    def _notice(self, message: notices_pb.Notice) -> None:
        """Tell the turn that it is about, or else the one in progress, and whoever asked for notices."""
        notice = wire.notice(message)
        if notice.turn_id is not None:
            self._pass(notice)
        elif self.turn is not None:
            self.turn.receive(notice)
        self._tell(notice)

    def _error(self, error: CallError, client_seq: int) -> None:
        """What is wrong with an event goes to who waits for its answer; what is wrong with a turn ends the turn."""
        interrupt = self._interrupts.get(client_seq)
        if interrupt is not None and not interrupt.answer.done():
            _refuse(interrupt.answer, error)
        elif client_seq in self._edits:
            _refuse(self._edits.pop(client_seq).answer, error)
        elif client_seq in self._requests:
            self._refused(self._requests.pop(client_seq), error)
        elif client_seq == 0 and error.turn_id in self._turns:
            self._turns[error.turn_id].error = error  # `turn_ended` follows, and brings the report
        else:
            self._tell(error)

    def _refused(self, request: _Request, error: CallError) -> None:
        turn = request.turn
        if not request.asks:
            if turn.over:
                self._tell(error)
            else:
                turn.complain(error)
            return
        turn.end(error=error)
        if self.turn is turn:
            self.turn = request.before

    def _tell(self, what: Notice | CallError) -> None:
        """Outside the reader, which an error in the callback must not end."""
        if self._on_notice is not None:
            asyncio.get_running_loop().call_soon(self._on_notice, what)
        elif isinstance(what, CallError):
            log.warning("an event was refused: %s", what)


def _give(answer: asyncio.Future[T], value: T) -> None:
    """Answer who waits, unless they have given up or were answered before."""
    if not answer.done():
        answer.set_result(value)


def _refuse(answer: asyncio.Future[Any], error: Exception) -> None:
    """The same with what went wrong."""
    if not answer.done():
        answer.set_exception(error)
