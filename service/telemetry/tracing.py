"""The spans of calls and turns, built when a turn is over from its record. ``docs/observability.md`` draws their shape.

Knows the OpenTelemetry API only.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from engine.session import TurnStats
from service.telemetry import names
from service.telemetry.record import ToolUse, TurnRecord, add_up

if TYPE_CHECKING:
    from service.telemetry.metrics import Telemetry

Attributes = dict[str, AttributeValue]

_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class Part:
    """A child of a turn's span. Times are ``time.monotonic()`` seconds. error: what it came to, where nothing good."""

    name: str
    start: float
    end: float
    attributes: Attributes = field(default_factory=dict)
    error: str = ""


class CallRecorder:
    """The span of one call and the spans of its turns. metadata: of the stream; may name the trace it belongs to.
    tenant: whose call it is; "" for nobody's. earlier: W3C trace context of its span at the server that it was taken
    over from; empty where it was not.
    """

    def __init__(
        self, telemetry: Telemetry, session: str, metadata: Mapping[str, str], tenant: str = "", earlier: str = ""
    ) -> None:
        self._telemetry = telemetry
        self._session = session
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._turns = 0
        self._interruptions: Counter[str] = Counter()
        attributes: Attributes = {
            names.OPERATION: "invoke_agent",
            names.PROVIDER_NAME: names.PROVIDER,
            names.REQUEST_MODEL: telemetry.model,
            "gen_ai.conversation.id": session,
        }
        if tenant:
            attributes[names.TENANT] = tenant
        parent = _propagator.extract(metadata, otel_context.Context())
        links = [Link(there, {names.LINK: "taken over"})] if (there := _named(earlier)).is_valid else []
        self._span: Span = telemetry.tracer.start_span("call", parent, SpanKind.SERVER, attributes, links)

    @property
    def traceparent(self) -> str:
        """W3C trace context of the call's span, for whoever takes it over; empty where nothing is traced."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._span, otel_context.Context()))
        return carrier.get("traceparent", "")

    def begun(self) -> None:
        """A turn has begun."""
        self._telemetry.turns_open += 1

    def over(self) -> None:
        """One that has begun is over."""
        self._telemetry.turns_open -= 1

    def spoken_over(self, during: str) -> None:
        """The caller has spoken over a turn during "generating", "waiting" (for tools) or "playback". Counted with the
        next turn that ends: this may be the moment in which another is committed.
        """
        self._interruptions[during] += 1

    def held(self) -> None:
        """The client is too far behind: its replies wait."""
        self._telemetry.held()

    def turn(self, turn: TurnRecord) -> None:
        """Record a turn that is over: its span, children for each part of it, and its share of the metrics."""
        self._turns += 1
        self._telemetry.count(turn, self._trace(turn))
        self._count_interruptions()

    def question(self, question: TurnRecord) -> None:
        """Record a side question that is over. Nobody has waited for its first token: it is in no metric of turns."""
        self._trace(question)

    def end(self, error: str = "") -> None:
        """The stream is over; ``error``: the reason it ended with, if it did not simply close."""
        self._count_interruptions()
        self._telemetry.ended(error)
        self._span.set_attribute("firstword.turns", self._turns)
        if error:
            self._span.set_attribute(names.ERROR, error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()

    def _count_interruptions(self) -> None:
        self._telemetry.interruptions(self._interruptions)
        self._interruptions.clear()

    def _trace(self, turn: TurnRecord) -> otel_context.Context:
        """Make a turn's spans. Returns the context of the outermost."""
        tracer, content = self._telemetry.tracer, self._telemetry.config.content
        parent, links = self._parent(turn)
        attributes, start = self._attributes(turn), self._ns(turn.committed)
        name = f"chat {self._telemetry.model}"
        span = tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, links, start_time=start)
        inside = trace.set_span_in_context(span, otel_context.Context())
        if not span.is_recording():
            return inside
        if turn.error:
            span.set_status(Status(StatusCode.ERROR, turn.error))
        for part in parts(turn, content=content):
            child = tracer.start_span(part.name, inside, attributes=part.attributes, start_time=self._ns(part.start))
            if part.error:
                child.set_attribute(names.ERROR, part.error)
                child.set_status(Status(StatusCode.ERROR, part.error))
            child.end(self._ns(part.end))
        if turn.first_text:
            span.add_event("first text", timestamp=self._ns(turn.first_text))
        if content:
            span.set_attributes(_content(turn))
        span.end(self._ns(turn.ended))
        return inside

    def _parent(self, turn: TurnRecord) -> tuple[otel_context.Context, list[Link]]:
        """A turn belongs to the trace its event named, or to one of its own where that is configured, and is linked to
        the call's span; else it is a child of that.
        """
        carrier = {"traceparent": turn.traceparent, "tracestate": turn.tracestate}
        named = _propagator.extract(carrier, otel_context.Context())
        is_named = trace.get_current_span(named).get_span_context().is_valid
        if is_named or self._telemetry.config.turn_traces == "own":
            return named, [Link(self._span.get_span_context())]
        return trace.set_span_in_context(self._span, otel_context.Context()), []

    def _attributes(self, turn: TurnRecord) -> Attributes:
        attributes: Attributes = {
            names.OPERATION: "chat",
            names.PROVIDER_NAME: names.PROVIDER,
            names.REQUEST_MODEL: self._telemetry.model,
            names.RESPONSE_MODEL: turn.model or self._telemetry.model,
            "gen_ai.conversation.id": self._session,
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": turn.max_tokens,
            "gen_ai.request.temperature": turn.sampling.temperature,
            "gen_ai.request.top_p": turn.sampling.top_p,
            "gen_ai.request.top_k": turn.sampling.top_k,
            "gen_ai.usage.output_tokens": turn.output_tokens,
            names.END_REASON: turn.end_reason,
        }
        if turn.request_id:
            attributes["firstword.request.id"] = turn.request_id
        else:
            attributes |= {"firstword.turn.id": turn.turn_id, "firstword.turn.tool_calls": turn.tool_calls}
            attributes |= {names.SOURCE: turn.source, names.AHEAD: bool(turn.released)}
        if turn.deadline:
            attributes["firstword.turn.deadline"] = turn.deadline - turn.committed
            attributes["firstword.turn.deadline.missed"] = turn.missed_deadline
        if turn.sampling.seed is not None:
            attributes["gen_ai.request.seed"] = turn.sampling.seed
        if turn.finish:
            attributes["gen_ai.response.finish_reasons"] = [turn.finish]
        if turn.first_text:
            attributes["gen_ai.response.time_to_first_chunk"] = turn.first_text - turn.committed
        if turn.held_s:
            attributes["firstword.turn.held"] = turn.held_s
        if turn.error:
            attributes[names.ERROR] = turn.error
        if turn.stats:
            attributes |= _usage(turn.stats[-1]) | {names.MODE: turn.mode} | _steps(turn.stats)
        return attributes

    def _ns(self, monotonic: float) -> int:
        return int(monotonic * 1e9) + self._epoch_ns


