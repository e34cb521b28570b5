"""What the comments of ``proto/`` promise, asked of the real service over a real socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import server_events_pb2 as server_pb
from tests.e2e.server import EXAMPLES, CallStream, ServiceProcess, connected, example_calls

SYSTEM, TOOLS, LINES = example_calls(1)[0]
SHORT = options_pb.Sampling(max_output_tokens=4)
LONG = options_pb.Sampling(max_output_tokens=200)
NO_CALL = conversation_pb.ToolChoice(mode=conversation_pb.TOOL_CHOICE_MODE_NONE)


def asking_for_a_tool() -> tuple[list[conversation_pb.Item], str]:
    """The history of an example up to a line after which the model calls a tool, and that line."""
    messages = json.loads(EXAMPLES.read_text().splitlines()[0])["messages"]
    first = next(index for index, message in enumerate(messages) if message.get("tool_calls"))
    roles = {"user": conversation_pb.ROLE_USER, "assistant": conversation_pb.ROLE_ASSISTANT}
    *history, line = messages[1:first]
    items = [
        conversation_pb.Item(message=conversation_pb.Message(role=roles[message["role"]], text=message["content"]))
        for message in history
    ]
    return items, line["content"]


@pytest.fixture
async def call(service: ServiceProcess) -> AsyncIterator[CallStream]:
    async with connected(service.address) as stub:
        yield CallStream(stub)


async def until(call: CallStream, kind: str) -> Any:
    """The next event of that kind; those before it stay in ``call.received``."""
    while (message := await call.next()).WhichOneof("event") != kind:
        pass
    return getattr(message, kind)


async def rest(call: CallStream) -> grpc.StatusCode:
    """Read to the end of the stream; its status."""
    while isinstance(message := await call.stream.read(), call_pb.CallResponse):
        call.received.append(message)
    return await call.stream.code()


async def broken(call: CallStream) -> tuple[grpc.StatusCode, str]:
    """Read to a status that is not OK; with the reason in its ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rest(call)
        raise AssertionError("the stream ended with OK")
    details = dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)  # type: ignore[arg-type]
    return raised.value.code(), info.reason


def said(call: CallStream, kind: str) -> list[Any]:
    return [getattr(m, kind) for m in call.received if m.WhichOneof("event") == kind]


async def open_at_a_tool_call(call: CallStream, **fields: Any) -> server_pb.TurnWaiting:
    """A call whose first turn waits for a tool."""
    items, line = asking_for_a_tool()
    await call.open(system_prompt=SYSTEM, tools=TOOLS, items=items, **fields)
    await call.send(final=client_pb.Final(turn_id=1, text=line))
    call.turn_id = 1
    waiting = await until(call, "turn_waiting")
    assert isinstance(waiting, server_pb.TurnWaiting)
    return waiting


def result(turn_id: int, call_id: str, output: str = '{"ok": true}', **fields: Any) -> client_pb.ToolResult:
    return client_pb.ToolResult(turn_id=turn_id, call_id=call_id, output=output, **fields)


def heard(code_points: int) -> client_pb.Heard:
    return client_pb.Heard(code_points=code_points)


# The end of a stream


async def test_a_half_closed_call_ends_with_the_reply_that_runs_not_with_the_one_before(call: CallStream) -> None:
    await call.open(system_prompt=SYSTEM, sampling=LONG)
    await call.send(final=client_pb.Final(turn_id=1, text=LINES[0]))
    await until(call, "text_delta")
    await call.send(final=client_pb.Final(turn_id=2, text=LINES[1]))
    await call.stream.done_writing()
    assert await rest(call) is grpc.StatusCode.OK
    ends = {end.turn_id: end for end in said(call, "turn_ended")}
    assert ends[1].reason == server_pb.TURN_END_REASON_INTERRUPTED
    assert ends[2].reason != server_pb.TURN_END_REASON_INTERRUPTED
    assert ends[2].text == "".join(delta.text for delta in said(call, "text_delta") if delta.turn_id == 2) != ""


async def test_a_half_closed_call_still_hears_of_the_end_of_an_interrupted_turn(call: CallStream) -> None:
    await call.open(system_prompt=SYSTEM, sampling=LONG)
    await call.send(final=client_pb.Final(turn_id=1, text=LINES[0]))
    await call.send(interrupt=client_pb.Interrupt(turn_id=1))
    await call.stream.done_writing()
    assert await rest(call) is grpc.StatusCode.OK
    assert [end.reason for end in said(call, "turn_ended")] == [server_pb.TURN_END_REASON_INTERRUPTED]


