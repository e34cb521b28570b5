"""Forms of replies and guardrails, over a real socket."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from jsonschema import Draft202012Validator

from firstword import (
    CallError,
    CallFailed,
    Client,
    EndReason,
    Limits,
    Notice,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    TurnOptions,
)
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM

ORDER = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "large"]},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"},
        "to": {"type": "object", "properties": {"floor": {"type": "integer", "minimum": 0, "maximum": 9}}},
    },
    "required": ["size", "code", "to"],
}
TOOLS = [Tool("order", "Order something.", ORDER), Tool("wait", "Wait.", timeout_ms=150)]
HOT = Sampling(temperature=1.0, max_tokens=120)


async def test_tools_and_text_of_a_form(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(system=SYSTEM, tools=TOOLS, seed=1) as call:
        named = TurnOptions(HOT, ToolChoice(tool="order", parallel=False))
        turn = await call.final(LINES[0], options=named)
        async for event in turn:
            if isinstance(event, ToolCall):
                Draft202012Validator(ORDER).validate(event.arguments)
                await call.tool_result(event, '{"ok": true}', no_reply=True)
        assert [made.name for made in turn.tool_calls] == ["order"]
        schema = TurnOptions(HOT, ToolChoice("none"), response_schema=ORDER)
        turn = await call.ask(LINES[1], options=schema)
        Draft202012Validator(ORDER).validate(json.loads(turn.text))
    async with Client(service.address) as client, client.call(system=SYSTEM, seed=1, response_schema=ORDER) as call:
        turn = await call.ask(LINES[0], options=TurnOptions(HOT))
        Draft202012Validator(ORDER).validate(json.loads(turn.text))
        turn = await call.ask(LINES[0], options=TurnOptions(Sampling(max_tokens=8), response_schema={}))
        assert not turn.text.startswith("{")


async def test_forms_that_there_are_not_are_refused_by_name(service: ServiceProcess) -> None:
    wrong = [Tool("a", "", {"type": "object", "properties": {"x": {"type": "strin"}}})]
    async with Client(service.address) as client:
        with pytest.raises(CallFailed) as failed:
            async with client.call(tools=wrong):
                pass
        assert failed.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.value.field == "open.tools[0].parameters_json_schema"
        async with client.call(system=SYSTEM) as call:
            with pytest.raises(CallError) as refused:
                await call.ask("Hi.", options=TurnOptions(tool_choice=ToolChoice("required")))
            assert refused.value.field == "final.options.tool_choice.mode"
            assert (await call.ask("Hi.", options=TurnOptions(Sampling(max_tokens=4)))).text


async def test_limits_of_tools(service: ServiceProcess) -> None:
    told: list[str] = []

    def on_notice(notice: Notice | CallError) -> None:
        assert isinstance(notice, Notice)
        told.append(notice.kind)

    limits = Limits(max_tool_calls_per_call=2)
    must = TurnOptions(Sampling(max_tokens=60), ToolChoice(tool="wait", parallel=False))
    async with (
        Client(service.address) as client,
        client.call(system=SYSTEM, tools=TOOLS, seed=1, limits=limits, on_notice=on_notice) as call,
    ):
        assert call.opened.limits.max_tool_calls_per_call == 2
        for _ in range(2):  # nobody answers: the time-out does
            turn = await call.final(LINES[0], options=must)
            events = [event async for event in turn]
            (made,) = (event for event in events if isinstance(event, ToolCall))
            assert made.timeout_ms == 150
            assert turn.report is not None and turn.report.reason in (EndReason.COMPLETED, EndReason.LENGTH)
            assert turn.report.timings.tool_wait_ms is not None and turn.report.timings.tool_wait_ms >= 150
            told += [event.kind for event in events if isinstance(event, Notice)]
        assert sorted(set(told)) == ["limit_reached", "tool_timed_out"]
        turn = await call.ask(LINES[0], options=must)
        assert not turn.tool_calls and turn.text


@pytest.mark.parametrize(
    ("limits", "reason"), [(Limits(max_idle_ms=200), "CALL_IDLE"), (Limits(max_call_ms=300), "CALL_TOO_LONG")]
)
async def test_limits_of_time(service: ServiceProcess, limits: Limits, reason: str) -> None:
    told: list[Notice | CallError] = []
    async with Client(service.address) as client:
        call = client.call(system=SYSTEM, limits=limits, on_notice=told.append)
        with pytest.raises(CallFailed) as failed:
            async with call:
                turn = await call.ask("Hello.", options=TurnOptions(Sampling(max_tokens=4)))
                assert turn.report is not None
                await asyncio.sleep(0.6)
                await call.final("Hello?")
        assert failed.value.code is grpc.StatusCode.DEADLINE_EXCEEDED and failed.value.reason == reason
        (notice,) = told
        assert isinstance(notice, Notice) and notice.kind == "limit_reached"
        assert "limit of " in notice.message
