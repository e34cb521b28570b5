"""Contexts that LiveKit has edited, over a real socket."""

from __future__ import annotations

import asyncio
import json

import pytest
from livekit.agents import Agent, APIStatusError
from livekit.agents import llm as lk

from firstword import Client, Item, Message, ToolCall, ToolResult
from firstword.livekit.context import view_of
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM, TOOL_TURN, with_the_tool_call
from tests.livekit.agents import GREEDY, agent, context, function_tools, model, replied, said, texts

OTHER = "You answer the phone for Bo's Bikes. Be short."


async def never(name: str, arguments: object) -> str:
    raise AssertionError(f"{name} is not to run")


def with_system(ctx: lk.ChatContext, system: str = SYSTEM) -> lk.ChatContext:
    ctx.items.insert(0, lk.ChatMessage(role="system", content=[system], id="lk.agent_task.instructions"))
    return ctx


async def test_a_reply_that_was_spoken_over_is_cut_to_what_was_heard(service: ServiceProcess) -> None:
    """As it was spoken: the history keeps the words, and the tokens, that were made."""
    ctx = with_system(context(Message("user", LINES[0])))
    async with Client(service.address) as client, client.call(system=SYSTEM, **GREEDY) as call:
        turn = await call.ask(LINES[0])
        heard = " ".join(turn.text.split()[:-2]).lower()
        cut = await call.interrupt(heard_text=heard)
        assert cut.text != heard and cut.text.lower() == heard
        alone = await call.ask(LINES[1])
    async with model(service.address) as llm:
        assert await replied(llm, ctx) == turn.text
        ctx.add_message(role="assistant", content=heard, interrupted=True)
        ctx.add_message(role="user", content=LINES[1])
        assert await replied(llm, ctx) == alone.text
        second = llm._conversation.turn
        assert second is not None and second.report is not None and alone.report is not None
        assert second.report.usage.prompt_tokens == alone.report.usage.prompt_tokens
        assert second.report.history_version == alone.report.history_version  # nothing was edited


async def test_a_reply_that_was_broken_off_ends_where_the_context_says(service: ServiceProcess) -> None:
    """Though the service had sent more of it than LiveKit ever took."""
    ctx = with_system(context(Message("user", LINES[0])))
    async with model(service.address) as llm:
        stream = llm.chat(chat_ctx=ctx)
        first = await anext(aiter(stream))
        turn = llm._conversation.turn
        assert turn is not None and first.delta is not None and first.delta.content
        await stream.aclose()
        heard = llm._conversation._said
        ctx.add_message(role="assistant", content=heard, interrupted=True)
        ctx.add_message(role="user", content=LINES[1])
        text = await replied(llm, ctx)
    async with Client(service.address) as client, client.call(system=SYSTEM, **GREEDY) as call:
        whole = await call.ask(LINES[0])
        assert whole.text.startswith(heard) and whole.text != heard
        await call.interrupt(heard_text=heard)
        assert (await call.ask(LINES[1])).text == text
    assert turn.history_text == heard


async def test_a_cut_reply_that_was_written_anew_is_as_the_context_has_it(service: ServiceProcess) -> None:
    """Nothing of it reads like what was said, so there is nothing of that to keep."""
    other = "Xylophones"
    ctx = with_system(context(Message("user", LINES[0])))
    async with model(service.address) as llm:
        await replied(llm, ctx)
        ctx.add_message(role="assistant", content=other, interrupted=True)
        ctx.add_message(role="user", content=LINES[1])
        await replied(llm, ctx)
        second = llm._conversation.turn
        assert second is not None and second.report is not None
    history = (Message("user", LINES[0]), Message("assistant", other, interrupted=True))
    async with Client(service.address) as client, client.call(system=SYSTEM, items=history, **GREEDY) as call:
        alone = await call.ask(LINES[1])
    assert alone.report is not None and alone.text == second.text
    assert alone.report.usage.prompt_tokens == second.report.usage.prompt_tokens


async def test_a_reply_of_which_nothing_was_heard_leaves_nothing(service: ServiceProcess) -> None:
    wanted = await said(service.address, LINES[1], Message("user", LINES[0]), system=SYSTEM)
    ctx = with_system(context(Message("user", LINES[0])))
    async with model(service.address) as llm:
        stream = llm.chat(chat_ctx=ctx)
        await anext(aiter(stream))
        await stream.aclose()
        ctx.add_message(role="user", content=LINES[1])
        assert await replied(llm, ctx) == wanted


async def test_a_context_that_was_cut_short_rewinds(service: ServiceProcess) -> None:
    """As ``ChatContext.truncate`` and tasks with a history of their own do."""
    ctx = with_system(context(Message("user", LINES[0])))
    async with model(service.address) as llm:
        first = await replied(llm, ctx)
        longer = ctx.copy()
        longer.add_message(role="assistant", content=first)
        longer.add_message(role="user", content=LINES[1])
        await replied(llm, longer)
        assert await replied(llm, ctx) == first
        assert await replied(llm, with_system(context(Message("user", LINES[2])))) == await said(
            service.address, LINES[2], system=SYSTEM
        )