async def test_a_half_closed_call_that_waits_for_tools_ends(call: CallStream) -> None:
    await open_at_a_tool_call(call)
    await call.stream.done_writing()
    assert await rest(call) is grpc.StatusCode.OK


async def test_a_client_that_does_not_read_and_the_end_of_the_grace_end_calls_with_a_status() -> None:
    settings = {
        "FIRSTWORD_SERVER__HOLD_AT_EVENTS": "8",
        "FIRSTWORD_SERVER__MAX_QUEUED_EVENTS": "16",
        "FIRSTWORD_SERVER__STOP_GRACE_S": "0.5",
    }
    with ServiceProcess(settings) as process:
        async with connected(process.address) as stub:
            silent, call, late = CallStream(stub), CallStream(stub), CallStream(stub)
            await silent.open()
            await silent.send(say=client_pb.Say(turn_id=1, text="We are open. " * 300))
            ended = process.wait_for
            given_up = asyncio.create_task(asyncio.to_thread(ended, "call ended", cause="CLIENT_NOT_READING"))
            # Small events that are answered at length: the stream towards the service never fills, so that no write is
            # under way when it ends. (grpc.aio would take the failure of that write for the stream's status.)
            while not given_up.done():
                await silent.stream.write(call_pb.CallRequest(interrupt=client_pb.Interrupt(turn_id=1)))
                await asyncio.sleep(0.001)
            assert await broken(silent) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT_NOT_READING")

            await call.open(sampling=SHORT)
            assert (await call.say("hello")).ended is not None
            process.process.send_signal(signal.SIGTERM)
            assert (await call.expect("notice")).draining.grace_ms == 250
            await late.send(open=client_pb.Open())
            assert await broken(late) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert await broken(call) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await asyncio.to_thread(process.process.wait, 30) == 0


async def test_an_open_that_is_refused_leaves_the_name_free(call: CallStream, service: ServiceProcess) -> None:
    for fields, field in (
        ({"sampling": options_pb.Sampling(stop_token_ids=[10**6])}, "open.sampling.stop_token_ids"),
        (
            {"context_policy": options_pb.ContextPolicy(announce_at_tokens=10**6)},
            "open.context_policy.announce_at_tokens",
        ),
    ):
        async with connected(service.address) as stub:
            refused = CallStream(stub)
            await refused.send(open=client_pb.Open(session_id="the-same", **fields))  # type: ignore[arg-type]
            with pytest.raises(grpc.aio.AioRpcError, match=field.replace(".", r"\.")) as raised:
                await rest(refused)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await call.open(session_id="the-same")).session_id == "the-same"


# Turns that are old, repeated or overtaken


async def test_what_belongs_to_an_older_turn_is_refused_unless_it_only_repeats(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call, sampling=options_pb.Sampling(max_output_tokens=40))
    _, line = asking_for_a_tool()
    answered = result(1, waiting.call_ids[0])
    await call.send(tool_result=answered)
    assert (await call.turn()).ended is not None
    assert (await call.say("thank you")).ended is not None
    for event in (
        {"final": client_pb.Final(turn_id=1, text=line)},
        {"tool_result": answered},
        {"playback_progress": client_pb.PlaybackProgress(turn_id=1, heard=heard(1))},
        {"partial": client_pb.Partial(turn_id=2, revision=9, text="thank")},
    ):
        await call.send(**event)  # repeats, and what is dropped: no answer comes
    for event, field in (
        ({"final": client_pb.Final(turn_id=1, text="something else")}, "final.turn_id"),
        ({"respond": client_pb.Respond(turn_id=1)}, "respond.turn_id"),
        ({"say": client_pb.Say(turn_id=1, text="x")}, "say.turn_id"),
        ({"partial": client_pb.Partial(turn_id=1, revision=9, text="x")}, "partial.turn_id"),
        ({"interrupt": client_pb.Interrupt(turn_id=1)}, "interrupt.turn_id"),
        ({"tool_result": result(1, "another")}, "tool_result.turn_id"),
    ):
        await call.send(**event)
        error = await call.expect("error")
        assert (error.code, error.reason, error.field) == (error_pb.ERROR_CODE_ABORTED, "STALE_TURN", field)
        assert error.client_seq == call.seq
        assert not error.HasField("turn_id")
    assert await call.close() is grpc.StatusCode.OK


