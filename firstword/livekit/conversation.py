"""One call of the service that follows a chat context, which LiveKit sends whole and edits anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from firstword.call import Call
from firstword.errors import FirstwordError
from firstword.events import Interrupted, TextDelta, TurnEvent, Usage, Waiting
from firstword.livekit.context import View, alike, same
from firstword.turn import Turn
from firstword.types import Item, Message, ToolCall, ToolResult, TurnOptions


class Conversation:
    """Owns a call, and knows what the service has of the conversation. Decides what to tell it. One reply at a time.

    make: makes a call that begins with a view. turn: the newest, if the history still holds what it said. usage: of the
    newest reply, or of the part of it that follows tool results. replying: whether one is being made.
    """

    def __init__(self, make: Callable[[View], Awaitable[Call]]) -> None:
        self.turn: Turn | None = None
        self.usage: Usage | None = None
        self.replying = False
        self._make = make
        self._call: Call | None = None
        self._opening = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._told = View()
        """What the service was told before the newest reply, or the part of it that follows tool results."""
        self._said = ""
        self._emitted = 0
        """Code points of the turn's text that were passed on, from its beginning."""
        self._counted = 0
        """Completion tokens of the turn that were accounted for."""
        self._called: list[ToolCall] = []
        self._waiting = False
        self._sure = True
        """Whether the history is what was told, then what was said and called."""
        self._options = TurnOptions()
        self._cuts: set[asyncio.Task[Interrupted | None]] = set()

    @property
    def call(self) -> Call | None:
        """The call, where it is open."""
        return self._call if self._call is not None and self._call.failure is None else None

    async def open(self, view: View) -> Call:
        """The call, open; where there is none it begins with the view. Raises CallFailed."""
        async with self._opening:
            if self.call is None:
                call = await self._make(view)
                await call.__aenter__()
                self._call = call
                self._settle(view)
            assert self._call is not None
            return self._call

    async def close(self) -> None:
        """Idempotent; raises nothing."""
        call, self._call = self._call, None
        if call is not None:
            await call.close()

    def concerns(self, view: View) -> bool:
        """Whether a view may be of this conversation. Of one that has nothing of it while its tools run, a tool is the
        author: it asks something of its own.
        """
        mine = {item.item_id for item in self._told.items} - {""}
        return not self._waiting or not mine or any(item.item_id in mine for item in view.items)

    def answered(self, text: str) -> bool:
        """Whether the newest reply is to these words of the caller."""
        asked = self._told.asked
        return self.turn is not None and asked is not None and alike(asked.text, text)

    async def follow(self, items: tuple[Item, ...]) -> Call:
        """Bring the history to these items, unless a reply is being made, so that what is heard next is prefilled
        behind them.
        """
        told = self._told
        call = await self.open(View(told.system, told.tools, items))
        async with self._telling:
            if not self.replying:
                await self._agree(call, View(items=items).as_said(told.items).items)
        return call

    async def prepare(self, view: View) -> None:
        """Before the first reply: have the instructions prefilled, and what is there of the conversation."""
        call = await self.open(view)
        async with self._telling:
            if self.turn is None and not self.replying:
                await self._instruct(call, view)
                await self._agree(call, view.items)

    async def reply(self, view: View, options: TurnOptions, timeout_s: float) -> AsyncGenerator[TurnEvent, None]:
        """What comes of a view that is to be answered, to the end or to its tool calls' results (``Waiting``).

        timeout_s: for each event. Raises FirstwordError and TimeoutError; the reply is cut then, and when it is closed
        or cancelled.
        """
        self.replying, self.usage = True, None
        try:
            async with asyncio.timeout(timeout_s), self._telling:
                turn = await self._begin(view, options)
            while not self._waiting:
                async with asyncio.timeout(timeout_s):
                    event = await anext(turn, None)
                if event is None:
                    break
                yield self._noted(event)
            if turn.report is not None:
                self._account(turn.report.usage)
        except BaseException:
            self._cut()
            raise
        finally:
            self.replying = False

    def _noted(self, event: TurnEvent) -> TurnEvent:
        """The event; of a text only what is new in it, for a call that was resumed may say the end of it again."""
        match event:
            case TextDelta():
                event = replace(event, text=event.text[max(self._emitted - event.offset, 0) :], offset=self._emitted)
                self._emitted += len(event.text)
                self._said += event.text
            case ToolCall():
                self._called.append(event)
            case Waiting():
                self._waiting = True
                self._account(event.usage)
        return event

    def _account(self, usage: Usage) -> None:
        self.usage = replace(usage, completion_tokens=usage.completion_tokens - self._counted)
        self._counted = usage.completion_tokens

    def _cut(self) -> None:
        """The reply is not wanted any more. How much of it was heard, if any, the next view will say."""
        self._sure = False
        if self.turn is not None and self.call is not None and not self.turn.over:
            cut = asyncio.create_task(self._interrupt(self.call, self.turn))
            self._cuts.add(cut)
            cut.add_done_callback(self._cuts.discard)

    async def _interrupt(self, call: Call, turn: Turn, heard_text: str | None = None) -> Interrupted | None:
        """None: a newer turn has begun, or the call is over, which the next event finds out."""
        with suppress(FirstwordError):
            return await call.interrupt(turn=turn, heard_text=heard_text)
        return None

    async def _begin(self, view: View, options: TurnOptions) -> Turn:
        """Ask for the reply. Returns the turn that gives it."""
        fresh = self.call is None
        call = await self.open(View(view.system, view.tools, view.before) if fresh else view)
        view = view.as_said(self._told.items)
        results = self._results(view, options)
        if results and self.turn is not None:
            turn = self.turn
            for made, result in zip(self._called, results, strict=True):
                await call.tool_result(made, result.output, is_error=result.is_error, item_id=result.item_id)
        else:
            turn = await self._ask(call, view, options)
            self._emitted = self._counted = 0
        self._settle(view)
        self.turn, self._options = turn, options
        return turn

    def _results(self, view: View, options: TurnOptions) -> list[ToolResult]:
        """What the reply is waiting for, in the order of its calls; empty where the view goes on otherwise."""
        known, told = self._history(), self._told
        rest = view.items[len(known) :]
        if not (self._waiting and self._sure and same(view.items[: len(known)], known)):
            return []
        if (view.system, view.tools, options) != (told.system, told.tools, self._options) or self._moved_on():
            return []
        given = {item.call_id: item for item in rest if isinstance(item, ToolResult)}
        wanted = [call.call_id for call in self._called]
        return [given[name] for name in wanted] if len(rest) == len(wanted) and given.keys() == {*wanted} else []

    def _moved_on(self) -> bool:
        """Whether the reply has gone on without the results: a tool had no answer in time, or the turn is over."""
        turn = self.turn
        return turn is None or turn.over or len(turn.text) > self._emitted or turn.tool_calls[-1] != self._called[-1]

    async def _ask(self, call: Call, view: View, options: TurnOptions) -> Turn:
        if self._waiting and self.turn is not None:
            await self._interrupt(call, self.turn)
            self._waiting, self._sure = False, False
        await self._instruct(call, view)
        await self._agree(call, view.before)
        if view.asked is None:
            return await call.respond(options=options)
        return await call.final(view.asked.text, options=options, item_id=view.asked.item_id)

    async def _instruct(self, call: Call, view: View) -> None:
        told = self._told
        system = None if view.system == told.system else view.system
        tools = None if view.tools == told.tools else view.tools
        if system is not None or tools is not None:
            await call.update(system=system, tools=tools)
            self._told = View(view.system, view.tools, told.items)

    async def _agree(self, call: Call, items: tuple[Item, ...]) -> None:
        """Make the history these items. Nothing is sent where it is, as far as is known."""
        await self._hear(call, items)
        if not (self._sure and same(self._history(), items)):
            self._sure = False
            await call.items(items)
            self._settle(View(self._told.system, self._told.tools, items))

    async def _hear(self, call: Call, items: tuple[Item, ...]) -> None:
        """Where the items say that the newest reply was spoken over, cut it to what was heard of it: the service then
        keeps the tokens that it had made, and need not read them as a text.
        """
        told, turn = self._told.items, self.turn
        if turn is None or turn.tool_calls or len(items) <= len(told) or not same(items[: len(told)], told):
            return
        heard = items[len(told)]
        if not isinstance(heard, Message) or not heard.interrupted or (self._sure and heard.text == self._said):
            return
        self._sure = False
        cut = await self._interrupt(call, turn, heard.text)
        if cut is not None and cut.text:  # else nothing of it reads like what was said, and it is told as a text
            self._said, self._sure = heard.text, True

    def _history(self) -> tuple[Item, ...]:
        """What the service has, if that is sure."""
        said = (Message("assistant", self._said),) if self._said else ()
        return (*self._told.items, *said, *self._called)

    def _settle(self, view: View) -> None:
        """The service has been told this, and has said nothing since."""
        self._told, self.turn = view, None
        self._said, self._called, self._waiting, self._sure = "", [], False, True