def _named(traceparent: str) -> SpanContext:
    """The span that a W3C trace context names; an invalid one for nothing, and for what is none."""
    found = _propagator.extract({"traceparent": traceparent}, otel_context.Context())
    return trace.get_current_span(found).get_span_context()


def parts(turn: TurnRecord, *, content: bool = False) -> Iterator[Part]:
    """The children of a turn's span, in the order in which they begin within each kind. content: with what was said."""
    if turn.listened.since:
        found = turn.stats[0] if turn.stats else TurnStats(submitted=0.0)
        attributes: Attributes = {
            "firstword.hypotheses": turn.listened.hypotheses,
            "firstword.prefill.tokens": found.prefilled_ahead,
            "firstword.prefill.rewound": found.rewound,
            "firstword.ahead.wasted": turn.listened.wasted,
        }
        yield Part("prefill ahead", turn.listened.since, max(turn.listened.since, turn.committed), attributes)
    for number, stats in enumerate(turn.stats, 1):
        yield from _generation(turn, number, stats)
    if turn.first:
        yield Part("first token", turn.committed, turn.first)
    if turn.first_clause:
        yield Part("first clause", turn.committed, turn.first_clause)
    for tool in turn.tools:
        yield _tool(turn, tool, content=content)
    if turn.interrupted:
        yield Part("interruption", turn.interrupted, max(turn.interrupted, turn.ended))