async def test_a_tool_result_that_comes_when_the_turn_was_overtaken_takes_its_place(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call)
    turn = await call.say("never mind, what are your hours")
    assert turn.ended is not None
    ended = next(end for end in said(call, "turn_ended") if end.turn_id == 1)
    assert ended.reason == server_pb.TURN_END_REASON_INTERRUPTED
    assert len(ended.item_ids) == 3  # the caller's line, the call, and what stands for its result
    assert not set(ended.item_ids) & set(turn.ended.item_ids)
    await call.send(tool_result=result(1, waiting.call_ids[0]))
    changed = await call.expect("history_changed")
    assert changed.cause == server_pb.HISTORY_CAUSE_TOOL_RESULT
    assert set(ended.item_ids) < set(changed.item_ids)
    await call.send(tool_result=result(1, "another"))
    assert (await call.expect("error")).code == error_pb.ERROR_CODE_ABORTED


async def test_a_tool_result_after_an_interrupt_enters_the_history_and_asks_for_nothing(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call, sampling=options_pb.Sampling(max_output_tokens=40))
    await call.send(interrupt=client_pb.Interrupt(turn_id=1))
    before = await call.expect("interrupted")
    assert (await call.expect("turn_ended")).reason == server_pb.TURN_END_REASON_INTERRUPTED
    for _ in range(2):  # the second one is dropped
        await call.send(tool_result=result(1, waiting.call_ids[0], '{"id": "V1"}'))
    changed = await call.expect("history_changed")
    assert changed.cause == server_pb.HISTORY_CAUSE_TOOL_RESULT
    assert changed.history_version == before.history_version + 1
    await call.send(interrupt=client_pb.Interrupt(turn_id=1))
    after = await call.expect("interrupted")
    assert after.used_tokens > before.used_tokens
    assert after.text == before.text
    assert after.history_version == changed.history_version
    assert (await call.say("so?")).ended is not None


async def test_an_overtaken_turn_tells_the_items_that_it_left(call: CallStream) -> None:
    await call.open(system_prompt=SYSTEM, sampling=LONG)
    await call.send(final=client_pb.Final(turn_id=1, text=LINES[0], item_id="first"))
    delta = await until(call, "text_delta")
    await call.send(playback_progress=client_pb.PlaybackProgress(turn_id=1, heard=heard(len(delta.text))))
    call.turn_id = 1
    second = await call.say(LINES[1])
    assert second.ended is not None
    first = next(end for end in said(call, "turn_ended") if end.turn_id == 1)
    assert first.item_ids[0] == "first"
    assert len(first.item_ids) == 1 + bool(first.text)
    assert not set(first.item_ids) & set(second.ended.item_ids)


async def test_an_interrupt_before_the_first_word(call: CallStream) -> None:
    await call.open(system_prompt=SYSTEM, sampling=LONG)
    await call.send(final=client_pb.Final(turn_id=1, text=LINES[0]))
    for _ in range(2):
        await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=heard(0)))
    cuts = [await until(call, "interrupted") for _ in range(2)]
    assert cuts[0] == cuts[1]
    assert cuts[0].text == ""
    while not said(call, "turn_ended"):
        await call.next()
    (ended,) = said(call, "turn_ended")
    assert (ended.reason, ended.text) == (server_pb.TURN_END_REASON_INTERRUPTED, "")
    if not ended.usage.completion_tokens:
        assert ended.source == server_pb.ANSWER_SOURCE_UNSPECIFIED
        assert ended.model == ""
        assert not ended.HasField("drafting")
    call.turn_id = 1
    assert (await call.say(LINES[1])).ended is not None
    assert await call.close() is grpc.StatusCode.OK
    assert len(said(call, "turn_ended")) == 2


@pytest.mark.parametrize("newer", ["respond", "say"])
async def test_whatever_begins_a_turn_interrupts_the_one_before(call: CallStream, newer: str) -> None:
    await call.open(system_prompt=SYSTEM, sampling=LONG)
    await call.send(final=client_pb.Final(turn_id=1, text=LINES[0]))
    await until(call, "text_delta")
    event: dict[str, Any] = {"respond": client_pb.Respond(turn_id=2), "say": client_pb.Say(turn_id=2, text="Wait.")}
    await call.send(**{newer: event[newer]})
    await until(call, "interrupted")
    while len(said(call, "turn_ended")) < 2:
        await call.next()
    ends = {end.turn_id: end.reason == server_pb.TURN_END_REASON_INTERRUPTED for end in said(call, "turn_ended")}
    assert ends == {1: True, 2: False}


