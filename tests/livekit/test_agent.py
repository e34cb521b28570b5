"""Real agents of LiveKit hold conversations with a real service: what they say is what the client alone gets."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from livekit.agents import Agent, function_tool
from livekit.agents import llm as lk
from pydantic import BaseModel, Field

from firstword import Client
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM, TOOL_TURN, tools
from tests.livekit.agents import GREEDY, agent, context, function_tools, model, replied, texts


async def test_a_conversation_is_what_the_client_alone_gets(service: ServiceProcess) -> None:
    wanted = []
    async with Client(service.address) as client, client.call(system=SYSTEM, **GREEDY) as call:
        for line in LINES[:3]:
            wanted += [("user", line), ("assistant", (await call.ask(line)).text)]
    async with model(service.address) as llm, agent(llm, Agent(instructions=SYSTEM)) as session:
        for line in LINES[:3]:
            await session.run(user_input=line)
        assert texts(session) == wanted
        assert llm.model == "receptionist" and llm.provider == "firstword"
        (usage,) = session.usage.model_usage
        assert usage.input_cached_tokens > usage.input_tokens / 2


async def test_a_function_tool_runs_and_the_same_turn_goes_on(service: ServiceProcess) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    async def answer(name: str, arguments: dict[str, Any]) -> Any:
        seen.append((name, arguments))
        return json.dumps(TOOL_TURN.booking)

    async with Client(service.address) as client:
        alone = client.call(
            system=TOOL_TURN.system,
            tools=tools(lambda **_: json.dumps(TOOL_TURN.booking)),
            items=TOOL_TURN.history,
            **GREEDY,
        )
        async with alone as call:
            turn = await call.ask(TOOL_TURN.line)
    receptionist = Agent(
        instructions=TOOL_TURN.system, tools=function_tools(answer), chat_ctx=context(*TOOL_TURN.history)
    )
    async with model(service.address) as llm, agent(llm, receptionist) as session:
        await session.run(user_input=TOOL_TURN.line)
        assert [(call.name, dict(call.arguments)) for call in turn.tool_calls] == seen and seen
        assert texts(session)[-1] == ("assistant", turn.text)
        assert llm._conversation.turn is not None and llm._conversation.turn.id == 1


Short = Annotated[str, Field(max_length=12)]


class Visit(BaseModel):
    """When somebody comes."""

    day: Literal["Monday", "Tuesday"]
    hour: Annotated[int, Field(ge=8, le=18, description="On the full hour.")] = 9
    notes: Annotated[list[Short], Field(max_length=1)] = []


@function_tool
async def plan(name: Short, visit: Visit, kind: Literal["cut", "color"] = "cut", phone: Short | None = None) -> str:
    """Plan a visit.

    Args:
        name: Full name.
    """
    return f"{name} {visit.day} {kind} {phone}"


async def test_a_tool_with_the_schema_of_a_function_is_held_to_it(service: ServiceProcess) -> None:
    """Nested models, defaults, choices and unions, as LiveKit derives them from a signature."""
    ctx = context(*TOOL_TURN.history)
    ctx.add_message(role="user", content=TOOL_TURN.line)
    async with model(service.address, max_tokens=200) as llm:
        reply = await llm.chat(chat_ctx=ctx, tools=[plan], tool_choice="required").collect()
        (call,) = reply.tool_calls
        arguments, _ = lk.utils.prepare_function_arguments(fnc=plan, json_arguments=call.arguments)
        assert call.name == "plan" and arguments
        assert await replied(llm, ctx, tools=[plan], tool_choice="none")
