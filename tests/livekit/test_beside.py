"""What goes on beside a session's own replies, and what goes wrong."""

from __future__ import annotations

import grpc
import pytest
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APIStatusError, APITimeoutError
from livekit.agents import llm as lk

from firstword import CLOSED, CallError, CallFailed, FirstwordError, Message
from firstword.livekit import LLM
from firstword.livekit.errors import api_error
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM, TOOL_TURN
from tests.livekit.agents import context, function_tools, model, replied, said, until
from tests.livekit.test_context import never, with_system

ONCE = APIConnectOptions(max_retry=0)


async def test_a_chat_beside_a_reply_disturbs_nothing(service: ServiceProcess) -> None:
    """As a FallbackAdapter's probe, or an application that asks something of its own."""
    ctx = with_system(context(Message("user", LINES[0])))
    aside = with_system(context(Message("user", LINES[2])))
    wanted = await said(service.address, LINES[0], system=SYSTEM)
    other = await said(service.address, LINES[2], system=SYSTEM)
    async with model(service.address) as llm:
        stream = llm.chat(chat_ctx=ctx)
        text = ""
        first = await anext(aiter(stream))
        text += (first.delta and first.delta.content) or ""
        assert llm._conversation.replying
        assert await replied(llm, aside) == other
        async for chunk in stream:
            text += (chunk.delta and chunk.delta.content) or ""
        assert text == wanted
        ctx.add_message(role="assistant", content=wanted)
        ctx.add_message(role="user", content=LINES[1])
        history = (Message("user", LINES[0]), Message("assistant", wanted))
        assert await replied(llm, ctx) == await said(service.address, LINES[1], *history, system=SYSTEM)


async def test_a_tool_that_asks_something_does_not_end_the_reply_that_waits_for_it(service: ServiceProcess) -> None:
    ctx = with_system(context(*TOOL_TURN.history, Message("user", TOOL_TURN.line)), TOOL_TURN.system)
    tools = [tool for tool in function_tools(never) if isinstance(tool, lk.Tool)]
    async with model(service.address) as llm:
        (made,) = (await llm.chat(chat_ctx=ctx, tools=tools).collect()).tool_calls
        waiting = llm._conversation.turn
        await replied(llm, with_system(context(Message("user", LINES[0]))))
        ctx.items.append(lk.FunctionCall(call_id=made.call_id, name=made.name, arguments=made.arguments))
        ctx.items.append(lk.FunctionCallOutput(call_id=made.call_id, name=made.name, output="{}", is_error=False))
        await replied(llm, ctx, tools=tools)
        assert waiting is not None and llm._conversation.turn is waiting


async def test_a_fallback_takes_over_where_nobody_answers(service: ServiceProcess) -> None:
    async with model(service.address) as llm:
        nobody = LLM("127.0.0.1:1")
        adapter = lk.FallbackAdapter([nobody, llm], attempt_timeout=2.0)
        ctx = with_system(context(Message("user", LINES[0])))
        assert await replied(adapter, ctx) == await said(service.address, LINES[0], system=SYSTEM)
        await adapter.aclose()
        await nobody.aclose()


async def test_a_call_that_was_lost_is_begun_again(service: ServiceProcess) -> None:
    ctx = with_system(context(Message("user", LINES[0])))
    async with model(service.address, session_id="the-only-one") as llm:
        text = await replied(llm, ctx)
        assert llm._conversation.call is not None
        await llm._conversation.call.close()
        ctx.add_message(role="assistant", content=text)
        ctx.add_message(role="user", content=LINES[1])
        history = (Message("user", LINES[0]), Message("assistant", text))
        assert await replied(llm, ctx) == await said(service.address, LINES[1], *history, system=SYSTEM)


async def test_a_refusal_is_told_as_one(service: ServiceProcess) -> None:
    ctx = with_system(context(Message("user", LINES[0])))
    async with model(service.address, model="another") as llm:
        with pytest.raises(APIStatusError) as refused:
            await replied(llm, ctx, conn_options=ONCE)
        assert refused.value.status_code in (400, 404) and not refused.value.retryable
    with pytest.raises(TypeError, match="system"):
        LLM(service.address, system=SYSTEM)


async def test_prewarming_opens_the_call(service: ServiceProcess) -> None:
    async with model(service.address) as llm:
        llm.prewarm()
        await until(lambda: llm._conversation.call is not None)
        opened = llm._conversation.call
        assert opened is not None
        await replied(llm, with_system(context(Message("user", LINES[0]))))
        assert llm._conversation.call is opened
    assert opened.failure is not None and opened.failure.reason == CLOSED


@pytest.mark.parametrize(
    ("error", "kind", "status", "retryable"),
    [
        (TimeoutError(), APITimeoutError, None, True),
        (CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "", ""), APITimeoutError, None, True),
        (CallFailed(grpc.StatusCode.UNAVAILABLE, "", ""), APIConnectionError, None, True),
        (CallFailed(grpc.StatusCode.CANCELLED, "", ""), APIConnectionError, None, True),
        (CallFailed(grpc.StatusCode.CANCELLED, CLOSED, ""), APIStatusError, 499, True),
        (CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "", "", retry_after_s=1.0), APIStatusError, 429, True),
        (CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "", ""), APIStatusError, 429, False),
        (CallError(grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_FULL", ""), APIStatusError, 400, False),
        (CallFailed(grpc.StatusCode.UNAUTHENTICATED, "", ""), APIStatusError, 401, False),
        (CallError(grpc.StatusCode.INTERNAL, "", ""), APIStatusError, 500, True),
        (CallError(grpc.StatusCode.UNIMPLEMENTED, "", ""), APIStatusError, 501, False),
        (ValueError("no"), APIStatusError, 400, False),
    ],
)
def test_errors_say_whether_to_try_again(
    error: FirstwordError | TimeoutError | ValueError, kind: type[APIError], status: int | None, retryable: bool
) -> None:
    made = api_error(error, sent=False)
    assert type(made) is kind and getattr(made, "status_code", None) == status and made.retryable is retryable
    assert not api_error(error, sent=True).retryable
