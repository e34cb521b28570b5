"""Spans and metrics of real turns, by the SDK's own in-memory exporters."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import re
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from deploy.generate import naming
from deploy.generate.objectives import load
from engine.session import TurnStats
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from service import client_events as client
from service import server_events as server
from service.admission import Admission
from service.call_records import merged, read, replayed
from service.config import AdmissionConfig
from service.items import MessageItem, ToolDefinition
from service.options import GenerationPatch, TurnOptions
from service.problems import Problem, Reason
from service.telemetry import Telemetry, TurnRecord, names
from service.telemetry.metrics import RESUMES
from service.telemetry.names import BUCKETS
from tests.e2e.server import EXAMPLES, CallStream, ServiceProcess, connected
from tests.service.calls import LINES, MODEL, SYSTEM, CallUnderTest
from tests.service.recorded import Recorded, attributes, within

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
GENERATION = ("queue", "prefill", "decode")
ONCE = ("hand over", "first token", "first clause")
TURN = f"chat {MODEL}"


def test_the_first_of_what_an_alert_counts_is_an_increase(recorded: Recorded) -> None:
    """A series that begins at 1 has not increased, so those that alerts count begin at 0."""
    Telemetry(MODEL)
    found = recorded.metrics()
    resumed = {point.attributes[names.RESUME]: point.value for point in found[names.RESUMED]}
    refused = {point.attributes[names.ERROR]: point.value for point in found[names.RESUME_REFUSED]}
    assert resumed == dict.fromkeys(RESUMES, 0)
    named = re.compile(naming.counter(names.RESUME_REFUSED) + r'\{error_type=~?"([A-Z_|]+)"\}')
    counted = {
        reason for alert in load().alert for reasons in named.findall(alert.expr) for reason in reasons.split("|")
    }
    assert counted >= {"UNKNOWN_CALL", "TOKEN_EXPIRED", "FORGED", "STORE_UNAVAILABLE"}
    assert counted <= refused.keys() <= {reason.value for reason in Reason} and not any(refused.values())


def example_messages() -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(EXAMPLES.read_text().splitlines()[0])["messages"]
    return messages


def example_tools() -> list[dict[str, Any]]:
    tools: list[dict[str, Any]] = json.loads(EXAMPLES.read_text().splitlines()[0])["tools"]
    return [tool["function"] for tool in tools]


def at_a_tool_call() -> tuple[client.Open, str]:
    """The example up to where a tool is called, and the line that asks for it."""
    messages = example_messages()
    first = next(index for index, message in enumerate(messages) if message.get("tool_calls"))
    *history, line = messages[1:first]
    items = tuple(MessageItem("", message["role"], message["content"]) for message in history)
    tools = tuple(ToolDefinition(t["name"], t["description"], t["parameters"]) for t in example_tools())
    return client.Open("tools", system=SYSTEM, items=items, tools=tools), line["content"]


def test_a_turn_and_its_call(recorded: Recorded) -> None:
    call = CallUnderTest(client.Open("calling", system=SYSTEM, generation=GenerationPatch(max_tokens=50)))
    call.send(client.Final(1, LINES[0]))
    call.run()
    call.send(client.CloseCall())
    (call_span,), (turn,) = recorded.named("call"), recorded.named(TURN)
    assert call_span.kind is SpanKind.SERVER
    assert attributes(call_span) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "firstword",
        "gen_ai.request.model": MODEL,
        "gen_ai.conversation.id": "calling",
        "firstword.turns": 1,
    }
    assert turn.kind is SpanKind.INTERNAL
    assert turn in recorded.children(call_span)
    assert turn.links == ()
    assert within(turn, call_span)
    (end,) = call.of(server.TurnEnded)
    (stats,) = end.account.stats
    known = attributes(turn)
    assert known["gen_ai.operation.name"] == "chat"
    assert known["gen_ai.conversation.id"] == "calling"
    assert known["gen_ai.request.stream"] is True
    assert known["gen_ai.request.max_tokens"] == 50
    assert known["gen_ai.request.temperature"] == 0.0
    assert known["gen_ai.request.model"] == known["gen_ai.response.model"] == MODEL
    assert known["gen_ai.response.finish_reasons"] == ("stop_token",)
    assert known["gen_ai.usage.input_tokens"] == stats.prompt_tokens
    assert known["gen_ai.usage.cache_read.input_tokens"] == stats.cached_tokens
    assert known["gen_ai.usage.output_tokens"] == end.account.output_tokens == stats.steps
    assert known["gen_ai.agent.invocation.end_reason"] == "completed"
    assert known["gen_ai.response.time_to_first_chunk"] == end.account.first_text - end.account.committed > 0
    assert (known["firstword.turn.id"], known["firstword.turn.tool_calls"]) == (1, 0)
    assert (known["firstword.mode"], known["firstword.steps"]) == ("plain", stats.steps)
    assert "error.type" not in known
    assert turn.status.status_code is StatusCode.UNSET
    assert [event.name for event in turn.events] == ["first text"]


def test_the_parts_of_a_turn_lie_inside_it_and_follow_each_other(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.send(client.Final(1, LINES[0]))
    call.run()
    (turn,) = recorded.named(TURN)
    parts = {span.name: span for span in recorded.children(turn)}
    assert sorted(parts) == sorted(GENERATION + ONCE)
    assert all(within(part, turn) for part in parts.values())
    assert parts["hand over"].end_time == parts["queue"].start_time
    assert parts["queue"].end_time == parts["prefill"].start_time
    assert parts["prefill"].end_time == parts["first token"].end_time == parts["decode"].start_time
    starts = {parts[name].start_time for name in ("hand over", "first token", "first clause")}
    assert starts == {turn.start_time}
    (end,) = call.of(server.TurnEnded)
    (stats,) = end.account.stats
    assert attributes(parts["prefill"])["firstword.prefill.tokens"] == stats.prompt_tokens - stats.cached_tokens
    assert attributes(parts["decode"])["firstword.steps"] == stats.steps


def test_a_turn_with_a_tool_call_has_the_parts_of_both_its_generations(recorded: Recorded) -> None:
    opening, line = at_a_tool_call()
    call = CallUnderTest(opening)
    call.send(client.Final(1, line))
    call.run()
    assert not recorded.named(TURN)
    (waiting,) = call.of(server.TurnWaiting)
    call.send(client.ToolResult(1, waiting.call_ids[0], '{"id": "V2443"}'))
    call.run()
    (turn,) = recorded.named(TURN)
    known = attributes(turn)
    assert known["firstword.turn.tool_calls"] == 1
    once = ("hand over", "first token", "execute_tool find_appointment")
    assert sorted({*GENERATION, *once}) == sorted({span.name for span in recorded.children(turn)} - {"first clause"})
    assert [span.name for span in recorded.children(turn)].count("prefill") == 2
    (tool,) = recorded.named("execute_tool find_appointment")
    first, second = recorded.named("decode")
    assert first.end_time and tool.start_time and tool.end_time and second.start_time
    assert first.start_time and first.start_time <= tool.start_time <= tool.end_time <= second.start_time
    assert attributes(tool)["gen_ai.tool.call.id"] == waiting.call_ids[0]
    assert attributes(tool)["firstword.tool.outcome"] == "answered"
    assert all(within(part, turn) for part in recorded.children(turn))
    (end,) = call.of(server.TurnEnded)
    assert known["firstword.steps"] == sum(stats.steps for stats in end.account.stats)
    assert known["gen_ai.usage.input_tokens"] == end.account.stats[-1].prompt_tokens
    # What was told while it waited did not change with the turn's going on.
    assert len(waiting.account.stats) == 1
    assert waiting.account.tool_wait_s == 0 < end.account.tool_wait_s


def taken_over(call: CallUnderTest) -> CallUnderTest:
    """The call at another server, from what its client has."""
    envelopes = call.envelopes
    records = [read(call.call.services.signing, envelope.record) for envelope in envelopes if envelope.record]
    found = replayed(merged(records), envelopes[-1].seq)
    assert found is not None
    elsewhere = CallUnderTest.unopened()
    elsewhere.call.restore(found[0], envelopes[-1].generation + 1, envelopes[-1].seq, 0)
    return elsewhere


def test_a_call_that_was_taken_over_links_the_span_that_it_had_before(recorded: Recorded) -> None:
    """Each time that it is."""
    first = CallUnderTest(client.Open("calling", system=SYSTEM))
    second = taken_over(first)
    second.send(client.Say(1, "One moment, please."))
    third = taken_over(second)
    third.send(client.Final(2, LINES[0]))
    third.run()
    for call in (first, second, third):
        call.send(client.CloseCall())
    spans = recorded.named("call")
    assert [len(span.links) for span in spans] == [0, 1, 1]
    for earlier, later in itertools.pairwise(spans):
        (link,) = later.links
        assert earlier.context is not None and link.context is not None
        assert (link.context.trace_id, link.context.span_id) == (earlier.context.trace_id, earlier.context.span_id)
        assert link.context.is_remote and link.attributes == {"firstword.link": "taken over"}
    assert len({span.context.trace_id for span in spans if span.context}) == 3
    (turn,) = (turn for turn in recorded.named(TURN) if attributes(turn)["firstword.turn.id"] == 2)
    assert turn.parent is not None and spans[2].context and turn.parent.span_id == spans[2].context.span_id


@pytest.mark.parametrize("told", ["", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "nonsense"])
def test_a_call_that_nobody_has_traced_links_nothing(recorded: Recorded, told: str) -> None:
    call = CallUnderTest(client.Open("calling", system=SYSTEM))
    found = replayed(merged([read(call.call.services.signing, call.envelopes[0].record)]), 1)
    assert found is not None and found[0].opening.traceparent
    found[0].opening = dataclasses.replace(found[0].opening, traceparent=told)
    elsewhere = CallUnderTest.unopened()
    elsewhere.call.restore(found[0], 2, 1, 0)
    elsewhere.send(client.CloseCall())
    assert [span.links for span in recorded.named("call")] == [()]


def test_a_traceparent_in_the_turns_event_makes_it_a_child_of_that_and_links_the_call(recorded: Recorded) -> None:
    call = CallUnderTest()
    for turn_id, options in enumerate((TurnOptions(TRACEPARENT, "a=b"), TurnOptions("00-malformed")), 1):
        call.send(client.Final(turn_id, LINES[0], options))
        call.run()
    call.send(client.CloseCall())
    (call_span,), (named, own) = recorded.named("call"), recorded.named(TURN)
    assert call_span.context is not None and named.context is not None and named.parent is not None
    assert (f"{named.context.trace_id:032x}", f"{named.parent.span_id:016x}") == (TRACE, PARENT)
    assert named.context.trace_state.get("a") == "b"
    assert [link.context.span_id for link in named.links] == [call_span.context.span_id]
    assert own in recorded.children(call_span)
    assert all(within(part, named) for part in recorded.children(named))


def test_an_interrupted_turn(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.send(client.Final(1, LINES[0]))
    call.step_until_text()
    call.send(client.Interrupt(1, None))
    call.run()
    (turn,) = recorded.named(TURN)
    assert attributes(turn)["gen_ai.agent.invocation.end_reason"] == "interrupted"
    assert "error.type" not in attributes(turn)
    parts = {span.name: span for span in recorded.children(turn)}
    assert "decode" in parts
    assert within(parts["interruption"], turn) and parts["interruption"].end_time == turn.end_time
    (duration,) = recorded.metrics()["firstword.turn.interruption_time"]
    assert duration.count == 1


def test_the_time_that_a_client_did_not_read_is_nobody_elses(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.call.hold(True)
    call.send(client.Final(1, LINES[0]))
    call.run()
    assert not recorded.named(TURN)
    call.call.hold(False)
    call.run()
    (turn,), (end,) = recorded.named(TURN), call.of(server.TurnEnded)
    (stats,), found = end.account.stats, recorded.metrics()
    assert attributes(turn)["firstword.turn.held"] == stats.held_seconds > 0.0
    assert [point.value for point in found["firstword.calls.held"]] == [1]
    assert "firstword.turn.time_to_first_clause" not in found  # it says nothing about the engine
    own_s = end.account.ended - end.account.committed - stats.held_seconds
    assert found["gen_ai.server.request.duration"][0].sum == pytest.approx(own_s)
    decode_s = stats.ended - stats.first_token - stats.held_seconds
    per_token = found["gen_ai.server.time_per_output_token"][0].sum
    assert per_token == pytest.approx(decode_s / (end.account.output_tokens - 1))


def test_calls_that_are_taken_and_that_are_not_are_counted(recorded: Recorded) -> None:
    config = AdmissionConfig(max_calls=2, max_calls_per_tenant=1)
    admission = Admission(config, lambda: None, 16, Telemetry(MODEL))
    for tenant in ("one", "two"):
        admission.take(tenant).open(lambda: 1)
    for tenant, times in (("one", 2), ("three", 1)):
        for _ in range(times):
            with pytest.raises(Problem):
                admission.take(tenant)
    found = recorded.metrics()
    assert [point.value for point in found["firstword.calls.admitted"]] == [2]
    refused = {point.attributes["error.type"]: point.value for point in found["firstword.calls.refused"]}
    assert refused == {"TENANT_TOO_MANY_CALLS": 2, "TOO_MANY_CALLS": 1}


def test_a_failed_turn(recorded: Recorded) -> None:
    call = CallUnderTest(client.Open("failing", system=SYSTEM))
    call.send(client.Final(1, LINES[0]))
    call.engine.refuse("failing", 1, "OutOfPages")
    (turn,) = recorded.named(TURN)
    assert attributes(turn)["error.type"] == "OUT_OF_PAGES"
    assert turn.status.status_code is StatusCode.ERROR
    durations = recorded.metrics()["gen_ai.server.request.duration"]
    assert [point.attributes["error.type"] for point in durations] == ["OUT_OF_PAGES"]
    assert "gen_ai.server.time_to_first_token" not in recorded.metrics()


def test_turns_that_a_call_ends_before_they_end(recorded: Recorded) -> None:
    """Also one that was overtaken and whose end the engine had not told."""
    call = CallUnderTest()
    call.send(client.Final(1, LINES[0]))
    call.engine.step()
    call.send(client.Final(2, LINES[1]), client.CloseCall())
    ends = [attributes(turn)["gen_ai.agent.invocation.end_reason"] for turn in recorded.named(TURN)]
    assert ends == ["session_closed", "session_closed"]
    (active,) = recorded.metrics()["firstword.calls.active"]
    assert active.value == 0


def test_a_refused_opening_leaves_no_call_behind(recorded: Recorded) -> None:
    call = CallUnderTest(client.Open(generation=GenerationPatch(stop_token_ids=frozenset({10**6}))))
    assert [problem and problem.field for problem in call.ended_with] == ["open.sampling.stop_token_ids"]
    assert not any(point.value for point in recorded.metrics().get("firstword.calls.active", []))


def test_metrics_have_the_conventions_names_and_our_bounds(recorded: Recorded) -> None:
    call = CallUnderTest()
    for turn_id, line in enumerate(LINES[:2], 1):
        call.send(client.Final(turn_id, line))
        call.run()
    found = recorded.metrics()
    assert {name for name in found if name.startswith("gen_ai.")} == {
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.server.request.duration",
    }
    untouched = {names.TOOL_WAIT, names.INTERRUPTION_TIME, names.STORE_APPEND_TIME}
    assert not untouched & set(found)
    for name, bounds in BUCKETS.items():
        if name in untouched:
            continue
        (point,) = found[name]
        assert list(point.explicit_bounds) == list(bounds) == sorted(set(bounds))
        assert point.count == 2
        assert point.attributes["gen_ai.operation.name"] == "chat"
        assert point.attributes["gen_ai.provider.name"] == "firstword"
        assert point.attributes["gen_ai.request.model"] == MODEL
    ends = call.of(server.TurnEnded)
    first_tokens = sum(end.account.stats[0].first_token - end.account.committed for end in ends)
    assert found["gen_ai.server.time_to_first_token"][0].sum == pytest.approx(first_tokens)
    assert found["gen_ai.server.request.duration"][0].sum == pytest.approx(
        sum(end.account.ended - end.account.committed for end in ends)
    )
    assert found["firstword.turn.tokens_per_step"][0].sum == pytest.approx(2.0)  # nobody drafts: one a step
    (turns,) = found["firstword.turns"]
    assert (turns.value, turns.attributes["gen_ai.agent.invocation.end_reason"]) == (2, "completed")
    (active,) = found["firstword.calls.active"]
    assert active.value == 1
    # The bounds resolve what a voice agent is held to: some between 100 and 250 ms to the first token.
    assert sum(0.1 < bound < 0.25 for bound in BUCKETS["gen_ai.server.time_to_first_token"]) >= 2


def test_given_text_is_no_request_to_a_model(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.send(client.Say(1, "One moment."))
    assert call.of(server.TurnEnded)
    assert not recorded.named(TURN)
    assert "firstword.turns" not in recorded.metrics()


def marked(spans: list[ReadableSpan], word: str) -> list[str]:
    return [span.name for span in spans if word in span.to_json()]


def test_no_text_of_the_conversation_in_spans_metrics_or_logs(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    word = "zanzibarquux"
    call = CallUnderTest(client.Open(system=f"{SYSTEM} {word}", items=(MessageItem("", "user", word),)))
    call.send(client.Partial(1, 1, word), client.Final(1, f"{LINES[0]} {word}"))
    call.run()
    call.send(client.Say(2, word), client.Interrupt(2, client.Heard(text="other")), client.Interrupt(2, None))
    call.send(client.CloseCall())
    assert recorded.spans
    assert not marked(recorded.spans, word)
    assert word not in str(recorded.metrics())
    assert word not in caplog.text
    assert word not in str([vars(record) for record in caplog.records])


async def test_a_word_that_was_said_is_in_no_log_and_no_export_of_the_real_server() -> None:
    """Every way in which text reaches the service, with everything it says about itself on its two outputs."""
    word = "zanzibarquux"
    environment = {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "console",
        "FIRSTWORD_LOG__LEVEL": "debug",
        "FIRSTWORD_LOG__FORMAT": "json",
    }
    exported: list[str] = []
    with ServiceProcess(environment) as process:
        assert process.process.stdout is not None
        reader = threading.Thread(target=exported.extend, args=(process.process.stdout,))
        reader.start()
        async with connected(process.address) as stub:
            call = CallStream(stub)
            _, line = at_a_tool_call()
            items = [
                conversation_pb.Item(message=conversation_pb.Message(role=role, text=f"{message['content']} {word}"))
                for message, role in zip(
                    example_messages()[1:5],
                    [conversation_pb.ROLE_USER, conversation_pb.ROLE_ASSISTANT] * 2,
                    strict=True,
                )
            ]
            tools = [
                conversation_pb.Tool(
                    name=tool["name"], description=word, parameters_json_schema=json.dumps(tool["parameters"])
                )
                for tool in example_tools()
            ]
            sampling = options_pb.Sampling(stop_strings=[word], max_output_tokens=60)
            await call.open(
                system_prompt=f"{SYSTEM} {word}", items=items, tools=tools, sampling=sampling, caller_key=word
            )
            call.tool_output = json.dumps({"id": word})
            await call.send(partial=client_pb.Partial(turn_id=1, revision=1, text=word))
            for said in (line, f"{LINES[0]} {word}"):
                assert (await call.say(said)).ended is not None
            heard = client_pb.Heard(text=word)
            await call.send(interrupt=client_pb.Interrupt(turn_id=2, heard=heard))
            assert (await call.expect("interrupted")).text == ""
            await call.send(final=client_pb.Final(turn_id=2, text=word))  # another than it began with
            assert word not in (await call.expect("error")).message
            await call.send(say=client_pb.Say(turn_id=3, text=word))
            await call.expect("turn_ended")
            await call.close()
            refused = CallStream(stub)
            await refused.send(
                open=client_pb.Open(items=items, tools=[conversation_pb.Tool(name=word, description=word)] * 2)
            )
            with pytest.raises(Exception, match="name"):
                await refused.next()
        process.stop()
        reader.join()
    spans = "".join(exported)
    assert spans.count(f'"name": "{TURN}"') == 2
    assert "gen_ai.server.time_to_first_token" in spans
    assert [entry for entry in process.entries if entry["event"] == "call ended"]
    assert not [entry for entry in process.entries if entry["event"] == "unstructured"]
    assert word not in spans
    assert word not in json.dumps(process.entries)


@pytest.mark.parametrize(
    ("first_token", "first_text", "end_reason", "missed"),
    [
        (10.1, 12.0, "completed", False),  # a tool was called in time, and text came behind it
        (10.5, 10.5, "completed", True),
        (0.0, 10.3, "completed", False),  # a phrase
        (0.0, 0.0, "completed", True),
        (0.0, 0.0, "interrupted", False),
    ],
)
def test_a_deadline_is_of_the_first_token(first_token: float, first_text: float, end_reason: str, missed: bool) -> None:
    stats = [TurnStats(first_token=first_token)]
    turn = TurnRecord(1, 10.0, deadline=10.4, first_text=first_text, end_reason=end_reason, stats=stats)
    assert turn.missed_deadline is missed