# Versions, numbers, limits


async def test_the_history_version_grows_with_replies_that_stop_and_with_cuts_alone(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call, sampling=options_pb.Sampling(max_output_tokens=40))
    assert said(call, "opened")[0].history_version == 1
    assert waiting.history_version == 2
    await call.send(tool_result=result(1, waiting.call_ids[0], no_reply=True))
    assert (await call.expect("turn_ended")).history_version == 3
    await call.send(say=client_pb.Say(turn_id=2, text="One moment."))
    assert (await call.expect("turn_ended")).history_version == 3  # the client's own
    for version in (4, 4):
        await call.send(interrupt=client_pb.Interrupt(turn_id=2, heard=heard(3)))
        assert (await call.expect("interrupted")).history_version == version
    call.turn_id = 2
    turn = await call.say("thanks")
    assert turn.ended is not None
    waits = [event for event in said(call, "turn_waiting") if event.turn_id == 3]  # the model may ask a tool first
    assert turn.ended.history_version == 5 + len(waits)


async def test_numbers_of_events(call: CallStream) -> None:
    await call.open(sampling=SHORT)
    call.seq = 10
    assert (await call.say("hello")).ended is not None  # numbered 11
    await call.stream.write(call_pb.CallRequest(client_seq=11, final=client_pb.Final(turn_id=2, text="resent")))
    await call.stream.write(call_pb.CallRequest(client_seq=3, final=client_pb.Final(turn_id=3, text="resent")))
    await call.stream.write(call_pb.CallRequest(acknowledge=client_pb.Acknowledge(seq=1)))
    await call.stream.write(call_pb.CallRequest(acknowledge=client_pb.Acknowledge(seq=0)))  # lower: ignored
    await call.stream.write(call_pb.CallRequest(acknowledge=client_pb.Acknowledge(seq=10**6)))
    error = await call.expect("error")
    assert (error.field, error.client_seq, error.HasField("client_seq")) == ("acknowledge.seq", 0, True)
    for _ in range(2):  # not numbered: never taken as resent
        await call.stream.write(call_pb.CallRequest(open=client_pb.Open()))
        assert (await call.expect("error")).code == error_pb.ERROR_CODE_FAILED_PRECONDITION
    assert call.received[-1].client_seq == 11
    assert [message.seq for message in call.received] == list(range(1, len(call.received) + 1))


async def test_a_guardrail_that_is_reached_is_told(call: CallStream) -> None:
    limits = options_pb.Limits(max_turns=1, max_output_tokens_per_turn=5, max_input_code_points=100)
    opened = await call.open(system_prompt=SYSTEM, limits=limits, sampling=LONG)
    limits.max_tool_calls_per_turn = 16  # the service's own
    assert opened.limits == limits
    assert opened.sampling.max_output_tokens == 5
    turn = await call.say(LINES[0])
    assert turn.ended is not None
    assert turn.ended.reason == server_pb.TURN_END_REASON_LENGTH
    for text in ("more", "x" * 101):
        await call.send(final=client_pb.Final(turn_id=2, text=text))
        error = await call.expect("error")
        assert (error.code, error.turn_id) == (error_pb.ERROR_CODE_RESOURCE_EXHAUSTED, 2)
        await call.expect("notice")
    reached = [(notice.limit_reached.guardrail, notice.limit_reached.limit) for notice in said(call, "notice")]
    assert reached == [
        (notices_pb.GUARDRAIL_OUTPUT_TOKENS_PER_TURN, 5),
        (notices_pb.GUARDRAIL_TURNS, 1),
        (notices_pb.GUARDRAIL_INPUT_SIZE, 100),
    ]