def _generation(turn: TurnRecord, number: int, stats: TurnStats) -> Iterator[Part]:
    """What a generation has done, from the hand-over to its last step. A span for all steps, not one for each."""
    common: Attributes = {"firstword.generation": number, "firstword.ahead": stats.submitted < turn.committed}
    if number == 1 and stats.submitted > turn.committed:
        yield Part("hand over", turn.committed, stats.submitted, common)
    if stats.started:
        yield Part("queue", stats.submitted, stats.started, common)
    if stats.started and stats.first_token:
        computed: Attributes = {"firstword.prefill.tokens": stats.prompt_tokens - stats.cached_tokens}
        yield Part("prefill", stats.started, stats.first_token, common | _usage(stats) | computed)
    if stats.first_token:
        end = max(stats.ended, stats.first_token)
        mode: Attributes = {
            names.MODE: stats.mode,
            "firstword.mode.reason": stats.reason,
            "firstword.mode.phases": [f"{phase.mode}, {phase.steps} steps: {phase.reason}" for phase in stats.phases],
        }
        yield Part("decode", stats.first_token, end, common | mode | _steps([stats]))


def _tool(turn: TurnRecord, tool: ToolUse, *, content: bool) -> Part:
    """Waiting for a tool, under the name that the conventions have for its execution."""
    attributes: Attributes = {
        names.OPERATION: "execute_tool",
        "gen_ai.tool.name": tool.name,
        "gen_ai.tool.call.id": tool.call_id,
        names.OUTCOME: tool.outcome,
    }
    if content:
        attributes |= {"gen_ai.tool.call.arguments": tool.arguments, "gen_ai.tool.call.result": tool.result}
    error = "" if tool.outcome in ("answered", "abandoned") else tool.outcome
    return Part(
        f"execute_tool {tool.name}", tool.asked, tool.answered or max(tool.asked, turn.ended), attributes, error
    )


def _usage(stats: TurnStats) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": stats.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": stats.cached_tokens,
    }


def _steps(generations: list[TurnStats]) -> Attributes:
    """Steps and what the drafter was worth, over some generations."""
    return {
        "firstword.steps": sum(stats.steps for stats in generations),
        "firstword.draft.drafted": sum(stats.drafted for stats in generations),
        "firstword.draft.accepted": sum(stats.accepted for stats in generations),
        "firstword.draft.drafted_at": add_up([stats.drafted_at for stats in generations]),
        "firstword.draft.accepted_at": add_up([stats.accepted_at for stats in generations]),
        "firstword.draft.seconds": sum(stats.draft_seconds for stats in generations),
        "firstword.forward.seconds": sum(stats.forward_seconds for stats in generations),
        "firstword.clauses": sum(stats.clauses for stats in generations),
        "firstword.clauses.late": sum(stats.clauses_late for stats in generations),
        "firstword.underruns": sum(stats.underruns for stats in generations),
        "firstword.underrun.seconds": sum(stats.underrun_seconds for stats in generations),
    }


def _content(turn: TurnRecord) -> Attributes:
    """What was said, in the conventions' JSON. Only where the configuration asks for it."""
    heard = [{"role": "user", "parts": [{"type": "text", "content": turn.heard}]}] if turn.heard else []
    said = [{"type": "text", "content": turn.said}] if turn.said else []
    calls = [{"type": "tool_call", "id": t.call_id, "name": t.name, "arguments": t.arguments} for t in turn.tools]
    output = [{"role": "assistant", "parts": [*said, *calls], "finish_reason": turn.finish}]
    return {"gen_ai.input.messages": json.dumps(heard), "gen_ai.output.messages": json.dumps(output)}
