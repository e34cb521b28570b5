"""What turns and calls add to the metrics, and what their spans hold where the configuration asks for it."""

from __future__ import annotations

import dataclasses
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from engine import records, schedule
from engine.session import TurnStats
from service import client_events as client
from service import server_events as server
from service.config import TelemetryConfig
from service.options import Limits
from service.telemetry import Telemetry, TurnRecord, engines
from service.telemetry.tracing import parts
from tests.service.calls import LINES, MODEL, SYSTEM, CallUnderTest
from tests.service.recorded import Recorded, attributes
from tests.service.test_telemetry import TURN, at_a_tool_call

WORD = "zanzibarquux"


def sums(points: list[Any], by: str) -> dict[Any, float]:
    """The values of a counter's points, by one of their attributes."""
    found: dict[Any, float] = {}
    for point in points:
        key = point.attributes.get(by)
        found[key] = found.get(key, 0) + point.value
    return found


def test_prompt_tokens_are_counted_by_where_they_were_found(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.run()
    call.send(client.Partial(1, 1, LINES[0]))
    call.run()
    call.send(client.Final(1, LINES[0]))
    call.run()
    call.send(client.Final(2, LINES[1]))
    call.run()
    heard, unheard = (end.account.stats[0] for end in call.of(server.TurnEnded))
    found = sums(recorded.metrics()["firstword.prompt.tokens"], "firstword.prompt.found")
    assert sum(found.values()) == heard.prompt_tokens + unheard.prompt_tokens
    assert found["ahead"] == heard.prefilled_ahead > 0
    assert unheard.prefilled_ahead == 0
    assert found["computed"] == sum(stats.prompt_tokens - stats.cached_tokens for stats in (heard, unheard))
    first, second = recorded.named(TURN)
    (ahead,) = [span for span in recorded.children(first) if span.name == "prefill ahead"]
    assert ahead.start_time and ahead.start_time < (first.start_time or 0) and ahead.end_time == first.start_time
    assert attributes(ahead)["firstword.prefill.tokens"] == heard.prefilled_ahead
    assert attributes(ahead)["firstword.hypotheses"] == 1
    assert "prefill ahead" not in {span.name for span in recorded.children(second)}


def test_a_reply_made_ahead_has_its_parts_before_the_turn_and_keeps_nobody_in_a_queue(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.run()
    call.send(client.EagerEndOfTurn(1, 1, LINES[0]))
    call.run()
    call.send(client.Final(1, LINES[0]))
    call.run()
    (turn,) = recorded.named(TURN)
    assert attributes(turn)["firstword.answer.ahead"] is True
    (prefill,) = recorded.named("prefill")
    assert attributes(prefill)["firstword.ahead"] is True
    assert prefill.end_time and turn.start_time and prefill.end_time <= turn.start_time
    assert not recorded.named("hand over")
    found = recorded.metrics()
    assert "firstword.turn.queue_time" not in found and "firstword.turn.prefill_time" not in found
    assert [point.attributes["firstword.answer.ahead"] for point in found["firstword.turns"]] == [True]
    assert sums(found["firstword.prompt.tokens"], "firstword.prompt.found").get("computed", 0) == 0


def test_what_callers_speak_over_is_counted_by_what_the_turn_was_at(recorded: Recorded) -> None:
    opening, line = at_a_tool_call()
    call = CallUnderTest(opening)
    call.send(client.Final(1, line))
    call.run()
    call.send(client.Interrupt(1, None), client.CloseCall())  # it waits for its tool
    call = CallUnderTest()
    call.send(client.Final(1, LINES[0]))
    call.step_until_text()
    call.send(client.Interrupt(1, None), client.Interrupt(1, None))  # said twice, done once
    call.run()
    call.send(client.Say(2, "One moment, please."), client.Interrupt(2, client.Heard(text="One moment")))
    call.send(client.CloseCall())
    counted = sums(recorded.metrics()["firstword.interruptions"], "firstword.interruption.during")
    assert counted == {"waiting": 1, "generating": 1, "playback": 1}
    assert sums(recorded.metrics()["firstword.tool.calls"], "firstword.tool.outcome") == {"abandoned": 1}
    assert "firstword.turn.tool_wait" not in recorded.metrics()


def test_a_tool_that_is_late_is_an_error_of_its_span_alone(recorded: Recorded) -> None:
    opening, line = at_a_tool_call()
    call = CallUnderTest(dataclasses.replace(opening, limits=Limits(tool_timeout_ms=100, max_tool_calls_per_turn=1)))
    call.send(client.Final(1, line))
    call.run()
    while not call.of(server.TurnEnded):
        call.wait()
        call.run()
    tool = recorded.named("execute_tool find_appointment")[0]
    assert attributes(tool)["error.type"] == "timed_out"
    (turn,) = recorded.named(TURN)
    assert "error.type" not in attributes(turn)
    assert set(sums(recorded.metrics()["firstword.tool.calls"], "firstword.tool.outcome")) == {"timed_out"}


def test_turns_with_a_deadline_are_counted_beside_those_that_missed_it(recorded: Recorded) -> None:
    telemetry = Telemetry(MODEL)
    recorder = telemetry.call("s", {})
    for first_token in (10.1, 10.5):
        stats = [TurnStats(submitted=10.0, started=10.0, first_token=first_token, ended=11.0)]
        recorder.turn(TurnRecord(1, 10.0, deadline=10.4, ended=11.0, stats=stats))
    recorder.turn(TurnRecord(2, 10.0, ended=11.0))
    assert sums(recorded.metrics()["firstword.turn.deadlines"], "nothing") == {None: 2}
    assert sums(recorded.metrics()["firstword.turn.deadlines_missed"], "nothing") == {None: 1}


def test_drafts_are_counted_by_drafter_and_by_position(recorded: Recorded) -> None:
    stats = TurnStats(submitted=10.0, started=10.0, first_token=10.1, ended=11.0)
    stats.drafting("suffix+eagle3", "pays")
    for _ in range(3):
        stats.step()
    stats.count(2, ["suffix", "suffix", "eagle3"], ["suffix", "eagle3"])
    stats.count(1, ["eagle3"], [])
    stats.drafting("plain", "load")
    stats.step()
    assert (stats.drafted, stats.accepted, stats.drafted_at, stats.accepted_at) == (4, 2, [2, 1], [1, 1])
    Telemetry(MODEL).call("s", {}).turn(TurnRecord(1, 10.0, ended=11.0, output_tokens=5, stats=[stats]))
    found = recorded.metrics()
    assert sums(found["firstword.draft.drafts"], "firstword.mode") == {"suffix+eagle3": 2, "plain": 0}
    assert sums(found["firstword.draft.drafted"], "firstword.drafter") == {"suffix": 2, "eagle3": 2}
    assert sums(found["firstword.draft.accepted"], "firstword.drafter") == {"suffix": 1, "eagle3": 1}
    assert sums(found["firstword.draft.position.drafted"], "firstword.draft.position") == {1: 2, 2: 1}
    assert sums(found["firstword.draft.position.accepted"], "firstword.draft.position") == {1: 1, 2: 1}
    assert sums(found["firstword.steps"], "firstword.mode") == {"suffix+eagle3": 3, "plain": 1}
    (per_step,) = found["firstword.turn.tokens_per_step"]
    assert (per_step.sum, per_step.attributes["firstword.mode"]) == (5 / 4, "suffix+eagle3")


def test_calls_are_counted_when_they_end(recorded: Recorded) -> None:
    CallUnderTest(client.Open("twice", system=SYSTEM))
    ended = CallUnderTest(client.Open("ended", system=SYSTEM))
    ended.send(client.CloseCall())
    failed = CallUnderTest(client.Open("failed", system=SYSTEM, limits=Limits(max_call_ms=1000)))
    failed.wait()
    found = recorded.metrics()
    assert sums(found["firstword.calls"], "error.type") == {None: 1, "CALL_TOO_LONG": 1}
    assert sums(found["firstword.calls.active"], "error.type") == {None: 1}


def test_turns_in_progress_are_shown_while_they_are(recorded: Recorded) -> None:
    call = CallUnderTest()
    call.send(client.Final(1, LINES[0]))
    call.engine.step()
    assert [point.value for point in recorded.metrics()["firstword.turns.open"]] == [1]
    call.run()
    assert [point.value for point in recorded.metrics()["firstword.turns.open"]] == [0]
    call.send(client.Say(2, "Yes."), client.Final(3, LINES[1]), client.CloseCall())
    assert [point.value for point in recorded.metrics()["firstword.turns.open"]] == [0]


def test_engines_are_watched_by_model(recorded: Recorded) -> None:
    beat = records.Beat(1.0, 3, 40, 100, 64, 0.25, 0.001, 4096, 9, 2, 5, 1, 700, 300, kept_pages=7, speech_load=0.5)
    loaded = SimpleNamespace(beat=beat, restarts=2, serving=True)
    loading = SimpleNamespace(beat=None, restarts=0, serving=False)
    engines.watch(Telemetry(MODEL), {"small": loaded, "large": loading})
    found = {
        name: sums(points, "gen_ai.response.model")
        for name, points in recorded.metrics().items()
        if name.startswith("firstword.engine.")
    }
    assert found == {
        "firstword.engine.pages.used": {"small": 40, "large": 0},
        "firstword.engine.pages.free": {"small": 24, "large": 0},
        "firstword.engine.pages.kept": {"small": 7, "large": 0},
        "firstword.engine.backlog": {"small": 0.25, "large": 0},
        "firstword.engine.speech_load": {"small": 0.5, "large": 0},
        "firstword.engine.sessions": {"small": 3, "large": 0},
        "firstword.engine.serving": {"small": 1, "large": 0},
        "firstword.engine.restarts": {"small": 2, "large": 0},
        "firstword.engine.host.used": {"small": 4096, "large": 0},
        "firstword.engine.sessions.hibernated": {"small": 9, "large": 0},
        "firstword.engine.sessions.dropped": {"small": 2, "large": 0},
        "firstword.engine.sessions.woken_from_host": {"small": 5, "large": 0},
        "firstword.engine.sessions.woken_from_log": {"small": 1, "large": 0},
        "firstword.engine.prompt.computed": {"small": 700, "large": 0},
        "firstword.engine.prompt.shared": {"small": 300, "large": 0},
    }


def test_a_turn_may_have_a_trace_of_its_own(recorded: Recorded) -> None:
    call = CallUnderTest(telemetry=TelemetryConfig(turn_traces="own"))
    for turn_id in (1, 2):
        call.send(client.Final(turn_id, LINES[0]))
        call.run()
    call.send(client.CloseCall())
    (call_span,), turns = recorded.named("call"), recorded.named(TURN)
    assert len({trace_id(span) for span in (call_span, *turns)}) == 3
    for turn in turns:
        assert turn.parent is None
        assert [link.context for link in turn.links] == [call_span.context]


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


@pytest.mark.parametrize("content", [False, True])
def test_what_was_said_is_in_spans_only_where_that_is_wanted(recorded: Recorded, content: bool) -> None:
    opening, line = at_a_tool_call()
    once = dataclasses.replace(opening, limits=Limits(max_tool_calls_per_turn=1))
    call = CallUnderTest(once, telemetry=TelemetryConfig(content=content))
    call.send(client.Final(1, f"{line} {WORD}"))
    call.run()
    while not call.of(server.TurnEnded):
        for call_id in call.of(server.TurnWaiting)[-1].call_ids:
            call.send(client.ToolResult(1, call_id, json.dumps({"id": WORD})))
        call.run()
    held = {span.name for span in recorded.spans if WORD in span.to_json()}
    (turn,) = recorded.named(TURN)
    (end,) = call.of(server.TurnEnded)
    tools = {span.name for span in recorded.children(turn) if span.name.startswith("execute_tool ")}
    if not content:
        assert not held
        assert not {"gen_ai.input.messages", "gen_ai.output.messages"} & set(attributes(turn))
        return
    assert {TURN, "execute_tool find_appointment"} <= held <= {TURN, *tools}
    (heard,) = json.loads(str(attributes(turn)["gen_ai.input.messages"]))
    assert heard == {"role": "user", "parts": [{"type": "text", "content": f"{line} {WORD}"}]}
    (said,) = json.loads(str(attributes(turn)["gen_ai.output.messages"]))
    assert "".join(part["content"] for part in said["parts"] if part["type"] == "text") == end.text
    found = next(part for part in said["parts"] if part["type"] == "tool_call")
    assert found["name"] == "find_appointment" and json.loads(found["arguments"])


def test_a_turn_that_nothing_came_of_has_no_parts() -> None:
    assert not list(parts(TurnRecord(1, 10.0, ended=11.0)))


def test_clauses_and_the_silences_before_them_are_counted(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said is spoken in a few seconds; nothing comes for half a minute, and then the rest."""
    passed = [0.0]
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    call = CallUnderTest(client.Open("calling", system=SYSTEM))
    call.send(client.Final(1, LINES[0]))
    while not any(delta.clause_ends for delta in call.of(server.TextDelta)):
        assert call.engine.step()
    passed[0] = 30.0
    call.run()
    told = sum(bool(delta.clause_ends) for delta in call.of(server.TextDelta))
    call.send(client.Final(2, LINES[1]))
    call.run()
    (first, second) = (end.account.stats[0] for end in call.of(server.TurnEnded))
    assert first.clauses == told > 1 and first.underruns == 1 and 20.0 < first.underrun_seconds < 30.0
    assert second.underruns == 0 < second.clauses
    metrics = {
        name: sum(point.value for point in points)
        for name, points in recorded.metrics().items()
        if "clauses" in name or "underrun" in name
    }
    assert metrics == {
        "firstword.turn.clauses": first.clauses + second.clauses,
        "firstword.turn.clauses_late": first.clauses_late + second.clauses_late,
        "firstword.turn.underruns": 1,
        "firstword.turn.underrun_time": first.underrun_seconds,
    }
    spans = [attributes(span) for span in recorded.named(TURN)]
    assert [span["firstword.underruns"] for span in spans] == [1, 0]


def test_a_reply_that_waited_for_its_reader_has_not_run_out_of_words(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    call = CallUnderTest(client.Open("calling", system=SYSTEM))
    call.send(client.Final(1, LINES[0]))
    while not any(delta.clause_ends for delta in call.of(server.TextDelta)):
        assert call.engine.step()
    call.call.hold(True)
    call.run()
    passed[0] = 30.0
    call.call.hold(False)
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.account.stats[0].clauses > 0 and end.account.stats[0].underruns == 0
