"""One call: what a client can do on it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Self

from firstword import wire
from firstword.errors import CallError, CallFailed, ServiceBusy
from firstword.events import Generated, HistoryCause, HistoryChanged, Interrupted, Notice, Opened, TurnEvent
from firstword.line import Metadata
from firstword.router import Router
from firstword.stream import OPENING_TIMEOUT_S, CallStream, Dial, unanswered
from firstword.tools import execute
from firstword.turn import Turn
from firstword.types import Item, Sampling, Tool, ToolCall, ToolChoice, TurnOptions, WordTiming
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb

DRAINING = "DRAINING"
TRIES_ELSEWHERE = 3
"""How often a call is opened again at once where a server that leaves has refused it: the next one may be another."""


class Call:
    """One call, made with ``Client.call`` and open inside ``async with``.

    Entering raises CallFailed when the call cannot begin, and ServiceBusy where it could a little later. Leaving closes
    it in order: what is still being said stops. An exception inside, a cancellation too, drops the stream at once.
    Every method raises CallFailed when the call is over, and whatever waits for the service when it breaks gets it.

    Methods that the service answers wait for the answer and raise CallError when it is a refusal. The others return as
    soon as the event is queued: a refused turn raises from its iteration, a refused tool result from that of its turn,
    and any other refusal goes to ``on_notice``, or else to the log.

    The call names turns, and numbers hypotheses and events. Its methods may be called from several tasks of one event
    loop; what was called first is sent first.
    """

    opened: Opened
    """What the service said when the call was opened."""

    def __init__(
        self,
        dial: Dial,
        opening: client_pb.Open,
        tools: Sequence[Tool],
        metadata: Callable[[], Metadata],
        on_notice: Callable[[Notice | CallError], object] | None,
        resume_timeout_s: float,
        patience_s: float = 0.0,
        affinity_header: str = "",
    ) -> None:
        """For a client to make, in a running event loop. metadata: gives what each stream opens with. patience_s: how
        long to ask again where there is no room. affinity_header: as in ``Client``.
        """
        self._dial = dial
        self._resume_timeout_s = resume_timeout_s
        self._opening = opening
        self._tools = {tool.name: tool for tool in tools}
        self._metadata = metadata
        self._on_notice = on_notice
        self._patience_s = patience_s
        self._affinity_header = affinity_header
        self._begin_again()
        self._last_turn = 0
        self._revision = 0
        self._asked = 0

    async def __aenter__(self) -> Self:
        until, elsewhere = time.monotonic() + self._patience_s, TRIES_ELSEWHERE
        while True:
            try:
                await self._open()
                return self
            except ServiceBusy as busy:
                assert busy.retry_after_s is not None
                wait = busy.retry_after_s
                if busy.reason == DRAINING and elsewhere:
                    elsewhere, wait = elsewhere - 1, random.uniform(0.0, 0.05)
                elif time.monotonic() + wait > until:
                    raise
                await asyncio.sleep(wait)
            self._begin_again()

    def _begin_again(self) -> None:
        """Nothing is sent yet."""
        self._router = router = Router(self._on_notice)
        self._stream = CallStream(
            router.receive, router.end, router.is_quiet, self._resume_timeout_s, self._affinity_header
        )

    async def _open(self) -> None:
        """Open the call. Raises CallFailed, and ServiceBusy where that is worth trying again."""
        self._stream.send(open=self._opening)
        self._stream.start(self._dial, self._metadata)
        try:
            async with asyncio.timeout(OPENING_TIMEOUT_S):  # a proxy in front of a server that hangs answers pings
                self.opened = await self._router.opened
        except TimeoutError:
            await self._stream.abort()
            raise unanswered() from None
        except asyncio.CancelledError:
            await self._stream.abort()
            raise
        except CallFailed as failed:
            if failed.retry_after_s is None:
                raise
            raise ServiceBusy.like(failed) from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._stream.close()
        else:
            await self._stream.abort()

    async def close(self) -> None:
        """End the call in order, before the end of ``async with``. Idempotent; raises nothing."""
        await self._stream.close()

    @property
    def failure(self) -> CallFailed | None:
        """How the call ended; None: it has not."""
        return self._stream.failure

    @property
    def turn(self) -> Turn | None:
        """The newest turn that was not refused; None before the first."""
        return self._router.turn

    @property
    def records(self) -> Mapping[int, bytes]:
        """By sequence number, the signed records of the conversation that the service's store does not hold yet."""
        return MappingProxyType(self._stream.books.records)

    @property
    def resumes(self) -> int:
        """How often another stream, perhaps of another server, has taken the call over."""
        return self._stream.resumes

    # The caller

    async def speech_started(self) -> None:
        """The caller begins to make a sound."""
        self._stream.send(speech_started=client_pb.SpeechStarted())

    async def partial(self, text: str, *, stable_code_points: int | None = None) -> None:
        """The recogniser's hypothesis so far, whole: it replaces the one before it.

        stable_code_points: length of the part that will not be revised any more.
        """
        self._revision += 1
        partial = client_pb.Partial(
            turn_id=self._last_turn + 1, revision=self._revision, text=text, stable_code_points=stable_code_points
        )
        self._stream.send(partial=partial)

    async def eager_end_of_turn(self, text: str, *, options: TurnOptions | None = None) -> None:
        """The caller has probably finished: the reply is made ahead, and held back until ``final``.

        It is released by a final with the same text and options, and dropped for any other.
        """
        self._revision += 1
        eager = client_pb.EagerEndOfTurn(
            turn_id=self._last_turn + 1, revision=self._revision, text=text, options=wire.options(options)
        )
        self._stream.send(eager_end_of_turn=eager)

    async def turn_resumed(self) -> None:
        """The caller goes on after an eager end of turn: the reply made ahead is dropped."""
        self._stream.send(turn_resumed=client_pb.TurnResumed(turn_id=self._last_turn + 1))

    async def final(self, text: str, *, options: TurnOptions | None = None, item_id: str = "") -> Turn:
        """The caller's turn is complete: reply to it. Does not wait for the reply.

        A reply in progress is interrupted as far as it was played. item_id: of the caller's message in the history.
        """
        return self._begin(final=client_pb.Final(text=text, options=wire.options(options), item_id=item_id))

    async def ask(
        self,
        text: str,
        *,
        options: TurnOptions | None = None,
        item_id: str = "",
        on_event: Callable[[TurnEvent], object] | None = None,
    ) -> Turn:
        """``final``, and ``Turn.run`` to its end. Returns the turn, which then has its report."""
        turn = await self.final(text, options=options, item_id=item_id)
        return await turn.run(on_event)

    async def interrupt(
        self,
        *,
        heard_code_points: int | None = None,
        heard_text: str | None = None,
        heard_ms: int | None = None,
        words: Iterable[WordTiming] = (),
        turn: Turn | None = None,
    ) -> Interrupted:
        """The caller spoke over a turn, by default the newest. Returns what the history holds of it now.

        How much was heard is given by one measure, or not at all: then it is as far as ``played`` has said, or all that
        was sent. heard_text: as it was spoken; what does not read like the turn's text does not count. heard_ms: of the
        turn's speech; it needs word timings, here or earlier: without any, the turn is cut as far as ``played`` has
        said, and ``on_notice`` is given a CallError. Safe to repeat, also with another measure. Raises CallError where
        it is refused, so when a newer turn has begun; ValueError before the first turn, for more than one measure, and
        for words without one.
        """
        heard = wire.heard(text=heard_text, code_points=heard_code_points, ms=heard_ms, words=words)
        turn_id = self._newest(turn)
        seq = self._stream.send(interrupt=client_pb.Interrupt(turn_id=turn_id, heard=heard))
        return await self._router.cut(seq, turn_id)

    # The agent

    async def respond(self, *, options: TurnOptions | None = None) -> Turn:
        """Reply to the history as it stands: the agent speaks first, or goes on. Otherwise as ``final``."""
        return self._begin(respond=client_pb.Respond(options=wire.options(options)))

    async def say(self, text: str, *, item_id: str = "") -> Turn:
        """The agent says given text. Returns once it is in the history; the turn can be interrupted like a reply.

        Raises CallError where it is refused.
        """
        return await self._begin(text, say=client_pb.Say(text=text, item_id=item_id)).run()

    async def items(self, items: Sequence[Item], *, history_version: int | None = None) -> HistoryChanged:
        """Make the history these items, all of them but the system prompt: for clients that keep a conversation of
        their own and edit it anywhere. What it has in common with the history stays warm; a reply in progress is
        interrupted where it was made to anything else.

        history_version: the newest that this view knows of; None: it holds whatever has happened. Raises CallError, and
        changes nothing, for a view that is older than the history, and for items that do not fit.
        """
        message = client_pb.Items(items=map(wire.item, items), history_version=history_version)
        return await self._router.edited(self._stream.send(items=message), HistoryCause.ITEMS)

    async def update(
        self,
        *,
        system: str | None = None,
        tools: Sequence[Tool] | None = None,
        sampling: Sampling | None = None,
        tool_choice: ToolChoice | None = None,
        response_schema: Mapping[str, Any] | None = None,
    ) -> HistoryChanged:
        """Change the call from the next turn on, as when another agent takes over. None leaves what there is.

        Returns once it is in force, which waits for a reply in progress. Raises CallError, and changes nothing, for
        what cannot be.
        """
        message = client_pb.Update(
            tools=None if tools is None else conversation_pb.ToolList(tools=map(wire.tool, tools)),
            tool_choice=wire.tool_choice(tool_choice),
            response_format=wire.response_format(response_schema),
            sampling=wire.sampling(sampling or Sampling(), seed=False),
        )
        if system is not None:
            message.system_prompt = system
        change = await self._router.edited(self._stream.send(update=message), HistoryCause.UPDATE)
        if tools is not None:
            self._tools = {tool.name: tool for tool in tools}
        return change

    async def generate(
        self,
        question: str = "",
        *,
        items: Sequence[Item] | None = None,
        sampling: Sampling | None = None,
        response_schema: Mapping[str, Any] | None = None,
        timeout_ms: int | None = None,
        traceparent: str = "",
        tracestate: str = "",
    ) -> Generated:
        """Ask a side question (summarise, extract, classify) and wait for the answer. The call is left as it is.

        question: asked as the caller would, behind the history as it stands; or ``items``: a conversation of its own,
        with the call's system prompt and tools. response_schema: JSON Schema that the answer is held to. It is answered
        when nobody waits for a reply; timeout_ms: how long that may take. Cancelling this drops the question.

        Raises CallError where there is no answer, ValueError for both a question and items, or neither.
        """
        if bool(question) == (items is not None):
            raise ValueError("a side question is a question or a conversation of its own")
        self._asked += 1
        generate = client_pb.Generate(
            request_id=self._asked,
            sampling=wire.sampling(sampling or Sampling(), seed=True),
            response_format=wire.response_format(response_schema),
            timeout_ms=timeout_ms,
            traceparent=traceparent,
            tracestate=tracestate,
        )
        if items is None:
            generate.question = question
        else:
            generate.conversation.items.extend(map(wire.item, items))
        self._stream.send(generate=generate)
        try:
            return await self._router.answered(generate.request_id)
        except asyncio.CancelledError:
            with contextlib.suppress(CallFailed):
                self._stream.send(cancel_generate=client_pb.CancelGenerate(request_id=generate.request_id))
            raise

    async def tool_result(
        self, call: ToolCall, output: str, *, is_error: bool = False, no_reply: bool = False, item_id: str = ""
    ) -> None:
        """What a tool call gave: any text, usually JSON. With the last result that is waited for the reply goes on.

        no_reply: the result asks for none; if no other of the turn's does, the turn ends.
        """
        result = client_pb.ToolResult(
            turn_id=call.turn_id,
            call_id=call.call_id,
            output=output,
            is_error=is_error,
            no_reply=no_reply,
            item_id=item_id,
        )
        self._router.belongs(self._stream.send(tool_result=result), call.turn_id)

    async def answer(self, call: ToolCall) -> None:
        """Execute the tool's handler and send what it gives; where it raises, that is an error for the model.

        Raises LookupError for a tool without a handler.
        """
        result = await execute(self._tools, call)
        await self.tool_result(call, result.output, is_error=result.is_error)

    async def played(
        self,
        *,
        code_points: int | None = None,
        text: str | None = None,
        ms: int | None = None,
        words: Iterable[WordTiming] = (),
        turn: Turn | None = None,
    ) -> None:
        """How far a turn's speech was played, by default the newest one's: one measure, as for ``interrupt``.

        Raises ValueError before the first turn, and for more or less than one measure.
        """
        heard = wire.heard(text=text, code_points=code_points, ms=ms, words=words)
        if heard is None:
            raise ValueError("what was played needs a measure")
        self._stream.send(playback_progress=client_pb.PlaybackProgress(turn_id=self._newest(turn), heard=heard))

    def _newest(self, turn: Turn | None) -> int:
        """The id of the turn that is meant."""
        meant = turn or self.turn
        if meant is None:
            raise ValueError("there is no turn yet")
        return meant.id

    def _begin(self, given: str = "", **event: Any) -> Turn:
        """Send an event that asks for a turn, under the next turn's name. given: text that the agent says in it."""
        turn = Turn(self._last_turn + 1, self.answer, given=given)
        (asking,) = event.values()
        asking.turn_id = turn.id
        self._router.begin(self._stream.send(**event), turn)
        self._last_turn = turn.id
        return turn