async def test_a_call_above_a_turns_limit_is_not_made_and_ends_the_turn(call: CallStream) -> None:
    items, line = asking_for_a_tool()
    limits = options_pb.Limits(max_tool_calls_per_turn=0)
    await call.open(system_prompt=SYSTEM, tools=TOOLS, items=items, limits=limits)
    turn = await call.say(line)
    assert turn.ended is not None
    assert turn.ended.reason == server_pb.TURN_END_REASON_LIMIT_REACHED
    assert not said(call, "tool_called")
    (notice,) = said(call, "notice")
    assert (notice.turn_id, notice.limit_reached.limit) == (1, 0)
    assert notice.limit_reached.guardrail == notices_pb.GUARDRAIL_TOOL_CALLS_PER_TURN
    assert (await call.say("Thanks, bye.", tool_choice=NO_CALL)).ended is not None
    assert await call.close() is grpc.StatusCode.OK


async def test_a_tool_result_counts_as_input(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call, limits=options_pb.Limits(max_input_code_points=300))
    await call.send(tool_result=result(1, waiting.call_ids[0], "x" * 301))
    error = await call.expect("error")
    assert (error.code, error.field) == (error_pb.ERROR_CODE_RESOURCE_EXHAUSTED, "tool_result.output")
    await call.expect("notice")
    await call.send(tool_result=result(1, waiting.call_ids[0]))
    assert (await call.turn()).ended is not None


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
async def test_any_seed_of_64_bits(call: CallStream, seed: int) -> None:
    opened = await call.open(sampling=options_pb.Sampling(temperature=1.0, max_output_tokens=4), seed=seed)
    assert opened.seed == seed
    turn = await call.say("hello", sampling=options_pb.Sampling(seed=seed))
    assert turn.ended is not None
    assert not turn.errors


# A full context


async def test_a_full_context_refuses_and_the_call_goes_on(service: ServiceProcess) -> None:
    """A reply that runs into the end of the context leaves a call that can be cut back and asked again."""
    async with connected(service.address) as stub:
        probe = CallStream(stub)
        opened = await probe.open(system_prompt=SYSTEM)
        await probe.send(say=client_pb.Say(turn_id=1, text="no " * 100))
        a_hundred = (await probe.expect("turn_ended")).used_tokens - opened.used_tokens
        limit = opened.max_context_tokens
        # As many words as leave room for the caller's line and a few tokens of the reply.
        words = (limit - opened.used_tokens - 60) * 100 // a_hundred
        call = CallStream(stub)
        items = [
            conversation_pb.Item(
                message=conversation_pb.Message(role=conversation_pb.ROLE_ASSISTANT, text="no " * words)
            )
        ]
        await call.open(system_prompt=SYSTEM, items=items)
        notice = await call.expect("notice")  # it was announced before it is applied
        assert notice.context_nearly_full.max_context_tokens == limit
        sampling = options_pb.Sampling(stop_token_ids=[], temperature=100.0, seed=1)
        full = await call.say(LINES[0], sampling=sampling)
        while full.ended is not None and full.ended.reason != server_pb.TURN_END_REASON_CONTEXT_FULL:
            full = await call.say("and?", sampling=sampling)
        assert full.ended is not None
        assert not full.errors
        newest = call.turn_id
        await call.send(partial=client_pb.Partial(turn_id=newest + 1, revision=1, text="hello"))
        for event in (
            {"final": client_pb.Final(turn_id=newest + 1, text="hello")},
            {"respond": client_pb.Respond(turn_id=newest + 1)},
            {"say": client_pb.Say(turn_id=newest + 1, text="hello")},
        ):
            await call.send(**event)
            error = await call.expect("error")
            assert (error.code, error.turn_id) == (error_pb.ERROR_CODE_OUT_OF_RANGE, newest + 1)
        await call.send(interrupt=client_pb.Interrupt(turn_id=newest, heard=heard(0)))
        assert (await call.expect("interrupted")).used_tokens < limit - 8
        await call.send(respond=client_pb.Respond(turn_id=newest + 1))
        call.turn_id = newest + 1
        assert (await call.turn()).ended is not None
        assert await call.close() is grpc.StatusCode.OK


async def test_a_tool_result_that_does_not_fit_fails_its_turn_and_the_call_goes_on(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call, limits=options_pb.Limits(max_input_code_points=16_000))
    await call.send(tool_result=result(1, waiting.call_ids[0], "word " * 3000))
    error = await call.expect("error")
    assert (error.code, error.field, error.turn_id) == (error_pb.ERROR_CODE_OUT_OF_RANGE, "tool_result.output", 1)
    failed = await call.expect("turn_ended")
    assert failed.reason == server_pb.TURN_END_REASON_FAILED
    assert len(failed.item_ids) == 3  # the caller's line, the call, and what stands for its result
    assert failed.used_tokens < said(call, "opened")[0].max_context_tokens / 2
    assert (await call.say("hello?")).ended is not None
    assert await call.close() is grpc.StatusCode.OK


