"""A LiveKit agent in text mode, and what the client alone gets for the same conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from livekit.agents import Agent, AgentSession, function_tool
from livekit.agents import llm as lk

from firstword import Client, Item, Message
from firstword.livekit import LLM
from tests.firstword.receptionist import TOOL_TURN

GREEDY: Mapping[str, Any] = {"temperature": 0.0, "seed": 1, "max_tokens": 60}

Answer = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Gives what a tool of that name gives for these arguments."""


def context(*items: Item) -> lk.ChatContext:
    """These messages, as LiveKit holds them."""
    made = lk.ChatContext.empty()
    for item in items:
        assert isinstance(item, Message)
        made.add_message(role=item.role, content=item.text, interrupted=item.interrupted)
    return made


def function_tools(answer: Answer) -> list[lk.Tool | lk.Toolset]:
    """The tools of the receptionist, by their schemas."""

    def made(schema: dict[str, Any]) -> lk.Tool:
        async def run(raw_arguments: dict[str, object]) -> Any:
            return await answer(schema["name"], dict(raw_arguments))

        return function_tool(run, raw_schema=schema)

    return [made(dict(tool["function"])) for tool in TOOL_TURN.tools]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces. Raises TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def model(address: str, **options: Any) -> AsyncIterator[LLM]:
    made = LLM(address, **{**GREEDY, **options})
    try:
        yield made
    finally:
        await made.aclose()


@asynccontextmanager
async def agent(llm: lk.LLM, agent: Agent, **options: Any) -> AsyncIterator[AgentSession[None]]:
    """A session of an agent that is written to, and writes."""
    async with AgentSession[None](llm=llm, **options) as session:
        await session.start(agent, record=False)
        yield session


async def said(address: str, line: str, *history: Item, system: str) -> str:
    """What the client alone gets for a line behind a history."""
    async with Client(address) as client, client.call(system=system, items=history, **GREEDY) as call:
        return (await call.ask(line)).text


def texts(session: AgentSession[None]) -> list[tuple[str, str]]:
    """(role, text) of what the session's history holds of messages."""
    return [(item.role, item.text_content or "") for item in session.history.items if item.type == "message"]


async def replied(llm: lk.LLM, ctx: lk.ChatContext, **options: Any) -> str:
    """The text of one ``chat()``."""
    return (await llm.chat(chat_ctx=ctx, **options).collect()).text
