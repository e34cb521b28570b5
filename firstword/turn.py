"""One turn of the agent, as it comes in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self

from firstword.errors import FirstwordError
from firstword.events import Interrupted, Notice, TextDelta, TurnEvent, TurnReport, Waiting
from firstword.types import ToolCall


class Turn:
    """What comes of one turn: iterate it once, or ``run`` it, or both in that order.

    Iteration gives the turn's events until it is over, and raises CallError when the turn was refused or failed and
    CallFailed when the call broke, each after the events that came before. A CallError on a result of one of the turn's
    tool calls does not end the turn: iterate on.

    id: the turn's name in the call. tool_calls: those that were made so far. report: the account, once it is over.
    interrupted: the newest cut, which may come after the end. error: what ended the turn, if that was an error.
    sent_at: ``time.perf_counter()`` when it was sent.
    """

    def __init__(
        self, turn_id: int, answer: Callable[[ToolCall], Coroutine[Any, Any, None]], *, given: str = ""
    ) -> None:
        """For a call to make. answer: executes a tool call and sends the result. given: text that the agent says."""
        self.id = turn_id
        self.tool_calls: list[ToolCall] = []
        self.report: TurnReport | None = None
        self.interrupted: Interrupted | None = None
        self.error: FirstwordError | None = None
        self.sent_at = time.perf_counter()
        self.over = False
        self._answer = answer
        self._text = given
        self._events: asyncio.Queue[TurnEvent | FirstwordError | None] = asyncio.Queue()

    @property
    def text(self) -> str:
        """What was received of the turn's text so far, also the part that the caller did not hear."""
        return self._text

    @property
    def history_text(self) -> str | None:
        """What the history holds of the turn's text, as far as known; None while the turn is neither over nor cut."""
        if self.interrupted is not None:
            return self.interrupted.text
        return None if self.report is None else self.report.text

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TurnEvent:
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)  # whoever asks again is told again
            if self.error is not None:
                raise self.error
            raise StopAsyncIteration
        if isinstance(event, FirstwordError):
            raise event
        return event

    async def run(self, on_event: Callable[[TurnEvent], object] | None = None) -> Self:
        """Follow the turn to its end, answering its tool calls with their tools' handlers as they come.

        on_event: sees each event. Handlers run beside each other, and are waited for; one whose tool has timed out is
        cancelled, and all are when this raises or is cancelled. Raises what iteration raises, and LookupError for a
        tool without a handler: iterate then, and answer with ``Call.tool_result``.
        """
        try:
            async with asyncio.TaskGroup() as answers:
                running: dict[str, asyncio.Task[None]] = {}
                async for event in self:
                    if on_event is not None:
                        on_event(event)
                    if isinstance(event, ToolCall):
                        running[event.call_id] = answers.create_task(self._answer(event))
                    elif isinstance(event, Notice) and event.kind == "tool_timed_out":
                        running[event.details["call_id"]].cancel()
        except BaseExceptionGroup as group:  # of whatever came first, which ended the others
            raise group.exceptions[0] from None
        return self

    # From the call that the turn belongs to

    def receive(self, event: TurnEvent) -> None:
        """Take an event. One that comes after the end is not iterated over any more."""
        match event:
            case TextDelta():
                # Where it does not go on at the end, the call was resumed and the text behind the place has gone.
                self._text = self._text[: event.offset] + event.text
            case ToolCall():
                self.tool_calls.append(event)
            case Interrupted():
                self.interrupted = event
            case Waiting() | Notice():
                pass
        if not self.over:
            self._events.put_nowait(event)

    def complain(self, error: FirstwordError) -> None:
        """Raise an error from the iteration, and go on."""
        self._events.put_nowait(error)

    def end(self, report: TurnReport | None = None, error: FirstwordError | None = None) -> None:
        """The turn is over. Idempotent."""
        if self.over:
            return
        self.over = True
        self.report = report
        self.error = self.error or error
        self._events.put_nowait(None)