async def test_a_tool_result_after_an_interrupt_that_does_not_fit_is_refused(call: CallStream) -> None:
    waiting = await open_at_a_tool_call(call)
    await call.send(interrupt=client_pb.Interrupt(turn_id=1))
    await until(call, "turn_ended")
    await call.send(tool_result=result(1, waiting.call_ids[0], "word " * 3000))
    error = await call.expect("error")
    assert (error.code, error.field) == (error_pb.ERROR_CODE_OUT_OF_RANGE, "tool_result.output")
    assert error.client_seq == call.seq
    await call.send(tool_result=result(1, waiting.call_ids[0]))
    assert (await call.say("hello?")).ended is not None
    assert await call.close() is grpc.StatusCode.OK


# What was heard


async def test_heard_by_text_by_time_and_refusals_name_their_field(call: CallStream) -> None:
    await call.open()
    text = "One moment, please. I am looking."
    await call.send(say=client_pb.Say(turn_id=1, text=text))
    await call.expect("turn_ended")
    words = [
        client_pb.WordTiming(end_ms=100 * (i + 1), word=word) for i, word in enumerate(["one", "moment", "please"])
    ]
    for measure, field in (
        (client_pb.Heard(), "interrupt.heard.measure"),
        (client_pb.Heard(played_ms=1, words=[client_pb.WordTiming(end_ms=1)]), "interrupt.heard.words[0].place"),
    ):
        await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=measure))
        assert (await call.expect("error")).field == field
    await call.send(playback_progress=client_pb.PlaybackProgress(turn_id=1, heard=client_pb.Heard(played_ms=9)))
    assert (await call.expect("error")).field == "playback_progress.heard.played_ms"
    await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=client_pb.Heard(played_ms=200)))
    assert (await call.expect("interrupted")).text == ""  # it is cut before it is refused
    assert (await call.expect("error")).field == "interrupt.heard.played_ms"
    cuts = []
    for measure in (
        client_pb.Heard(text="two moments"),
        client_pb.Heard(text=text + " And more"),
        client_pb.Heard(text="One moment if you please"),
        client_pb.Heard(text="ONE MOMENT please -"),
        client_pb.Heard(played_ms=250, words=words),
        client_pb.Heard(played_ms=250),  # the timings are kept
        heard(10**6),
    ):
        await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=measure))
        cuts.append((await call.expect("interrupted")).text)
    limits = ("", text, "One moment", "One moment, please", "One moment", "One moment", text)
    for cut, limit in zip(cuts, limits, strict=True):
        assert limit.startswith(cut)
        assert bool(cut) == bool(limit)
    assert cuts[-1] == text


async def test_a_reply_that_was_over_but_not_played_is_cut_by_the_next_turn(call: CallStream) -> None:
    await call.open(system_prompt=SYSTEM)
    first = await call.say(LINES[0])
    half = len(first.text) // 2
    for measure in (half, 2):  # progress never goes back
        await call.send(playback_progress=client_pb.PlaybackProgress(turn_id=1, heard=heard(measure)))
    second = await call.say(LINES[1])
    assert second.ended is not None
    (cut,) = said(call, "interrupted")
    assert cut.turn_id == 1
    assert first.text.startswith(cut.text)
    assert 2 < cut.text_code_points <= half
    assert len([end for end in said(call, "turn_ended") if end.turn_id == 1]) == 1


# Text


async def test_deltas_add_up_and_clause_ends_are_told_once(call: CallStream) -> None:
    await call.open(system_prompt=SYSTEM)
    for line in LINES[:2]:
        turn = await call.say(line)
        assert turn.ended is not None
        ends = list(itertools.chain.from_iterable(delta.clause_end_code_points for delta in turn.deltas))
        assert ends == sorted(set(ends))
        assert ends
        assert ends[-1] <= len(turn.text)
        told = 0
        for delta in turn.deltas:
            told += len(delta.text)
            assert all(end <= told for end in delta.clause_end_code_points)
        assert turn.ended.timings.first_clause_us >= turn.ended.timings.first_text_us
        assert turn.ended.timings.first_text_us >= turn.ended.timings.first_token_us > 0
