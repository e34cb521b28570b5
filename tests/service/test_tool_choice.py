"""Replies that are held to a form: which tools are called, and that what is called or said is what a schema allows."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from service import client_events as client
from service import server_events as server
from service.items import ToolDefinition
from service.options import GenerationPatch, ToolChoice, TurnOptions
from service.problems import Reason
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest
from tests.service.test_telemetry import at_a_tool_call

SIZE = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
        "where": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
    },
    "required": ["kind", "count", "code", "notes", "where"],
}
FOREIGN = ToolDefinition("order", "Order something.", SIZE)
OTHER = ToolDefinition("wait", "Wait.", {"type": "object", "properties": {}, "additionalProperties": False})


def options(choice: ToolChoice, **fields) -> TurnOptions:
    return TurnOptions(generation=GenerationPatch(tool_choice=choice, **fields))


def answered(call: CallUnderTest, turn: int = 1) -> list[server.ToolCalled]:
    """Run to the turn's end, every tool answered."""
    done: list[server.ToolCalled] = []
    call.run()
    while fresh := call.of(server.ToolCalled)[len(done) :]:
        done += fresh
        for called in fresh:
            call.send(client.ToolResult(turn, called.call.call_id, '{"ok": true}'))
        call.run()
    return done


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_required_call_comes_first_and_the_reply_goes_on_behind_it(temperature):
    tools = (FOREIGN, OTHER)
    call = CallUnderTest(client.Open(system=SYSTEM, tools=tools, seed=7))
    call.send(client.Final(1, LINES[0], options(ToolChoice("required"), temperature=temperature)))
    calls = answered(call)
    assert calls and calls[0].offset == 0
    (end,) = call.of(server.TurnEnded)
    assert end.reason in (server.TurnEnd.COMPLETED, server.TurnEnd.LENGTH)
    for called in calls:
        schema = next(tool.parameters for tool in tools if tool.name == called.call.name)
        Draft202012Validator(schema).validate(json.loads(called.call.arguments))


@pytest.mark.parametrize("name", ["order", "wait"])
def test_a_named_tool_is_the_one_that_is_called(name):
    call = CallUnderTest(client.Open(system=SYSTEM, tools=(FOREIGN, OTHER), seed=7))
    call.send(client.Final(1, LINES[0], options(ToolChoice("required", name, several=False))))
    call.run()
    assert [called.call.name for called in call.of(server.ToolCalled)] == [name]


def test_no_tool_is_called_where_none_may_be_though_the_model_would():
    opening, line = at_a_tool_call()
    for choice, calls in ((ToolChoice(), True), (ToolChoice("none"), False)):
        call = CallUnderTest(opening)
        call.send(client.Final(1, line, options(choice)))
        call.run()
        assert bool(call.of(server.ToolCalled)) is calls
        call.call.disconnect()
        call.run()


@pytest.mark.parametrize("seed", range(8))
def test_calls_of_a_tool_that_the_model_never_saw_are_valid(seed):
    call = CallUnderTest(client.Open(system=SYSTEM, tools=(FOREIGN,), seed=seed))
    choice = ToolChoice("required", several=False)
    call.send(client.Final(1, LINES[0], options(choice, temperature=1.0, max_tokens=200)))
    call.run()
    (called,) = call.of(server.ToolCalled)
    Draft202012Validator(SIZE).validate(json.loads(called.call.arguments))


@pytest.mark.parametrize("tools", [(), (FOREIGN,)])
def test_a_reply_of_a_schema(tools):
    schema = json.dumps(SIZE)
    call = CallUnderTest(client.Open(system=SYSTEM, tools=tools, seed=3))
    patch = GenerationPatch(tool_choice=ToolChoice("none"), text_schema=schema, temperature=1.0, max_tokens=200)
    call.send(client.Final(1, LINES[0], TurnOptions(generation=patch)))
    call.run()
    Draft202012Validator(SIZE).validate(json.loads(call.text(1)))
    call.send(client.Final(2, LINES[1], TurnOptions(generation=GenerationPatch(max_tokens=12))))
    call.run()
    assert not call.text(2).startswith("{")


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ((), ToolChoice("required"), "final.options.tool_choice.mode"),
        (TOOLS, ToolChoice("required", "nobody"), "final.options.tool_choice.tool_name"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_and_the_call_goes_on(tools, choice, field):
    call = CallUnderTest(client.Open(system=SYSTEM, tools=tools, seed=7))
    call.send(client.Final(1, LINES[0], options(choice)))
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.INVALID_FIELD and failure.problem.field == field
    call.send(client.Final(1, LINES[0], options(ToolChoice("none"), max_tokens=4)))
    call.run()
    assert call.text(1)


def test_a_reply_made_ahead_answers_only_a_final_with_the_same_choice():
    call = CallUnderTest(client.Open(system=SYSTEM, tools=TOOLS, seed=7, progress_notices=True))
    wanted = options(ToolChoice("none"), max_tokens=8)
    for turn, final in enumerate((wanted, options(ToolChoice(), max_tokens=8)), 1):
        call.send(client.EagerEndOfTurn(turn, turn, LINES[0], wanted))
        call.run()
        call.send(client.Final(turn, LINES[0], final))
        answered(call, turn)
    states = [event.state for event in call.of(server.AnsweringAhead)]
    assert states == [
        server.AheadState.STARTED,
        server.AheadState.RELEASED,
        server.AheadState.STARTED,
        server.AheadState.MISMATCHED,
    ]
