"""A caller's line through ``firstword.Client``, wherever the service is."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from bench.load.lines import Account, Asked, Over, Refused, Reply, Text
from bench.load.scripts import Script
from evals.calls import Heard, Kind
from firstword import (
    Call,
    CallError,
    CallFailed,
    Client,
    Message,
    Notice,
    TextDelta,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    TurnReport,
)
from firstword.errors import FirstwordError
from firstword.types import Item


class ServiceLine:
    """One call."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.call: Call

    def notice(self, notice: Notice | CallError) -> None:
        if isinstance(notice, CallError):
            self.errors.append(notice.reason)

    def close(self) -> None:
        """Nobody listens any more."""
        for task in self._tasks:
            task.cancel()

    async def speech_started(self) -> None:
        await self._sent(self.call.speech_started())

    async def hear(self, heard: Heard) -> None:
        match heard.kind:
            case Kind.PARTIAL:
                await self._sent(self.call.partial(heard.text, stable_code_points=heard.stable))
            case Kind.EAGER:
                await self._sent(self.call.eager_end_of_turn(heard.text))
            case Kind.RESUMED:
                await self._sent(self.call.turn_resumed())

    async def final(self, text: str) -> Reply:
        reply: Reply = asyncio.Queue()
        try:
            turn = await self.call.final(text)
        except CallFailed as failed:
            reply.put_nowait(_failure(failed))
        else:
            self._beside(_pump(turn, reply))
        return reply

    async def interrupt(self, code_points: int) -> None:
        self._beside(self._interrupt(code_points, self.call.turn))
        await asyncio.sleep(0)  # it is sent by then: the next final would overtake it

    async def _interrupt(self, code_points: int, turn: Turn | None) -> None:
        await self._sent(self.call.interrupt(heard_code_points=code_points, turn=turn))

    async def tool_result(self, asked: Asked, output: str) -> None:
        await self._sent(self.call.tool_result(asked.handle, output))

    async def _sent(self, sending: Coroutine[Any, Any, object]) -> None:
        """What is wrong with an event, or with the call, is counted, and its turn hears of it."""
        try:
            await sending
        except FirstwordError as error:
            self.errors.append(error.reason)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _pump(turn: Turn, reply: Reply) -> None:
    """Pass on what comes of a turn."""
    try:
        async for event in turn:
            match event:
                case TextDelta():
                    clause_ends = tuple(event.clause_ends)
                    reply.put_nowait(Text(event.received_at, event.text, event.completion_tokens, clause_ends))
                case ToolCall():
                    arguments = json.dumps(event.arguments)
                    reply.put_nowait(Asked(event.received_at, event.name, arguments, event))
    except FirstwordError as error:
        reply.put_nowait(_failure(error))
    else:
        reply.put_nowait(Over(time.perf_counter(), _account(turn.report)))


def _failure(error: FirstwordError) -> Over:
    return Over(time.perf_counter(), error=error.reason or error.code.name)


def _account(report: TurnReport | None) -> Account:
    if report is None:
        return Account()
    counted: Counter[str] = Counter()
    for phase in report.drafting.phases if report.drafting else ():
        counted[phase.mode] += phase.steps
    first_ms = report.timings.first_token_ms
    return Account(
        tokens=report.usage.completion_tokens,
        first_token_s=None if first_ms is None else first_ms / 1000,
        answered_ahead=report.answered_ahead,
        modes=dict(counted),
        used_tokens=report.used_tokens,
    )


@asynccontextmanager
async def service_line(client: Client, script: Script) -> AsyncIterator[ServiceLine]:
    """A call that is open inside the block. Raises Refused where the service has no room for it."""
    recorded, line = script.recorded, ServiceLine()
    tools = [Tool(tool["name"], tool["description"], tool["parameters"]) for tool in recorded.tools]
    items, seed, notice = list(items_of(script)), script.seed, line.notice
    call = client.call(system=recorded.system, tools=tools, items=items, seed=seed, on_notice=notice)
    async with AsyncExitStack() as stack:
        try:
            line.call = await stack.enter_async_context(call)
        except CallFailed as failed:
            if failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused(failed.reason, failed.retry_after_s) from None
            raise
        stack.callback(line.close)
        yield line


def items_of(script: Script) -> Iterable[Item]:
    """The history, as a client hands it over."""
    called: list[str] = []
    for at, message in enumerate(script.history):
        if message["role"] == "tool":
            yield ToolResult(called.pop(0), message["content"])
        elif message["content"]:
            yield Message(message["role"], message["content"])
        for number, call in enumerate(message.get("tool_calls") or ()):
            called.append(f"history-{at}-{number}")
            yield ToolCall(called[-1], call["function"]["name"], call["function"]["arguments"])