async def test_instructions_and_tools_change_with_the_agent(service: ServiceProcess) -> None:
    history: list[Item] = [Message("user", LINES[0])]
    ctx = with_system(context(*history))
    async with model(service.address) as llm:
        text = await replied(llm, ctx)
        history.append(Message("assistant", text))
        handed = with_system(context(*history, Message("user", LINES[1])), OTHER)
        wanted = await said(service.address, LINES[1], *history, system=OTHER)
        assert await replied(llm, handed) == wanted
        ctx.add_message(role="assistant", content=text)
        ctx.add_message(role="user", content=TOOL_TURN.line)
        tools = [tool for tool in function_tools(never) if isinstance(tool, lk.Tool)]
        await replied(llm, ctx, tools=tools)
        assert [tool.name for tool in llm._conversation._told.tools] == [
            tool["function"]["name"] for tool in TOOL_TURN.tools
        ]


async def test_a_tool_that_still_runs_is_told_as_such_and_later_as_done(service: ServiceProcess) -> None:
    """LiveKit puts a placeholder into the context, with another id, and takes it away again."""
    system, *_ = [TOOL_TURN.system]
    line, made = Message("user", TOOL_TURN.line), TOOL_TURN.call

    def at(output: str, *after: Message) -> lk.ChatContext:
        ctx = with_system(context(*TOOL_TURN.history, line), system)
        arguments = json.dumps(made.arguments)
        ctx.items.append(lk.FunctionCall(call_id="call-1", name=made.name, arguments=arguments))
        ctx.items.append(lk.FunctionCallOutput(call_id="call-1", name=made.name, output=output, is_error=False))
        for message in after:
            ctx.add_message(role=message.role, content=message.text)
        return ctx

    still = "The tool call is still in progress."
    async with model(service.address) as llm:
        tools = [tool for tool in function_tools(never) if isinstance(tool, lk.Tool)]
        waits = await replied(llm, at(still), tools=tools)
        done = await replied(llm, at(json.dumps(TOOL_TURN.booking)), tools=tools)
    async with Client(service.address) as client:
        for output, text in ((still, waits), (json.dumps(TOOL_TURN.booking), done)):
            items = [*with_the_tool_call()[:-1], ToolResult("call-1", output)]
            definitions = view_of(lk.ChatContext.empty(), tools).tools
            async with client.call(system=system, tools=definitions, items=items, **GREEDY) as call:
                assert (await (await call.respond()).run()).text == text


async def test_a_new_line_of_the_caller_while_a_tool_runs(service: ServiceProcess) -> None:
    running, done = asyncio.Event(), asyncio.Event()

    async def slow(name: str, arguments: object) -> str:
        running.set()
        await done.wait()
        return json.dumps(TOOL_TURN.booking)

    receptionist = Agent(
        instructions=TOOL_TURN.system, tools=function_tools(slow), chat_ctx=context(*TOOL_TURN.history)
    )
    async with model(service.address) as llm, agent(llm, receptionist) as session:
        session.generate_reply(user_input=TOOL_TURN.line)
        await running.wait()
        asyncio.get_running_loop().call_later(0.5, done.set)
        await session.interrupt()
        await session.generate_reply(user_input="Are you still there?")
        history = view_of(receptionist.chat_ctx, []).items
        assert isinstance(history[-1], Message) and history[-1].role == "assistant"
        definitions = view_of(lk.ChatContext.empty(), receptionist.tools).tools
        async with Client(service.address) as client:
            alone = client.call(system=TOOL_TURN.system, tools=definitions, items=history[:-2], **GREEDY)
            async with alone as call:
                assert (await call.ask("Are you still there?")).text == history[-1].text
        assert texts(session)[-1][1] == history[-1].text


async def test_half_a_tool_call_and_silence_are_left_out() -> None:
    ctx = context(Message("user", ""), Message("user", "Hello."))
    ctx.items.append(lk.FunctionCall(call_id="a", name="look", arguments='{"at": 1}'))
    ctx.items.append(lk.FunctionCallOutput(call_id="b", name="look", output="1", is_error=False))
    ctx.items.append(lk.FunctionCall(call_id="c", name="look", arguments='{"at": 2}', id="three"))
    ctx.items.append(lk.FunctionCallOutput(call_id="c", name="look", output="no", is_error=True, id="four"))
    hello, *rest = view_of(ctx, []).items
    assert isinstance(hello, Message) and hello.text == "Hello." and hello.item_id
    assert rest == [
        ToolCall("c", "look", {"at": 2}, item_id="three"),
        ToolResult("c", "no", True, "look", item_id="four"),
    ]


async def test_a_picture_is_refused_and_not_tried_again(service: ServiceProcess) -> None:
    ctx = with_system(context(Message("user", LINES[0])))
    ctx.items.append(lk.ChatMessage(role="user", content=[lk.ImageContent(image="https://example.com/a.jpg")]))
    async with model(service.address) as llm:
        with pytest.raises(APIStatusError) as refused:
            await replied(llm, ctx)
        assert refused.value.status_code == 400 and not refused.value.retryable
