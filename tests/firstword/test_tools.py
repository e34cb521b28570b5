"""Tool calls, answered by handlers and by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from firstword import (
    Call,
    CallError,
    Client,
    EndReason,
    TextDelta,
    Tool,
    ToolCall,
    ToolHandler,
    Turn,
    Waiting,
)
from firstword.tools import execute
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import TOOL_TURN, tools, with_the_tool_call

SYSTEM, HISTORY, LINE, BOOKING = TOOL_TURN.system, TOOL_TURN.history, TOOL_TURN.line, TOOL_TURN.booking


def at_the_tool_call(client: Client, handler: ToolHandler | None = None, **fields: Any) -> Call:
    """A call in which ``LINE`` makes the model call a tool."""
    return client.call(
        system=SYSTEM, tools=tools(handler), items=HISTORY, temperature=0.0, seed=1, max_tokens=60, **fields
    )


async def waiting(turn: Turn) -> ToolCall:
    """Follow the turn until it waits for its tool."""
    async for event in turn:
        if isinstance(event, Waiting):
            (call,) = turn.tool_calls
            assert event.call_ids == (call.call_id,)
            assert event.usage.completion_tokens > 0
            return call
    raise AssertionError("the turn called no tool")


async def test_by_hand_and_by_handler_the_reply_is_the_same(service: ServiceProcess) -> None:
    """And the one to a history that holds the call and its result already."""
    seen: list[dict[str, Any]] = []

    async def find(**arguments: Any) -> dict[str, str]:
        seen.append(arguments)
        return BOOKING

    async with Client(service.address) as client:
        async with at_the_tool_call(client) as call:
            turn = await call.final(LINE)
            made = await waiting(turn)
            await call.tool_result(made, json.dumps(BOOKING))
            after = [event async for event in turn]
            assert all(isinstance(event, TextDelta) for event in after)
            by_hand = turn.text
        async with at_the_tool_call(client, find) as call:
            by_handler = await call.ask(LINE)
        told = client.call(system=SYSTEM, tools=tools(), items=with_the_tool_call(), temperature=0.0, max_tokens=60)
        async with told as call:
            from_history = await (await call.respond()).run()
    assert seen == [dict(made.arguments)]
    assert by_handler.text == by_hand == from_history.text != ""
    assert by_handler.report is not None
    assert by_handler.report.timings.tool_wait_ms is not None


async def test_events_are_seen_while_handlers_run(service: ServiceProcess) -> None:
    kinds: list[str] = []
    async with Client(service.address) as client, at_the_tool_call(client, lambda **_: BOOKING) as call:
        await call.ask(LINE, on_event=lambda event: kinds.append(type(event).__name__))
    assert kinds.index("ToolCall") < kinds.index("TextDelta")


async def test_a_handler_that_raises_is_an_error_for_the_model(service: ServiceProcess) -> None:
    def fail(**_: Any) -> str:
        raise RuntimeError("the book is closed")

    async with Client(service.address) as client, at_the_tool_call(client, fail) as call:
        turn = await call.ask(LINE)
    assert turn.report is not None
    assert turn.report.reason is EndReason.COMPLETED
    assert turn.text


async def test_without_a_handler_run_says_so(service: ServiceProcess) -> None:
    async with Client(service.address) as client, at_the_tool_call(client) as call:
        with pytest.raises(LookupError, match="has no handler"):
            await call.ask(LINE)
        assert call.turn is not None
        (made,) = call.turn.tool_calls
        await call.tool_result(made, json.dumps(BOOKING))
        assert (await call.turn.run()).text


async def test_a_result_that_asks_for_no_reply_ends_the_turn(service: ServiceProcess) -> None:
    async with Client(service.address) as client, at_the_tool_call(client) as call:
        turn = await call.final(LINE)
        await call.tool_result(await waiting(turn), "{}", no_reply=True, item_id="result")
        assert [event async for event in turn] == []
        assert turn.report is not None
        assert turn.report.item_ids[-1] == "result"
        assert turn.text == ""


async def test_a_refused_result_raises_from_its_turn_which_goes_on(service: ServiceProcess) -> None:
    async with Client(service.address) as client, at_the_tool_call(client) as call:
        turn = await call.final(LINE)
        made = await waiting(turn)
        await call.tool_result(ToolCall("other", made.name, turn_id=turn.id), "{}")
        with pytest.raises(CallError) as refused:
            await anext(turn)
        assert (refused.value.reason, refused.value.field) == ("UNKNOWN_TOOL_CALL", "tool_result.call_id")
        await call.tool_result(made, json.dumps(BOOKING))
        assert (await turn.run()).text


async def test_a_turn_that_fails_raises_and_has_its_report(service: ServiceProcess) -> None:
    async with Client(service.address) as client, at_the_tool_call(client) as call:
        turn = await call.final(LINE)
        await call.tool_result(await waiting(turn), "word " * 3000)
        for _ in range(2):
            with pytest.raises(CallError) as failed:
                await turn.run()
        assert (failed.value.reason, failed.value.turn_id) == ("CONTEXT_FULL", turn.id)
        assert turn.report is not None
        assert turn.report.reason is EndReason.FAILED


async def test_a_waiting_turn_can_be_interrupted_and_its_handler_ends(service: ServiceProcess) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(**_: Any) -> dict[str, str]:
        asked.set()
        await release.wait()
        return BOOKING

    async with Client(service.address) as client, at_the_tool_call(client, slow) as call:
        asking = asyncio.create_task(call.ask(LINE))
        await asked.wait()
        assert (await call.interrupt()).text == ""
        release.set()
        turn = await asking
        assert turn.report is not None
        assert turn.report.reason is EndReason.INTERRUPTED
        assert turn.error is None


class Shouter:
    async def __call__(self, word: str) -> str:
        return word.upper()


def where(word: str) -> str:
    return f"{word} {threading.current_thread() is threading.main_thread()}"


async def cancelled_from_inside() -> str:
    task = asyncio.create_task(asyncio.sleep(1))
    task.cancel()
    await task
    return "never"


@pytest.mark.parametrize(
    ("handler", "arguments", "output", "is_error"),
    [
        (Shouter(), {"word": "höre"}, "HÖRE", False),
        (where, {"word": "main"}, "main False", False),
        (lambda: {"a": ["ö", None]}, {}, '{"a": ["ö", null]}', False),
        (lambda: object(), {}, '{"error": "Object of type object is not JSON serializable"}', True),
        (cancelled_from_inside, {}, "it was cancelled", True),
        (lambda: None, {"extra": 1}, "unexpected keyword", True),
    ],
)
async def test_what_handlers_give(handler: ToolHandler, arguments: dict[str, Any], output: str, is_error: bool) -> None:
    result = await execute({"t": Tool("t", handler=handler)}, ToolCall("c", "t", arguments))
    assert output in result.output
    assert (result.call_id, result.is_error) == ("c", is_error)


async def test_a_tool_that_there_is_not_is_an_error_for_the_model() -> None:
    result = await execute({}, ToolCall("c", "imagined"))
    assert (result.is_error, json.loads(result.output)) == (True, {"error": "there is no tool imagined"})
