"""One interrupted turn with a tool call, as a real OTLP receiver and a real scrape see it. ``docs/observability.md``
draws the same shape.
"""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from firstword.v1 import client_events_pb2 as client_pb
from scripts.otlp import Received, attributes
from tests.e2e.observed import CANARY, OPENMETRICS, PARENT, TRACE, Observed
from tests.e2e.server import ROOT, CallStream, connected


def test_a_turns_trace_is_the_one_its_event_named_and_links_its_call(observed: Observed) -> None:
    turn = observed.interrupted
    assert (turn.name, turn.trace, turn.parent) == ("chat receptionist", TRACE, PARENT)
    calls = {span.span: span for span in observed.receiver.spans if span.name == "call"}
    (call,) = (calls[link] for link in turn.links)
    assert call.attributes["gen_ai.conversation.id"] == turn.attributes["gen_ai.conversation.id"]
    assert call.start <= turn.start <= turn.end <= call.end
    # Turns whose events name no trace are the call's own children.
    own = [span for span in observed.children(call) if span.name == "chat receptionist"]
    assert own and {span.trace for span in own} == {call.trace}


def test_the_trace_of_an_interrupted_turn_with_a_tool_call_has_the_documented_shape(observed: Observed) -> None:
    turn = observed.interrupted
    parts: dict[str, list[Received]] = {}
    for span in sorted(observed.children(turn), key=lambda span: span.start):
        assert span.trace == TRACE
        name = "execute_tool" if span.name.startswith("execute_tool ") else span.name
        parts.setdefault(name, []).append(span)
    assert sorted(parts) == sorted(
        [*("prefill ahead", "hand over", "queue", "prefill", "decode", "first token"), "execute_tool", "interruption"]
        + ["first clause"] * ("first clause" in parts)
    )
    once = [name for name, spans in parts.items() if len(spans) == 1]
    assert {"prefill ahead", "hand over", "first token", "interruption"} <= set(once)
    assert len(parts["queue"]) == len(parts["prefill"]) == len(parts["decode"]) == len(parts["execute_tool"]) + 1 >= 2
    in_order = [parts[name][0] for name in ("prefill ahead", "hand over", "queue", "prefill", "decode", "execute_tool")]
    assert [span.start for span in in_order] == sorted(span.start for span in in_order)
    assert in_order[0].end == turn.start == in_order[1].start == parts["first token"][0].start
    assert parts["prefill"][0].end == parts["first token"][0].end
    last, (interruption,) = parts["decode"][-1], parts["interruption"]
    assert parts["execute_tool"][-1].end <= last.start < interruption.start <= interruption.end == turn.end
    for span in (span for name, spans in parts.items() if name != "prefill ahead" for span in spans):
        assert turn.start <= span.start <= span.end <= turn.end + 1000  # a microsecond of rounding


def test_every_span_is_in_the_documentation(observed: Observed) -> None:
    text = (ROOT / "docs/observability.md").read_text()
    for span in observed.receiver.spans:
        name = re.sub(r"^(chat) .*", r"\1 MODEL", re.sub(r"^(execute_tool) .*", r"\1 NAME", span.name))
        assert f"`{name}`" in text


def test_the_steps_of_a_generation_are_one_span_with_their_sums(observed: Observed) -> None:
    turn = observed.interrupted
    decodes = [span.attributes for span in observed.children(turn) if span.name == "decode"]
    assert turn.attributes["firstword.steps"] == sum(decode["firstword.steps"] for decode in decodes) > len(decodes)
    for decode in decodes:
        assert decode["firstword.draft.drafted"] >= decode["firstword.draft.accepted"] >= 0
        assert sum(decode["firstword.draft.accepted_at"]) == decode["firstword.draft.accepted"]
        assert decode["firstword.forward.seconds"] > 0


def test_otlp_metrics_have_exemplars_of_the_traces_that_were_sent(observed: Observed) -> None:
    name = "gen_ai.server.time_to_first_token"
    points = observed.receiver.metrics[name].histogram.data_points
    exemplars = set(observed.receiver.exemplars[name])
    spans = {(span.trace, span.span) for span in observed.receiver.spans if span.name == "chat receptionist"}
    assert exemplars
    assert exemplars <= spans
    assert {attributes(point.attributes)["firstword.answer.ahead"] for point in points} == {False, True}


def test_openmetrics_has_the_same_exemplars_each_in_its_bucket(observed: Observed) -> None:
    families = {family.name: family for family in text_string_to_metric_families(observed.scrape(OPENMETRICS))}
    spans = {(span.trace, span.span) for span in observed.receiver.spans}
    found = 0
    for family in families.values():
        below = float("-inf")
        for sample in (sample for sample in family.samples if sample.name.endswith("_bucket")):
            bound = float(sample.labels["le"])
            if sample.exemplar is not None:
                found += 1
                assert below < sample.exemplar.value <= bound
                assert (sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"]) in spans
            below = float("-inf") if bound == float("inf") else bound
    assert found >= 4


def test_both_ways_out_tell_the_same_figures(observed: Observed) -> None:
    """Of what does not change any more."""
    name, prometheus = "firstword.turns", "firstword_turns_total"
    points = observed.receiver.metrics[name].sum.data_points
    scraped = re.findall(rf"^{prometheus}{{.*}} (\S+)$", observed.scrape(), re.MULTILINE)
    assert sum(point.as_int for point in points) == sum(map(float, scraped)) >= 4


async def test_no_text_of_a_call_is_in_anything_that_is_told(observed: Observed) -> None:
    """Not in a span, a metric or a log. A phrase that was said, and one that was refused."""
    assert CANARY.encode() not in observed.receiver.raw
    assert CANARY not in observed.scrape(OPENMETRICS)
    async with connected(observed.process.address) as stub:
        call = CallStream(stub)
        await call.open(system_prompt=CANARY)
        await call.send(interrupt=client_pb.Interrupt(turn_id=9, heard=client_pb.Heard(text=CANARY)))
        assert CANARY not in (await call.expect("error")).message
        await call.close()
    assert CANARY not in json.dumps(observed.process.entries)
    assert [entry for entry in observed.process.entries if entry["event"] == "call ended"]


@pytest.mark.parametrize(
    "name", ["firstword_calls_refused_total", "firstword_engine_pages_used", "firstword_turns_open"]
)
def test_what_others_keep_is_scraped_too(observed: Observed, name: str) -> None:
    assert re.search(rf"^{name}{{.*}} \d", observed.scrape(), re.MULTILINE)
