"""Side questions over a real socket."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from jsonschema import Draft202012Validator

from firstword import CallError, CallFailed, Client, EndReason, Message, Sampling, TurnOptions
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM

SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
SHORT = Sampling(max_tokens=12)


async def test_side_questions_beside_a_call(service: ServiceProcess) -> None:
    async with Client(service.address) as client:
        async with client.call(system=SYSTEM, seed=5) as call:
            plain = await call.ask(LINES[0], options=TurnOptions(SHORT))
        async with client.call(system=SYSTEM, seed=5) as call:
            turn = await call.final(LINES[0], options=TurnOptions(SHORT))
            beside = asyncio.create_task(call.generate("What does the caller want?", sampling=SHORT))
            await turn.run()
            answer = await beside
            form = await call.generate("How do they feel?", response_schema=SCHEMA)
            own = await call.generate(items=[Message("user", "Sum up: all went well.")], sampling=SHORT)
            with pytest.raises(CallError) as late:
                await call.generate("Tell me everything.", timeout_ms=1)
            dropped = asyncio.create_task(call.generate("Never mind.", sampling=Sampling(max_tokens=200)))
            await asyncio.sleep(0)
            dropped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dropped
            with pytest.raises(ValueError, match="a question or a conversation"):
                await call.generate()
            again = await call.ask("Thanks.", options=TurnOptions(SHORT))
    assert turn.text == plain.text and again.text
    assert answer.text and answer.reason in (EndReason.COMPLETED, EndReason.LENGTH) and own.text
    assert form.usage.cached_tokens > 0 and answer.usage.completion_tokens <= 12 and answer.drafting.steps > 0
    assert answer.timings.first_token_ms is not None and answer.timings.total_ms >= answer.timings.first_token_ms
    Draft202012Validator(SCHEMA).validate(json.loads(form.text))
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED and late.value.reason == "QUESTION_TIMED_OUT"


async def test_a_question_on_a_call_that_is_over(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(system=SYSTEM) as call:
        waiting = asyncio.create_task(call.generate("Tell me everything.", sampling=Sampling(max_tokens=200)))
        await asyncio.sleep(0)
        await call.close()
        with pytest.raises(CallFailed):
            await waiting
        with pytest.raises(CallFailed):
            await call.generate("Hello?")
