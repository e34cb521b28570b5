"""Messages to values and back: nothing is lost, and what cannot be used is refused by its field's path."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling import Sampling
from engine.session import Phase, TurnStats
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import resume_pb2 as resume_pb
from firstword.v1 import server_events_pb2 as server_pb
from service import client_events as client
from service import server_events as server
from service.errors import STATUS
from service.items import MessageItem, ToolCallItem, ToolDefinition, ToolResultItem
from service.options import (
    AnswerAheadPatch,
    ContextPolicy,
    Generation,
    GenerationPatch,
    Limits,
    ToolChoice,
    TurnOptions,
)
from service.problems import Guardrail, Problem, Reason, invalid
from service.telemetry import TurnRecord
from service.wire import client_event, response

TEXT = st.text(min_size=1).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
TURN = st.integers(1, 2**64 - 1)


def read(**event: Any) -> client.ClientEvent:
    """What the service makes of an event that went over the wire."""
    sent = call_pb.CallRequest(client_seq=1, **event)
    return client_event(call_pb.CallRequest.FromString(sent.SerializeToString()))


def written(event: server.ServerEvent) -> call_pb.CallResponse:
    """What a client gets of an event."""
    message = response(server.Envelope(3, 7, 5, 2, event))
    received = call_pb.CallResponse.FromString(message.SerializeToString())
    assert (received.generation, received.seq, received.durable_seq, received.client_seq) == (3, 7, 5, 2)
    return received


# What a client says


@given(TURN, UINT64, st.text(alphabet="ab日"))
def test_partial(turn_id: int, revision: int, text: str) -> None:
    message = client_pb.Partial(turn_id=turn_id, revision=revision, text=text, stable_code_points=len(text))
    assert read(partial=message) == client.Partial(turn_id, revision, text, len(text))


SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.just(0.0) | st.floats(1e-6, 100),
        "top_k": UINT32,
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.floats(0.01, 100),
        "seed": UINT64,
        "max_output_tokens": st.integers(1, 2**32 - 1),
        "stop_strings": st.lists(st.text(alphabet="ab日", min_size=1, max_size=20), max_size=16),
        "stop_token_ids": st.lists(UINT32, max_size=5),
    },
)


@given(TURN, TEXT, SAMPLING, st.booleans(), st.one_of(st.none(), st.integers(1, 2**32 - 1)))
def test_final_with_its_options(
    turn_id: int, text: str, sampling: dict[str, Any], plain: bool, deadline: int | None
) -> None:
    options = options_pb.TurnOptions(
        traceparent="00-a",
        tracestate="b",
        first_token_deadline_ms=deadline,
        sampling=options_pb.Sampling(**sampling),
        drafting_mode="plain" if plain else "",
    )
    event = read(final=client_pb.Final(turn_id=turn_id, text=text, options=options, item_id="i"))
    stops = tuple(sampling.pop("stop_strings", ()))
    ids = frozenset(sampling.pop("stop_token_ids", ()))
    limit = sampling.pop("max_output_tokens", None)
    drafting = False if plain else None
    patch = GenerationPatch(max_tokens=limit, stop_strings=stops, stop_token_ids=ids, drafting=drafting, **sampling)
    assert event == client.Final(turn_id, text, TurnOptions("00-a", "b", deadline, patch), "i")


@pytest.mark.parametrize(
    ("choice", "read_as"),
    [
        ({}, None),
        ({"mode": conversation_pb.TOOL_CHOICE_MODE_UNSPECIFIED}, ToolChoice()),
        ({"mode": conversation_pb.TOOL_CHOICE_MODE_NONE}, ToolChoice("none")),
        ({"mode": conversation_pb.TOOL_CHOICE_MODE_REQUIRED, "parallel": False}, ToolChoice("required", several=False)),
        ({"tool_name": "t", "parallel": True}, ToolChoice("required", "t")),
        ({"parallel": False}, ToolChoice(several=False)),
    ],
)
def test_tool_choice(choice: dict[str, Any], read_as: ToolChoice | None) -> None:
    options = options_pb.TurnOptions(tool_choice=conversation_pb.ToolChoice(**choice))
    event = read(final=client_pb.Final(turn_id=1, text="x", options=options))
    assert isinstance(event, client.Final) and event.options.generation.tool_choice == read_as


@pytest.mark.parametrize(
    ("form", "read_as"), [(None, None), ({}, ""), ({"json_schema": '{"type":"object"}'}, '{"type": "object"}')]
)
def test_response_format(form: dict[str, str] | None, read_as: str | None) -> None:
    given = None if form is None else conversation_pb.ResponseFormat(**form)
    event = read(respond=client_pb.Respond(turn_id=1, options=options_pb.TurnOptions(response_format=given)))
    assert isinstance(event, client.Respond) and event.options.generation.text_schema == read_as


def test_items_and_update() -> None:
    mine = [item(message=message(conversation_pb.ROLE_USER, "hi"))]
    wanted = (MessageItem("", "user", "hi"),)
    assert read(items=client_pb.Items(items=mine, history_version=3)) == client.Items(wanted, 3)
    assert read(items=client_pb.Items(items=mine)) == client.Items(wanted)
    assert read(update=client_pb.Update()) == client.Update()
    event = read(
        update=client_pb.Update(
            system_prompt="",
            tools=conversation_pb.ToolList(tools=[conversation_pb.Tool(name="t", timeout_ms=9)]),
            tool_choice=conversation_pb.ToolChoice(tool_name="t"),
            response_format=conversation_pb.ResponseFormat(),
            sampling=options_pb.Sampling(temperature=0.5),
        )
    )
    patch = GenerationPatch(temperature=0.5, tool_choice=ToolChoice("required", "t"), text_schema="")
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = (ToolDefinition("t", "", nothing, 9),)
    assert event == client.Update("", tools, patch)


def test_generate() -> None:
    mine = conversation_pb.ItemList(items=[item(message=message(conversation_pb.ROLE_USER, "hi"))])
    sampling = options_pb.Sampling(temperature=0.5)
    event = read(generate=client_pb.Generate(request_id=4, conversation=mine, sampling=sampling, timeout_ms=7))
    patch = GenerationPatch(temperature=0.5)
    assert event == client.Generate(4, items=(MessageItem("", "user", "hi"),), generation=patch, timeout_ms=7)
    form = conversation_pb.ResponseFormat(json_schema='{"type":"object"}')
    event = read(generate=client_pb.Generate(request_id=5, question="x", response_format=form, traceparent="t"))
    patch = GenerationPatch(text_schema='{"type": "object"}')
    assert event == client.Generate(5, "x", generation=patch, traceparent="t")
    assert read(cancel_generate=client_pb.CancelGenerate(request_id=5)) == client.CancelGenerate(5)


WORDS = st.lists(
    st.one_of(
        st.tuples(UINT64, UINT32).map(lambda w: client_pb.WordTiming(end_ms=w[0], end_code_points=w[1])),
        st.tuples(UINT64, TEXT).map(lambda w: client_pb.WordTiming(end_ms=w[0], word=w[1])),
    ),
    max_size=4,
)


@given(
    st.one_of(
        st.fixed_dictionaries({"text": st.text(alphabet="ab日")}),
        st.fixed_dictionaries({"code_points": UINT32}),
        st.fixed_dictionaries({"played_ms": UINT64}),
    ),
    WORDS,
)
def test_heard(measure: dict[str, Any], words: list[client_pb.WordTiming]) -> None:
    heard = client_pb.Heard(words=words, **measure)
    timings = tuple(
        client.WordTiming(word.end_ms, word=word.word)
        if word.WhichOneof("place") == "word"
        else client.WordTiming(word.end_ms, end_chars=word.end_code_points)
        for word in words
    )
    expected = client.Heard(measure.get("text"), measure.get("code_points"), measure.get("played_ms"), timings)
    assert read(interrupt=client_pb.Interrupt(turn_id=1, heard=heard)) == client.Interrupt(1, expected)
    assert read(playback_progress=client_pb.PlaybackProgress(turn_id=1, heard=heard)) == client.Playback(1, expected)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"speech_started": client_pb.SpeechStarted()}, client.SpeechStarted()),
        ({"close": client_pb.Close(forget=True)}, client.CloseCall(True)),
        ({"acknowledge": client_pb.Acknowledge(seq=9)}, client.Acknowledge(9)),
        ({"interrupt": client_pb.Interrupt(turn_id=2)}, client.Interrupt(2, None)),
        ({"respond": client_pb.Respond(turn_id=2)}, client.Respond(2)),
        (
            {"say": client_pb.Say(turn_id=2, text="x", item_id="i", traceparent="p", tracestate="s")},
            client.Say(2, "x", "i", "p", "s"),
        ),
        (
            {"tool_result": client_pb.ToolResult(turn_id=2, call_id="c", is_error=True, no_reply=True, item_id="i")},
            client.ToolResult(2, "c", "", True, True, "i"),
        ),
    ],
)
def test_events_with_little_in_them(sent: dict[str, Any], expected: client.ClientEvent) -> None:
    assert read(**sent) == expected


def item(**content: Any) -> conversation_pb.Item:
    return conversation_pb.Item(**content)


def message(role: conversation_pb.Role.ValueType, text: str = "x", **fields: Any) -> conversation_pb.Message:
    return conversation_pb.Message(role=role, text=text, **fields)


def test_open() -> None:
    schema = '{"properties": {"a": {"type": "string"}}}'
    event = read(
        open=client_pb.Open(
            session_id="s",
            model="m",
            system_prompt="be kind",
            items=[
                item(item_id="i1", message=message(conversation_pb.ROLE_USER, "hi")),
                item(message=message(conversation_pb.ROLE_ASSISTANT, "hel", interrupted=True)),
                item(tool_call=conversation_pb.ToolCall(call_id="c", name="t", arguments_json='{"a": 1}')),
                item(tool_output=conversation_pb.ToolOutput(call_id="c", output="o", is_error=True)),
            ],
            tools=[conversation_pb.Tool(name="t", description="d", parameters_json_schema=schema)],
            tool_choice=conversation_pb.ToolChoice(mode=conversation_pb.TOOL_CHOICE_MODE_AUTO),
            sampling=options_pb.Sampling(temperature=0.5),
            seed=0,
            limits=options_pb.Limits(max_turns=0, max_output_tokens_per_turn=2, max_input_code_points=3),
            context_policy=options_pb.ContextPolicy(action=options_pb.CONTEXT_FULL_ACTION_REFUSE, announce_at_tokens=4),
            first_token_deadline_ms=5,
        )
    )
    assert event == client.Open(
        session_id="s",
        model="m",
        system="be kind",
        items=(
            MessageItem("i1", "user", "hi"),
            MessageItem("", "assistant", "hel", True),
            ToolCallItem("", "c", "t", '{"a": 1}'),
            ToolResultItem("", "c", "t", "o", True),
        ),
        tools=(ToolDefinition("t", "d", {"type": "object", "properties": {"a": {"type": "string"}}}),),
        generation=GenerationPatch(temperature=0.5, tool_choice=ToolChoice()),
        seed=0,
        limits=Limits(0, 2, 3),
        context=ContextPolicy("refuse", 4),
        first_token_deadline_ms=5,
    )


def opening(**fields: Any) -> dict[str, Any]:
    return {"open": client_pb.Open(**fields)}


def sampling(**fields: Any) -> dict[str, Any]:
    options = options_pb.TurnOptions(sampling=options_pb.Sampling(**fields))
    return {"final": client_pb.Final(turn_id=1, text="x", options=options)}


USER, ASSISTANT = conversation_pb.ROLE_USER, conversation_pb.ROLE_ASSISTANT
TOOL_OUTPUT = conversation_pb.ToolOutput(call_id="c")


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (opening(resume={"last_seq": 1}), "open.resume.resume_token"),
        (opening(resume={"resume_token": b"t", "last_seq": 2**53}), "open.resume.last_seq"),
        (opening(resume={"resume_token": b"t", "last_generation": 2**64 - 1}), "open.resume.last_generation"),
        ({}, "event"),
        ({"partial": client_pb.Partial()}, "partial.turn_id"),
        ({"partial": client_pb.Partial(turn_id=1, text="日", stable_code_points=2)}, "partial.stable_code_points"),
        ({"final": client_pb.Final(text="x")}, "final.turn_id"),
        ({"final": client_pb.Final(turn_id=1)}, "final.text"),
        ({"respond": client_pb.Respond()}, "respond.turn_id"),
        ({"say": client_pb.Say(text="x")}, "say.turn_id"),
        ({"say": client_pb.Say(turn_id=1)}, "say.text"),
        ({"interrupt": client_pb.Interrupt()}, "interrupt.turn_id"),
        ({"interrupt": client_pb.Interrupt(turn_id=1, heard=client_pb.Heard())}, "interrupt.heard.measure"),
        ({"playback_progress": client_pb.PlaybackProgress(turn_id=1)}, "playback_progress.heard.measure"),
        (
            {
                "playback_progress": client_pb.PlaybackProgress(
                    turn_id=1, heard=client_pb.Heard(text="x", words=[client_pb.WordTiming(end_ms=1, word="")])
                )
            },
            "playback_progress.heard.words[0].word",
        ),
        (
            {
                "interrupt": client_pb.Interrupt(
                    turn_id=1,
                    heard=client_pb.Heard(
                        text="x", words=[client_pb.WordTiming(word="x"), client_pb.WordTiming(end_ms=1)]
                    ),
                )
            },
            "interrupt.heard.words[1].place",
        ),
        ({"eager_end_of_turn": client_pb.EagerEndOfTurn(text="x")}, "eager_end_of_turn.turn_id"),
        ({"eager_end_of_turn": client_pb.EagerEndOfTurn(turn_id=1)}, "eager_end_of_turn.text"),
        ({"turn_resumed": client_pb.TurnResumed()}, "turn_resumed.turn_id"),
        (opening(answer_ahead=options_pb.AnswerAhead(max_held_tokens=0)), "open.answer_ahead.max_held_tokens"),
        (opening(answer_ahead=options_pb.AnswerAhead(max_held_ms=0)), "open.answer_ahead.max_held_ms"),
        ({"tool_result": client_pb.ToolResult(call_id="c")}, "tool_result.turn_id"),
        ({"tool_result": client_pb.ToolResult(turn_id=1)}, "tool_result.call_id"),
        (sampling(temperature=-0.1), "final.options.sampling.temperature"),
        (sampling(temperature=float("nan")), "final.options.sampling.temperature"),
        (sampling(top_p=0), "final.options.sampling.top_p"),
        (sampling(top_p=1.1), "final.options.sampling.top_p"),
        (sampling(min_p=-1), "final.options.sampling.min_p"),
        (sampling(repetition_penalty=0), "final.options.sampling.repetition_penalty"),
        (sampling(max_output_tokens=0), "final.options.sampling.max_output_tokens"),
        (sampling(stop_strings=["x"] * 17), "final.options.sampling.stop_strings"),
        (sampling(stop_strings=["日" * 86]), "final.options.sampling.stop_strings"),
        (sampling(stop_strings=[""]), "final.options.sampling.stop_strings"),
        (
            {"respond": client_pb.Respond(turn_id=1, options=options_pb.TurnOptions(first_token_deadline_ms=0))},
            "respond.options.first_token_deadline_ms",
        ),
        (
            {"respond": client_pb.Respond(turn_id=1, options=options_pb.TurnOptions(drafting_mode="medusa"))},
            "respond.options.drafting_mode",
        ),
        (opening(session_id="x" * 129), "open.session_id"),
        (opening(session_id="é"), "open.session_id"),
        (opening(session_id="a\nb"), "open.session_id"),
        (opening(sampling=options_pb.Sampling(seed=1)), "open.sampling.seed"),
        (opening(sampling=options_pb.Sampling(top_p=2)), "open.sampling.top_p"),
        (opening(first_token_deadline_ms=0), "open.first_token_deadline_ms"),
        (opening(limits=options_pb.Limits(max_output_tokens_per_turn=0)), "open.limits.max_output_tokens_per_turn"),
        (opening(items=[item()]), "open.items[0].content"),
        (opening(items=[item(message=message(USER)), item(message=message(0))]), "open.items[1].message.role"),  # type: ignore[arg-type]
        (opening(items=[item(message=message(99))]), "open.items[0].message.role"),  # type: ignore[arg-type]
        (opening(items=[item(message=message(USER, interrupted=True))]), "open.items[0].message.interrupted"),
        (opening(items=[item(item_id="i", message=message(USER))] * 2), "open.items[1].item_id"),
        (opening(items=[item(tool_output=TOOL_OUTPUT)]), "open.items[0].tool_output.call_id"),
        (
            opening(items=[item(tool_call=conversation_pb.ToolCall(name="t"))]),
            "open.items[0].tool_call.call_id",
        ),
        (
            opening(items=[item(tool_call=conversation_pb.ToolCall(call_id="c", name="t", arguments_json="[1]"))]),
            "open.items[0].tool_call.arguments_json",
        ),
        (opening(tools=[conversation_pb.Tool(name="a b")]), "open.tools[0].name"),
        (opening(tools=[conversation_pb.Tool(name="t")] * 2), "open.tools[1].name"),
        (
            opening(
                tools=[conversation_pb.Tool(name="t", parameters_json_schema='{"properties": {"a": {"not": {}}}}')]
            ),
            "open.tools[0].parameters_json_schema",
        ),
        (
            opening(response_format=conversation_pb.ResponseFormat(json_schema='{"type": "strin"}')),
            "open.response_format.json_schema",
        ),
        (opening(tool_choice=conversation_pb.ToolChoice(tool_name="")), "open.tool_choice.tool_name"),
        (opening(limits=options_pb.Limits(max_idle_ms=0)), "open.limits.max_idle_ms"),
        (opening(tools=[conversation_pb.Tool(name="t", timeout_ms=0)]), "open.tools[0].timeout_ms"),
        ({"update": client_pb.Update(sampling=options_pb.Sampling(seed=1))}, "update.sampling.seed"),
        (
            {"update": client_pb.Update(tools=conversation_pb.ToolList(tools=[conversation_pb.Tool(name="a b")]))},
            "update.tools.tools[0].name",
        ),
        ({"items": client_pb.Items(items=[item()])}, "items.items[0].content"),
        ({"generate": client_pb.Generate(question="x")}, "generate.request_id"),
        ({"generate": client_pb.Generate(request_id=4)}, "generate.prompt"),
        ({"generate": client_pb.Generate(request_id=4, question="")}, "generate.question"),
        ({"generate": client_pb.Generate(request_id=4, question="x", timeout_ms=0)}, "generate.timeout_ms"),
        (
            opening(tools=[conversation_pb.Tool(name="t", parameters_json_schema="{")]),
            "open.tools[0].parameters_json_schema",
        ),
        (
            opening(tools=[conversation_pb.Tool(name="t", parameters_json_schema="[" * 10_000)]),
            "open.tools[0].parameters_json_schema",
        ),
        (
            opening(tools=[conversation_pb.Tool(name="t", parameters_json_schema='{"properties": 1}')]),
            "open.tools[0].parameters_json_schema",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_refused_by_its_fields_path(sent: dict[str, Any], field: str) -> None:
    event = read(**sent)
    assert isinstance(event, client.Malformed)
    assert (event.problem.reason, event.problem.field) == (Reason.INVALID_FIELD, field)
    assert event.problem.message.startswith(field)


def test_what_is_said_of_replies_made_ahead() -> None:
    options = options_pb.TurnOptions(sampling=options_pb.Sampling(max_output_tokens=3))
    eager = read(eager_end_of_turn=client_pb.EagerEndOfTurn(turn_id=2, revision=5, text="hm", options=options))
    asked = TurnOptions(generation=GenerationPatch(max_tokens=3))
    assert eager == client.EagerEndOfTurn(2, 5, "hm", asked)
    assert read(turn_resumed=client_pb.TurnResumed(turn_id=2)) == client.TurnResumed(2)
    for rule, normalised in (
        (options_pb.MATCH_RULE_UNSPECIFIED, False),
        (options_pb.MATCH_RULE_EXACT_TOKENS, False),
        (options_pb.MATCH_RULE_NORMALISED_TEXT, True),
    ):
        ahead = options_pb.AnswerAhead(match_rule=rule, max_held_tokens=9, max_held_ms=800)
        event = read(**opening(answer_ahead=ahead, progress_notices=True))
        assert isinstance(event, client.Open)
        assert event.answer_ahead == AnswerAheadPatch(normalised, 9, 800) and event.progress_notices
    event = read(**opening())
    assert isinstance(event, client.Open)
    assert event.answer_ahead == AnswerAheadPatch() and not event.progress_notices


def test_a_refused_event_keeps_the_numbers_it_is_about() -> None:
    final = read(final=client_pb.Final(turn_id=7))
    question = read(generate=client_pb.Generate(request_id=4))
    assert isinstance(final, client.Malformed)
    assert isinstance(question, client.Malformed)
    assert (final.turn_id, final.request_id) == (7, 0)
    assert (question.turn_id, question.request_id) == (0, 4)


def test_an_event_of_a_later_version_is_refused_clearly() -> None:
    unknown = call_pb.CallRequest(client_seq=5).SerializeToString() + bytes([(100 << 3 | 2) & 0x7F | 0x80, 6, 0])
    event = client_event(call_pb.CallRequest.FromString(unknown))
    assert isinstance(event, client.Malformed)
    assert event.problem.field == "event"
    assert "version" in event.problem.message


# What a call says


def stats(**fields: Any) -> TurnStats:
    return TurnStats(**{"submitted": 10.0, "started": 10.5, "first_token": 11.0, "ended": 12.0, **fields})


ACCOUNT = TurnRecord(
    turn_id=4,
    committed=10.0,
    first_text=11.25,
    first_clause=11.5,
    ended=16.0,
    output_tokens=9,
    tool_wait_s=2.0,
    stats=[
        stats(
            prompt_tokens=100,
            cached_tokens=90,
            steps=3,
            drafted=6,
            accepted=4,
            drafted_at=[3, 3],
            accepted_at=[3, 1],
            phases=[Phase("plain", "", 3, 6, 4)],
        ),
        stats(
            prompt_tokens=120,
            cached_tokens=111,
            steps=2,
            drafted_at=[1],
            accepted_at=[1],
            phases=[Phase("eagle3", "r", 2)],
        ),
    ],
)
HISTORY = server.HistoryState(8, 130, ("a", "b"))


def ended(reason: server.TurnEnd = server.TurnEnd.COMPLETED, **fields: Any) -> server.TurnEnded:
    values = {
        "source": server.AnswerSource.MODEL,
        "model": "m",
        "text": "the text",
        "account": ACCOUNT,
        "history": HISTORY,
        **fields,
    }
    return server.TurnEnded(4, reason, **values)


@given(TEXT, UINT32, st.lists(UINT32), st.integers(0, 9), st.integers(0, 9))
def test_text_delta(text: str, offset: int, ends: list[int], tokens: int, accepted: int) -> None:
    event = server.TextDelta(4, text, offset, tuple(ends), tokens, accepted, ((len(text), True),), 0.25)
    delta = written(event).text_delta
    assert (delta.turn_id, delta.text, delta.offset_code_points) == (4, text, offset)
    assert list(delta.clause_end_code_points) == ends
    assert (delta.completion_tokens, delta.drafted_tokens) == (tokens, accepted)
    assert [(span.code_points, span.drafted) for span in delta.spans] == [(len(text), True)]
    assert delta.since_commit_us == 250_000


TOKEN = server.ResumeToken(b"t", 1.5)


def test_opened() -> None:
    generation = Generation(Sampling(0.5, 2, 0.9, 0.1, 1.5), 7, ("x",), frozenset({9, 3}))
    event = server.Opened("s", "m", 2**64 - 1, 12, 2048, generation, Limits(None, 5, 6), ["a"], 1, TOKEN)
    opened = written(event).opened
    assert (opened.session_id, opened.model, opened.seed) == ("s", "m", 2**64 - 1)
    assert (opened.used_tokens, opened.max_context_tokens, opened.history_version) == (12, 2048, 1)
    assert opened.sampling == options_pb.Sampling(
        temperature=0.5,
        top_k=2,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.5,
        max_output_tokens=7,
        stop_strings=["x"],
        stop_token_ids=[3, 9],
    )
    assert opened.limits == options_pb.Limits(max_output_tokens_per_turn=5, max_input_code_points=6)
    assert (list(opened.item_ids), list(opened.drafting_modes)) == (["a"], ["plain"])
    assert (opened.resume_token.token, opened.resume_token.expires_in_ms) == (b"t", 1500)
    assert not opened.resumed and not opened.HasField("unfinished")


def test_opened_once_more() -> None:
    unfinished = server.Unfinished(3, 40, ("a", "b"))
    event = server.Opened("s", "m", 1, 12, 2048, Generation(), Limits(), [], 1, TOKEN, True, unfinished)
    opened = written(event).opened
    assert opened.resumed
    assert (opened.unfinished.turn_id, opened.unfinished.text_code_points) == (3, 40)
    assert list(opened.unfinished.waiting_call_ids) == ["a", "b"]


def test_what_goes_with_an_event_and_what_the_store_has() -> None:
    assert response(server.Envelope(1, 2, 0, 0, TOKEN, b"record")).record == b"record"
    notice = written(TOKEN).notice
    assert (notice.resume_token.token, notice.resume_token.expires_in_ms) == (b"t", 1500)
    assert written(server.Durability(True)).notice.durability.durable
    assert not written(server.Durability(False)).notice.durability.durable
    assert written(server.Draining(5, "a:1")).notice.draining.successor_address == "a:1"


def test_resume() -> None:
    asked = resume_pb.Resume(resume_token=b"t", last_seq=7, last_generation=2, records=[b"a", b"b"], take_over=True)
    assert read(open=client_pb.Open(resume=asked)) == client.Resume(b"t", 7, 2, (b"a", b"b"), True)
    event = read(open=client_pb.Open(resume=asked, seed=4))
    assert isinstance(event, client.Malformed)
    assert (event.problem.reason, event.problem.field) == (Reason.INVALID_FIELD, "open.seed")


def test_turn_ended_is_the_account_of_all_generations() -> None:
    message = written(ended()).turn_ended
    assert (message.turn_id, message.model, message.text) == (4, "m", "the text")
    assert (message.reason, message.source) == (server_pb.TURN_END_REASON_COMPLETED, server_pb.ANSWER_SOURCE_MODEL)
    assert (message.history_version, message.used_tokens, list(message.item_ids)) == (8, 130, ["a", "b"])
    usage = message.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (120, 90, 9)
    timings = message.timings
    assert (timings.queue_us, timings.prefill_us, timings.first_token_us) == (500_000, 500_000, 1_000_000)
    assert (timings.first_text_us, timings.first_clause_us, timings.decode_us) == (1_250_000, 1_500_000, 2_000_000)
    assert (timings.tool_wait_us, timings.total_us) == (2_000_000, 6_000_000)
    drafting = message.drafting
    assert (drafting.steps, drafting.drafted_tokens, drafting.accepted_tokens) == (5, 6, 4)
    assert (list(drafting.drafted_steps_at_depth), list(drafting.accepted_steps_at_depth)) == ([4, 3], [4, 1])
    assert [(phase.mode, phase.reason, phase.steps) for phase in drafting.phases] == [
        ("plain", "", 3),
        ("eagle3", "r", 2),
    ]


@pytest.mark.parametrize("reason", list(server.TurnEnd))
def test_every_end_of_a_turn_has_its_number(reason: server.TurnEnd) -> None:
    assert written(ended(reason)).turn_ended.reason == getattr(server_pb, f"TURN_END_REASON_{reason.name}")


def test_who_answered() -> None:
    nothing = TurnRecord(4, 10.0, ended=11.0, stats=[TurnStats(submitted=10.0)])
    interrupted = written(ended(server.TurnEnd.INTERRUPTED, account=nothing)).turn_ended
    assert (interrupted.source, interrupted.model) == (server_pb.ANSWER_SOURCE_UNSPECIFIED, "")
    assert not interrupted.HasField("drafting")
    for absent in (
        "queue_us",
        "prefill_us",
        "first_token_us",
        "first_text_us",
        "first_clause_us",
        "decode_us",
        "tool_wait_us",
    ):
        assert not interrupted.timings.HasField(absent)  # type: ignore[arg-type]
    for source in (server.AnswerSource.GIVEN_TEXT, server.AnswerSource.FALLBACK_PHRASE):
        given = written(ended(source=source, account=nothing)).turn_ended
        assert (given.source, given.model) == (getattr(server_pb, f"ANSWER_SOURCE_{source.name}"), "")
    other = written(ended(source=server.AnswerSource.FALLBACK_MODEL, model="small")).turn_ended
    assert (other.source, other.model) == (server_pb.ANSWER_SOURCE_FALLBACK_MODEL, "small")


def test_the_other_events() -> None:
    waiting = written(server.TurnWaiting(4, ("c1", "c2"), ACCOUNT, HISTORY)).turn_waiting
    assert (waiting.turn_id, list(waiting.call_ids), waiting.history_version) == (4, ["c1", "c2"], 8)
    assert waiting.usage.completion_tokens == 9
    called = written(server.ToolCalled(4, ToolCallItem("i", "c", "t", '{"a": 1}'), 11)).tool_called
    assert (called.turn_id, called.item_id, called.offset_code_points) == (4, "i", 11)
    assert (called.call.call_id, called.call.name, called.call.arguments_json) == ("c", "t", '{"a": 1}')
    cut = written(server.Interrupted(4, "日本", HISTORY)).interrupted
    assert (cut.turn_id, cut.text, cut.text_code_points, cut.history_version, cut.used_tokens) == (4, "日本", 2, 8, 130)


@pytest.mark.parametrize(
    ("event", "kind", "expected"),
    [
        (server.Draining(1500), "draining", notices_pb.Draining(grace_ms=1500)),
        (
            server.ContextNearlyFull(9, 10),
            "context_nearly_full",
            notices_pb.ContextNearlyFull(used_tokens=9, max_context_tokens=10),
        ),
        (server.EngineRestarted("m"), "engine_restarted", notices_pb.EngineRestarted(model="m")),
        (
            server.PrefilledAhead(turn_id=2, revision=5, tokens=9, rewound=3, computed=4),
            "prefilled_ahead",
            notices_pb.PrefilledAhead(revision=5, hypothesis_tokens=9, rewound_tokens=3, computed_tokens=4),
        ),
        *(
            (
                server.AnsweringAhead(2, state, 7),
                "answer_ahead",
                notices_pb.AnswerAheadProgress(
                    state=notices_pb.AnswerAheadState.Value(f"ANSWER_AHEAD_STATE_{state.name}"), held_tokens=7
                ),
            )
            for state in server.AheadState
        ),
        (
            server.LimitReached(Guardrail.TURNS, 3),
            "limit_reached",
            notices_pb.LimitReached(guardrail=notices_pb.GUARDRAIL_TURNS, limit=3),
        ),
    ],
)
def test_notices(event: server.Notice, kind: str, expected: object) -> None:
    notice = written(event).notice
    assert notice.message
    turn_id = getattr(event, "turn_id", None)
    assert (notice.turn_id if notice.HasField("turn_id") else None) == turn_id
    assert notice.WhichOneof("kind") == kind
    assert getattr(notice, kind) == expected


def test_a_limit_that_ends_a_turn_names_it() -> None:
    assert written(server.LimitReached(Guardrail.OUTPUT_TOKENS_PER_TURN, 3, turn_id=4)).notice.turn_id == 4


def test_errors_have_the_code_of_their_reason_and_the_numbers_they_answer() -> None:
    for reason in Reason:
        error = written(server.Failure(Problem(reason, "why"))).error
        assert error.code == STATUS[reason].value[0]
        assert (error.reason, error.message) == (reason.name, "why")
        assert not any(error.HasField(name) for name in ("turn_id", "client_seq", "request_id", "retry_after_ms"))  # type: ignore[arg-type]
    problem = dataclasses.replace(invalid("final.text", "no"), retry_after_s=1.5, metadata={"feature": "x"})
    error = written(server.Failure(problem, turn_id=4, client_seq=0, request_id=6)).error
    assert (error.code, error.field, error.retry_after_ms) == (error_pb.ERROR_CODE_INVALID_ARGUMENT, "final.text", 1500)
    assert (error.turn_id, error.HasField("client_seq"), error.client_seq, error.request_id) == (4, True, 0, 6)
    assert dict(error.metadata) == {"feature": "x"}
